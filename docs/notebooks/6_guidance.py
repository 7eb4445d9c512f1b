# %% [markdown]
# # 6. Guidance
#
# A score is a prior, and one can ask it for something while it samples: for a class, by a
# classifier or without one, or for what a sentence says. Guidance is a function from score to score;
# the sampler does not notice. The prior of this chapter is a mixture of Gaussians, so that beside
# every answer stands the exact one. Known pixels and measurements are
# [the next chapter](7_inverse_problems.py).

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import controllable
import losses
import models
import sde_lib
from data.captions import END, VOCABULARY, tokens
from data.toy import GaussianMixture
from diffusion import few_steps, grids
from diffusion.noise import image_noise
from models.clip import TextTower, on_sphere

jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner what computes little
plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"
COLOURS = [BLUE, RED, GREEN, "#e09f3e"]
sde = sde_lib.VPSDE()


def noise_of(count, shape, seed=0):
    """Draws of `count` images, each from its own key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))
    return image_noise(keys, shape)


def draw(score_fn, noise, steps=30):
    """Samples by DPM-Solver++ for the reverse SDE, chapter 5's method of few steps with noise."""
    times = grids.time_grid(sde, "log_snr", steps)
    return few_steps.dpm_solver_pp(sde, score_fn, noise, times, stochastic=True).x


# %% [markdown]
# ## Classes: Bayes' rule for scores
#
# The logarithm turns Bayes' rule into a sum, and the gradient removes the constant:
#
# $$\nabla_x \log p_t(x \mid y) = \nabla_x \log p_t(x) +
# w\, \nabla_x \log p_t(y \mid x), \qquad w = 1.$$
#
# So a *classifier of noisy points*, $p_t(y \mid x)$, steers a score that knows of no classes: that is
# `controllable.guided`. For a mixture it is exact, the share of each Gaussian in the density at $x$,
# and so is what must come out, the score of the Gaussian that was asked for.

# %%
weights, means, stds = (
    jnp.array(v) for v in (GaussianMixture.WEIGHTS, GaussianMixture.MEANS, GaussianMixture.STDS)
)


def log_joint(x, t):
    """log p_t(x, y) of one point and all four classes y."""
    variance = (sde.alpha(t) * stds) ** 2 + sde.sigma(t) ** 2
    squares = (x - sde.alpha(t) * means) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
    return jnp.log(weights) - 0.5 * jnp.sum(squares, 1)


score_fn = jax.jit(jax.vmap(jax.grad(lambda x, t: jax.nn.logsumexp(log_joint(x, t)))))
score_of_class = jax.jit(jax.vmap(jax.grad(lambda x, t, y: log_joint(x, t)[y])))
class_log_prob = jax.jit(jax.vmap(lambda x, t: jax.nn.log_softmax(log_joint(x, t))))

side = np.linspace(-2.2, 2.2, 15)
square = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
t, y = np.full(len(square), 0.15, np.float32), np.zeros(len(square), np.int32)
log_likelihood = controllable.of_class(class_log_prob, jnp.array(y))  # log p_t(y | x)
guided = jax.jit(controllable.guided(score_fn, log_likelihood))  # s + its gradient
free, steered = np.asarray(score_fn(square, t)), np.asarray(guided(square, t))
assert np.abs(steered - score_of_class(square, t, y)).max() < 1e-4

