# %% [markdown]
# # 9. Your own images
#
# From a folder of pictures to samples, a Fréchet distance and a report. Each call below is what
# one command of the program makes; the command stands beside it. Everything is small, so that the
# whole takes a minute or two on a CPU.

# %%
# On a fresh machine, such as Colab's, this installs the project; elsewhere it does nothing.
import importlib.util
import os
import subprocess
import sys

REPOSITORY = ""  # the address of the project's repository; where it is empty, you are asked
if importlib.util.find_spec("sde_lib") is None:
    address = REPOSITORY or input("The address of the project's git repository: ")
    subprocess.run(["git", "clone", "--quiet", "--depth=1", address, "score-sde"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "-e", "score-sde"], check=True
    )
    sys.path.insert(0, os.path.abspath("score-sde"))

# %%
import colorsys
import json
import os
import pathlib
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

folder = tempfile.TemporaryDirectory()
place = pathlib.Path(folder.name)
os.environ["SCORE_SDE_DATA"] = str(place / "cache")  # where prepared data and classifiers are kept

import data
from configs import defaults
from control.run import control
from evaluation.evaluate import evaluate
from evaluation.metrics import classifier
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.moments import Moments
from training.loop import train

plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"

# %% [markdown]
# ## A folder
#
# Sub-folders are classes. Here are three of 200 pictures each, drawn: discs, squares and
# triangles, of any place, size and shade, the hue telling the class. Yours would be photographs,
# in any format that Pillow reads.

# %%
rng = np.random.default_rng(0)
HUES = {"disc": 0.58, "square": 0.04, "triangle": 0.33}


def picture(kind):
    """A drawing of 48 x 48 pixels on a light ground."""
    image = Image.new("RGB", (48, 48), "#f4efe6")
    (x, y), r = rng.uniform(18, 30, 2), rng.uniform(10, 15)
    colour = colorsys.hsv_to_rgb(HUES[kind] + rng.uniform(-0.04, 0.04), 0.7, rng.uniform(0.5, 0.9))
    fill, draw = tuple(int(255 * c) for c in colour), ImageDraw.Draw(image)
    if kind == "disc":
        draw.ellipse((x - r, y - r, x + r, y + r), fill)
    elif kind == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill)
    else:
        draw.polygon([(x, y - r), (x - 1.1 * r, y + r), (x + 1.1 * r, y + r)], fill)
    return image


pictures = place / "pictures"
for kind in HUES:
    (pictures / kind).mkdir(parents=True)
    for i in range(200):
        picture(kind).save(pictures / kind / f"{i:03}.png")

# %% [markdown]
# What the network will see is worth a look before anything is trained. Pictures are cropped to a
# square and resampled to `data.image_size`; a tenth of them, by a hash of their names, is kept for
# testing.

# %%
SIZE = 10
images = {split: data.load("folder", split, pictures, SIZE, 3) for split in ("train", "test")}
print(images["train"].summary)
assert len(images["train"]) + len(images["test"]) == 600
assert images["train"].num_classes == 3


def grid(images, columns):
    """Pictures [n, H, W, 3] as one, with a border of two pixels."""
    framed = np.pad(images, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255)
    rows = framed.reshape(-1, columns, *framed.shape[1:])
    return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)