figure, axes = plt.subplots(1, 3, figsize=(10, 3.9), layout="constrained", sharey=True)
titles = (
    r"$\nabla \log p_t(x)$",
    r"$+\ \nabla \log p_t(y\,|\,x)$",
    r"$=\ \nabla \log p_t(x\,|\,y)$",
)
fine = np.linspace(-2.2, 2.2, 60)
plane = np.stack(np.meshgrid(fine, fine), -1).reshape(-1, 2).astype(np.float32)
logs = np.asarray(jax.jit(jax.vmap(log_joint, (0, None)))(plane, 0.15))
shades = np.exp(logs).sum(1), np.exp(logs[:, 0]) / np.exp(logs).sum(1), np.exp(logs[:, 0])
for axis, field, title, shade in zip(
    axes, (free, steered - free, steered), titles, shades, strict=True
):
    axis.contourf(fine, fine, shade.reshape(60, 60), levels=8, cmap="Blues", alpha=0.6)
    axis.quiver(*square.T, *field.T, scale=100, width=0.004)
    axis.set(title=title, aspect="equal", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Classifier-free guidance, and its scale
#
# A network that is told the class in most of its training, and in the rest is not, has both
# scores, and needs no classifier:
#
# $$s(x) + w\,\bigl(s(x \mid y) - s(x)\bigr).$$
#
# By Bayes' rule the difference is $\nabla_x \log p_t(y \mid x)$, so with exact scores this is the
# same field, which is checked first. $w = 0$ forgets the class, $w = 1$ is the class, and $w > 1$
# exaggerates it: fewer points look like another class, and they crowd.

# %%
COUNT = 2000
asked = jnp.arange(COUNT) % 4
plane_noise = noise_of(COUNT, (2,))


def classifier_free(w):
    return controllable.classifier_free(score_fn, lambda x, t: score_of_class(x, t, asked), w)


@jax.jit
def both_ways(x):
    t = jnp.full(COUNT, 0.4)
    by_classifier = controllable.guided(score_fn, controllable.of_class(class_log_prob, asked), 2.5)
    return classifier_free(2.5)(x, t), by_classifier(x, t)


free, by_classifier = map(np.asarray, both_ways(plane_noise(7)))
assert np.abs(free - by_classifier).max() < 1e-3


@jax.jit
def taken_for(x):
    """The likeliest class of clean points."""
    return jnp.argmax(class_log_prob(x, jnp.full(len(x), 1e-3)), 1)


scaled = jax.jit(lambda w: draw(classifier_free(w), plane_noise))
figure, axes = plt.subplots(1, 3, figsize=(10, 3.9), layout="constrained", sharey=True)
as_asked, spread = {}, {}
for axis, w in zip(axes, (0.0, 1.0, 3.0), strict=True):
    x = np.asarray(scaled(w))
    as_asked[w] = float(np.mean(taken_for(x) == np.asarray(asked)))
    spread[w] = float(np.mean([np.std(x[k::4], 0) for k in range(4)]))
    for k in range(4):
        axis.plot(*x[k::4].T, ".", ms=2, alpha=0.6, color=COLOURS[k])
    axis.set(
        title=f"w = {w:g}: {as_asked[w]:.1%} as asked",
        xlim=(-2.4, 2.4),
        ylim=(-2.4, 2.4),
        aspect="equal",
    )
plt.show()

truth, label = GaussianMixture.place(np.random.default_rng(0).uniform(size=(COUNT * 10, 4)))
of_data = np.array(
    [np.mean(np.asarray(taken_for(truth))[label == k] == k) for k in range(4)]
).mean()
assert abs(as_asked[0.0] - 0.25) < 0.05
assert abs(as_asked[1.0] - of_data) < 0.02  # the data's own overlap
assert as_asked[3.0] > 0.99
assert spread[3.0] < spread[1.0] < spread[0.0]

# %% [markdown]
# ## Text, in the plane
#
# A CLIP has two towers, for images and for sentences, onto one sphere. It is trained to find, in a
# batch, each image's sentence and each sentence's images. At the minimum its similarity is, up to
# a constant,
#
# $$k\,\langle I(x, t), T(y)\rangle = \log \frac{p_t(x \mid y)}{p_t(x)} =
# \log p_t(y \mid x) - \log p(y),$$
#
# so its gradient is the one that guidance wants. This one is a toy: its images are points, and it
# has read twelve sentences, three for each class. The text tower is the project's (a transformer
# over bytes), and so is the loss. We train it on noisy points, at all times.

# %%
NAMES = ("left", "upper", "right", "lower")
SENTENCES = ("a point on the {} side", "the {} cloud", "{}")
captions = jnp.stack([tokens(form.format(name), 32) for name in NAMES for form in SENTENCES])
images = models.MLP(nf=64, num_res_blocks=1, num_outputs=16)
texts = TextTower(
    embedding_dim=16, width=32, layers=1, heads=4, length=32, vocabulary=VOCABULARY, end=END
)


def image_vectors(parameters, x, t):
    labels = models.continuous_labels(sde, t)
    return on_sphere(images.apply({"params": parameters["image"]}, x, labels))


def clip_loss(parameters, key):
    """The contrastive loss of 256 noisy points, each with one sentence on its class."""
    place, noise, form, time = jax.random.split(key, 4)
    y = jax.random.choice(place, 4, (256,), p=weights)
    x0 = means[y] + stds[y] * jax.random.normal(noise, (256, 2))
    t = jax.random.uniform(time, (256,), minval=1e-3)
    mean, std = sde.marginal_prob(x0, t)
    x = mean + std[:, None] * jax.random.normal(jax.random.fold_in(noise, 1), (256, 2))
    text = texts.apply({"params": parameters["text"]}, captions)
    text = text[3 * y + jax.random.randint(form, (256,), 0, 3)]
    k = jnp.exp(parameters["log_scale"])
    return jnp.mean(losses.contrastive(image_vectors(parameters, x, t), text, k, y))


# The last layer of an MLP begins at zero, which has no direction: some noise gives it one.
rng = np.random.default_rng(0)
parameters = {
    "image": jax.tree.map(
        lambda p: p + np.float32(0.05 * rng.normal(size=p.shape)),
        models.init(images, jax.random.key(0), (2,)),
    ),
    "text": jax.jit(texts.init)(jax.random.key(1), captions)["params"],
    "log_scale": jnp.log(5.0),
}
optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, 400))


@jax.jit
def train(parameters):
    def step(carry, key):
        parameters, state = carry
        loss, gradient = jax.value_and_grad(clip_loss)(parameters, key)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), loss

    keys = jax.random.split(jax.random.key(1), 400)
    (parameters, _), history = jax.lax.scan(step, (parameters, optimizer.init(parameters)), keys)
    return parameters, history


parameters, history = train(parameters)
history = np.asarray(history)
print(f"contrastive loss {history[:20].mean():.2f} -> {history[-50:].mean():.2f}")


def similarity(vectors):
    """k <I(x, t), T(y)> [B] of text vectors [B, 16]: log p_t(y | x) up to a constant, if it is good."""
    k = jnp.exp(parameters["log_scale"])
    return lambda x, t: k * jnp.sum(image_vectors(parameters, x, t) * vectors, -1)


EACH = 500
PROMPTS = ("the left cloud", "a point on the upper side", "right", "the lower cloud")
asked_for = jnp.stack([tokens(prompt, 32) for prompt in PROMPTS])
prompt_vectors = jax.jit(lambda tokens: texts.apply({"params": parameters["text"]}, tokens))(
    asked_for
)


@jax.jit
def by_text(vectors):
    return draw(controllable.guided(score_fn, similarity(vectors)), noise_of(len(vectors), (2,), 3))


figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained", sharey=True)
drawn = np.asarray(by_text(jnp.repeat(prompt_vectors, EACH, 0))).reshape(4, EACH, 2)
for k, (axis, prompt, x) in enumerate(zip(axes, PROMPTS, drawn, strict=True)):
    share = float(np.mean(taken_for(x) == k))
    axis.plot(*truth[:1500].T, ".", ms=1.5, color="#cccccc")
    axis.plot(*x.T, ".", ms=2.5, color=COLOURS[k])
    axis.set(title=f"“{prompt}”\n{share:.0%}", aspect="equal", xticks=[], yticks=[])
    assert share > 0.8, prompt
plt.show()

# %% [markdown]
# Grey are the data, coloured what the sentence gave, and how much of it is of the class that was
# meant. Last, the claim itself: the gradient of the similarity beside the exact
# $\nabla_x \log p_t(y \mid x)$, for noisy data at $t = 0.3$ and the first sentence.

# %%
COUNT = 1000
left = jnp.repeat(prompt_vectors[:1], COUNT, 0)


@jax.jit
def gradients(x):
    t = jnp.full(COUNT, 0.3)
    x = sde.alpha(t)[:, None] * x + sde.sigma(t)[:, None] * noise_of(COUNT, (2,), 4)(0)
    learned = jax.grad(lambda x: jnp.sum(similarity(left)(x, t)))(x)
    return x, learned, jax.grad(lambda x: jnp.sum(class_log_prob(x, t)[:, 0]))(x)


x, learned, exact = map(np.asarray, gradients(truth[:COUNT].astype(np.float32)))
cosine = np.sum(learned * exact) / np.linalg.norm(learned) / np.linalg.norm(exact)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained", sharey=True)
titles = (r"of $k\,\langle I, T\rangle$, learned", r"of $\log p_t(y\,|\,x)$, exact")
for axis, field, title in zip(axes, (learned, exact), titles, strict=True):
    axis.quiver(*x[::4].T, *field[::4].T, color=BLUE, angles="xy", scale=30, width=0.005)
    axis.set(title=f"gradient {title}", aspect="equal", xticks=[], yticks=[])
plt.show()
print(f"cosine of the angle between the two fields: {cosine:.3f}")
assert cosine > 0.9

# %% [markdown]
# In a run these are `--mode=control` with `--config.control.task=class` or `prompt`: for pictures, by
# a classifier, without one, or by a CLIP, one that the project trains or one from elsewhere.
# [docs/control.md](../control.md) shows each, [docs/controllable.md](../controllable.md) has the
# equations. Next: [inverse problems](7_inverse_problems.py).