def show(*pictures, titles):
    _, axes = plt.subplots(1, len(pictures), figsize=(10, 3.2), layout="constrained", squeeze=False)
    for axis, image, title in zip(axes[0], pictures, titles, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    plt.show()


drawn = np.stack([np.asarray(picture(kind)) for kind in HUES for _ in range(4)])
levels, labels = images["train"].take(np.arange(48))
show(
    grid(drawn, 4),
    grid(levels, 8),
    titles=("drawn, 48 pixels", f"as the network sees them, {SIZE} pixels"),
)
assert levels.shape == (48, SIZE, SIZE, 3)
assert levels.dtype == np.uint8

# %% [markdown]
# ## Training
#
# A config is data: which images, which network, how long. This one takes EDM's process,
# preconditioning and sampler, and for speed an MLP; without the lines of `config.model` it would
# have the U-Net of the published configs, which is what photographs want. The network is told the
# class, and in one draw of ten is not, for guidance below.
#
#     python main.py --mode=train --config=shapes.py --workdir=runs/shapes

# %%
config = defaults.cifar10()
config.data.dataset = "folder"
config.data.data_dir = str(pictures)
config.data.image_size = SIZE
config.data.num_channels = 3
defaults.edm_training(config, sigma_data=0.5)
config.model.name = "mlp"
config.model.nf = 512
config.model.num_res_blocks = 2
config.model.fourier_scale = 0.5
config.model.dropout = 0.0
config.model.num_labels = 3
config.model.ema_rate = 0.995
config.model.ema_warmup = True
config.training.label_dropout = 0.1
config.training.batch_size = 64
config.training.n_iters = 1000
config.training.n_jitted_steps = 100
config.training.eval_freq = config.training.snapshot_freq = 1000
config.training.snapshot_freq_for_preemption = 1000
config.training.log_freq = 20
config.training.snapshot_sampling = False
config.training.loggers = ()
config.optim.lr = 2e-3
config.optim.warmup = 50
config.optim.schedule = "cosine"
config.optim.decay_steps = 1000

workdir = place / "run"
train(config, workdir)

log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
losses = np.array([(entry["step"], entry["loss"]) for entry in log if "loss" in entry])
held_out = np.array([(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry])
figure, axes = plt.subplots(figsize=(6.6, 2.8), layout="constrained")
axes.semilogy(*losses.T, color=BLUE, label="training images")
axes.semilogy(*held_out.T, "o", color=RED, label="test images, averaged weights")
axes.set(xlabel="step", ylabel="loss")
axes.legend(frameon=False)
plt.show()
first, last = losses[:3, 1].mean(), losses[-10:, 1].mean()
print(f"loss {first:.3f} in the first 60 steps, {last:.3f} in the last 200")
assert last < 0.95 * first  # most of it is noise that nobody can foretell

# %% [markdown]
# ## Samples, and how good they are
#
#     python main.py --mode=eval --config=shapes.py --workdir=runs/shapes
#
# draws samples and compares them with the training images. A *Fréchet distance* fits a Gaussian to
# features of both sets,
#
# $$d^2 = |\mu - \mu'|^2 + \operatorname{tr}
# \bigl(\Sigma + \Sigma' - 2\,(\Sigma \Sigma')^{1/2}\bigr);$$
#
# with the features of the Inception network it is the FID. Inception knows nothing of shapes of
# ten pixels, so a classifier of these three classes, which the evaluation trains, gives the
# features: such a number compares within this data set only.

# %%
config.eval.features = "classifier"
config.eval.enable_sampling = True
config.eval.enable_loss = False
config.eval.num_samples = config.sampling.batch_size = 540
config.eval.batch_size = 60
config.eval.keep_samples = True
results = evaluate(config, workdir, "eval")

samples = np.concatenate(
    [np.load(path)["image"] for path in sorted((workdir / "eval" / "shards").rglob("*.npz"))]
)
show(
    grid(levels, 8),
    grid(samples[:48], 8),
    titles=("training images", f"samples, {results['nfe']} evaluations each"),
)
shares = ", ".join(
    f"{kind} {share:.0%}" for kind, share in zip(HUES, results["class_shares"], strict=True)
)
print(f"classes of the samples: {shares}")
assert (workdir / "eval" / "report.html").stat().st_size > 10_000
assert min(results["class_shares"]) > 0.15

# %% [markdown]
# A number needs a scale. Below are three: what disjoint halves of the training images have (a
# perfect generator would get that), the training images themselves with a little noise, and grey
# squares. That of the samples is made again here from its formula.

# %%
network = classifier.load(images["train"], images["test"])  # the one that the evaluation trained
everything, _ = images["train"].take(np.arange(len(images["train"])))
real = Moments.of(network.features(everything))


def distance(images):
    return frechet_distance(Moments.of(network.features(images)), real)


noisy = np.clip(everything + rng.normal(0, 16, everything.shape), 0, 255).astype(np.uint8)
numbers = {
    "training images, half to half": results["frechet_distance_real"],
    "samples": distance(samples),
    "training images with noise": distance(noisy),
    "grey images": distance(np.full_like(everything, 128)),
}
assert abs(numbers["samples"] / results["frechet_distance"] - 1) < 1e-3
figure, axes = plt.subplots(figsize=(6.6, 2.2), layout="constrained")
axes.barh(list(numbers), list(numbers.values()), color=[GREY, BLUE, RED, RED])
for i, number in enumerate(numbers.values()):
    axes.text(number, i, f" {number:.3g}", va="center")
axes.set(xscale="log", xlabel="Fréchet distance to the training images")
axes.invert_yaxis()
plt.show()
assert numbers["samples"] < 0.08 * numbers["grey images"]

# %% [markdown]
# `report.html` in the run's folder has all of this on one page, with the settings and the hash of
# the weights.
#
# ## Asking for a class
#
#     python main.py --mode=control --config=shapes.py --workdir=runs/shapes \
#         --config.control.task=class --config.control.scale=2

# %%
config.control.task = "class"
config.control.scale = 2.0
config.control.num_variants = 8
control(config, workdir)

asked = json.loads((workdir / "control" / "class" / "results.json").read_text())
with np.load(workdir / "control" / "class" / "results.npz") as arrays:
    print({name: array.shape for name, array in arrays.items()})
plt.figure(figsize=(8, 3), layout="constrained")
plt.imshow(plt.imread(workdir / "control" / "class" / "grid.png"), interpolation="nearest")
plt.axis("off")
plt.show()
print(f"as asked: {asked['classified_as_asked']:.0%}")
assert asked["classified_as_asked"] > 0.9
folder.cleanup()

# %% [markdown]
# For your photographs: `--config.data.data_dir=photographs` with a published config, a GPU, and
# patience; the commands are these. [docs/data.md](../data.md#your-own-images) says what a folder
# may hold, [docs/train.md](../train.md) how runs are stopped, resumed and spread over machines,
# [docs/evaluate.md](../evaluate.md) how a number becomes comparable with the published ones.
