# %% [markdown]
# # 8. Your own SDE, sampler and objective
#
# Everything so far was composed of three nouns: an SDE, a score function, a step. Here each is
# added, in about ten lines, and then all three go into a training run by their names. Nothing of
# the project is changed for that: its tables are dictionaries.

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
import dataclasses
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import losses
import sampling
import sde_lib
from configs.toy import mixture_dsm_vp
from data.toy import GaussianMixture
from diffusion import few_steps, grids
from diffusion.noise import image_noise
from generation import score_field
from runtime import experiment
from runtime.workdir import load_weights
from sde_lib import batch_mul
from training.loop import train

jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner what computes little
plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"

# %% [markdown]
# ## An SDE in two formulas
#
# An SDE with a drift linear in $x$ is known by the marginals that it gives, $x_t \mid x_0 \sim
# \mathcal N(\alpha(t)\, x_0,\ \sigma(t)^2 I)$:
#
# $$f(x, t) = \frac{d \log \alpha}{dt}\, x, \qquad
# g(t)^2 = \frac{d\sigma^2}{dt} - 2\, \frac{d \log \alpha}{dt}\, \sigma^2 .$$
#
# So $\log \alpha$ and $\sigma$ suffice; the rest is differentiated by JAX. We take the straight
# paths of *rectified flow*, $x_t = (1 - t)\, x_0 + t\, z$, which end a little before $t = 1$,
# where the data would be gone.

# %%


@dataclasses.dataclass(frozen=True)
class Straight(sde_lib.SDE):
    """x_t = (1 - t) x_0 + t z."""

    @property
    def T(self):
        return 0.999

    def log_alpha(self, t):
        return jnp.log1p(-t)

    def sigma(self, t):
        return t


sde_lib.SDES["straight"] = Straight  # its name in configs

straight, vp = Straight(), sde_lib.VPSDE()
t = np.linspace(0.01, 0.99, 200, dtype=np.float32)
x = np.ones((200, 1), np.float32)
assert np.allclose(straight.drift(x, t)[:, 0], -1 / (1 - t), rtol=1e-5)  # by hand: -x / (1 - t)
assert np.allclose(
    straight.diffusion(t) ** 2, 2 * t / (1 - t), rtol=1e-5
)  # and g^2 = 2 t / (1 - t)

# %% [markdown]
# Everything that takes an SDE now takes this one. With the exact score of a mixture we draw its
# probability flow beside that of VP (the lines between $x_0$ and $z$ are straight; the flow, which
# may not cross itself, bends), and hold the samples against the data by the mean of $\log p$.

# %%
weights, means, stds = (
    jnp.array(v) for v in (GaussianMixture.WEIGHTS, GaussianMixture.MEANS, GaussianMixture.STDS)
)


def parts_of(sde, x, t):
    """Of the diffused Gaussians at x [B, 2], t [B]: alpha m - x and variance, and log w_k N."""
    alpha, sigma = (v[:, None, None] for v in (sde.alpha(t), sde.sigma(t)))
    away, variance = alpha * means - x[:, None], (alpha * stds) ** 2 + sigma**2
    logs = jnp.log(weights) - 0.5 * jnp.sum(away**2 / variance + jnp.log(variance), -1)
    return away, variance, logs


def score_of(sde):
    """The exact score: the mean of (alpha m_k - x) / variance over the parts x may belong to."""

    def score(x, t):
        away, variance, logs = parts_of(sde, x, t)
        return jnp.sum(jax.nn.softmax(logs)[..., None] * away / variance, 1)

    return score


@jax.jit
def log_density(x):
    """log p of the data."""
    logs = parts_of(vp, x, jnp.zeros(len(x)))[2]
    return jax.nn.logsumexp(logs, 1) - jnp.log(2 * jnp.pi)


keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(2000))
noise = image_noise(keys, (2,))


@functools.partial(jax.jit, static_argnums=0)
def flow(sde):
    """Points on their way by 40 steps of DPM-Solver++, [41, 2000, 2]."""
    times = grids.time_grid(sde, "log_snr", 40)
    samples = few_steps.dpm_solver_pp(sde, score_of(sde), noise, times, num_frames=41)
    return samples.trajectory


data, _ = GaussianMixture.place(np.random.default_rng(1).uniform(size=(20_000, 4)))
of_data = np.mean(log_density(data))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, (name, sde) in zip(axes, (("VP", vp), ("straight", straight)), strict=True):
    trajectory = np.asarray(flow(sde))
    of_samples = np.mean(log_density(trajectory[-1]))
    axis.plot(grids.time_grid(sde, "log_snr", 40), trajectory[:, :60, 0], color=BLUE, lw=0.6)
    axis.set(title=f"{name}: mean log p {of_samples:.2f}", xlabel="time, from noise to data")
    axis.invert_xaxis()
    assert abs(of_samples - of_data) < 0.1
axes[0].set_ylabel("first coordinate")
figure.suptitle(f"of the data it is {of_data:.2f}", fontsize=10)
plt.show()

# %% [markdown]
# ## A step of your own
#
# There is not one reverse SDE but a family. For any $\eta \ge 0$,
#
# $$dx = \Bigl[f - \tfrac{1 + \eta^2}{2}\, g^2\, s\Bigr] dt + \eta\, g\, d\bar w$$
#
# has the same marginals $p_t$: $\eta = 0$ is the probability flow, $\eta = 1$ the SDE of Anderson,
# $\eta = 2$ a wilder one. A *predictor* is one step of such a thing; here is its Euler-Maruyama.

# %%


def family(eta):
    """The predictor of the reverse SDE with noise eta g."""

    def predictor(sde, score_fn, x, t, z, probability_flow=False):
        dt = sde.T / sde.N
        drift, g = sde.sde(x, t)
        drift = drift - batch_mul(0.5 * (1 + eta**2) * g**2, score_fn(x, t))
        x_mean = x - drift * dt
        return x_mean + batch_mul(eta * g * jnp.sqrt(dt), z), x_mean

    return predictor


ETAS = (0.0, 1.0, 2.0)
sampling.PREDICTORS |= {f"eta_{eta:g}": family(eta) for eta in ETAS}  # their names

STEPS = 500
process = dataclasses.replace(vp, N=STEPS)


def on_the_way(eta):
    """2000 samples at 101 times, [101, 2000, 2]."""
    predictor = f"eta_{eta:g}"
    samples = sampling.pc_sampler(
        process, score_of(vp), noise, predictor=predictor, corrector="none", num_frames=101
    )
    return samples.trajectory


runs = {eta: np.asarray(jax.jit(on_the_way, static_argnums=0)(eta)) for eta in ETAS}
moments = {eta: np.mean(np.sum(x**2, -1), 1) for eta, x in runs.items()}
time = np.linspace(1.0, 0.0, 101, dtype=np.float32)
of_data = float(np.mean(np.sum(data**2, 1)))
exact = np.asarray(vp.alpha(time) ** 2 * of_data + 2 * vp.sigma(time) ** 2)

figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
for (eta, x), axis, colour in zip(runs.items(), axes[1:], (BLUE, RED, GREEN), strict=True):
    axes[0].plot(time, moments[eta], color=colour, label=rf"$\eta = {eta:g}$")
    for i in range(3):
        axis.plot(time, x[:, i, 0], color=colour, lw=0.8)
    axis.plot(np.zeros(300), x[-1, :300, 0], "_", color=GREY, alpha=0.5)
    axis.set(title=rf"$\eta = {eta:g}$", xlabel="time $t$", ylim=(-3, 3))
    axis.invert_xaxis()
axes[0].plot(time, exact, "k:", lw=2, label="exact")
axes[0].set(xlabel="time $t$", title=r"$\mathbb{E}|x_t|^2$", ylim=(0, 2.4))
axes[0].invert_xaxis()
axes[0].legend(frameon=False)
plt.show()
for eta in ETAS:
    assert np.abs(moments[eta] / exact - 1).max() < 0.1, eta


@jax.jit
def one_step_of_each():
    x, t, z = noise(6), jnp.full(2000, 0.5), noise(7)
    ours, _ = family(1.0)(process, score_of(vp), x, t, z)
    return ours, sampling.euler_maruyama(process, score_of(vp), x, t, z)[0]


ours, theirs = map(np.asarray, one_step_of_each())
assert np.abs(ours - theirs).max() < 1e-5  # eta = 1 is the project's own

# %% [markdown]
# ## An objective of your own
#
# Denoising score matching regresses on the target $-z/\sigma$, whose mean given $x_t$ is the
# score. But its variance explodes where there is little noise. Where the score of the *data* is
# known, $\nabla \log p_0$, as in physics, there is another target with the same mean (De Bortoli
# et al. 2024, *Target score matching*, arXiv:2402.08667):
#
# $$\nabla \log p_t(x) = \mathbb E\Bigl[-\frac{z}{\sigma} \Bigm| x_t = x\Bigr] =
# \mathbb E\Bigl[\frac{\nabla \log p_0(x_0)}{\alpha} \Bigm| x_t = x\Bigr].$$
#
# The second explodes where there is *much* noise. Any average of the two is right as well, and
# with weights $\sigma^2$ and $\alpha^2 s^2$, over $v = \alpha^2 s^2 + \sigma^2$, the target
#
# $$\frac{\alpha s^2\, \nabla \log p_0(x_0) - \sigma z}{v}$$
#
# never explodes; for $\mathcal N(m, s^2)$ it *is* the score, with no variance at all. An objective
# returns the mean squared error in units of the noise:

# %%
S2 = 0.35**2


def score_of_data(x):
    """grad log p_0 at points x [B, 2]."""
    return score_of(vp)(x, jnp.zeros(len(x)))


def both_targets(sde, score_fn, x0, t, z, s2=S2):
    """sigma^2 |s(x_t, t) - (alpha s^2 grad log p_0(x_0) - sigma z) / v|^2 / D."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = batch_mul(alpha, x0) + batch_mul(sigma, z)
    clean = score_of_data(x0.reshape(-1, 2)).reshape(x0.shape)
    target = batch_mul(
        1 / (alpha**2 * s2 + sigma**2), batch_mul(alpha * s2, clean) - batch_mul(sigma, z)
    )
    error = batch_mul(sigma, score_fn(x, t) - target)
    return jnp.mean(error**2, tuple(range(1, x.ndim)))


losses.OBJECTIVES["both_targets"] = losses.ScoreMatching(both_targets)  # its name

# %% [markdown]
# What an objective leaves at the *exact* score is the variance of its target, which the gradients
# of training have to average out. We measure it, for the two pure ones by $s^2 = 0$ (the denoising
# one) and $s^2 \to \infty$.

# %%
TARGETS = {"denoising": 0.0, "target": 1e9, "both": S2}
times = np.geomspace(1e-3, 0.999, 24, dtype=np.float32)
x0 = jnp.asarray(data[:4000], jnp.float32)


@jax.jit
def left_over_at(t):
    """The errors of the exact score at time t, and the project's own of denoising."""
    t, z = jnp.full(len(x0), t), jax.random.normal(jax.random.key(2), x0.shape)
    ours = [jnp.mean(both_targets(vp, score_of(vp), x0, t, z, s2)) for s2 in TARGETS.values()]
    return *ours, jnp.mean(losses.dsm(vp, score_of(vp), x0, t, z))


*ours, of_project = np.array([left_over_at(t) for t in times]).T
left_over = dict(zip(TARGETS, ours, strict=True))
assert np.allclose(left_over["denoising"], of_project, rtol=1e-4)

figure, axes = plt.subplots(figsize=(6.6, 3.4), layout="constrained")
for (name, value), colour in zip(left_over.items(), (BLUE, RED, GREEN), strict=True):
    axes.loglog(times, value, color=colour, label=name)
axes.set(
    xlabel="time $t$, from data to noise",
    ylabel=r"$\sigma^2$ times the variance of the target",
    ylim=(1e-6, 1e3),
)
axes.legend(frameon=False)
plt.show()
assert left_over["target"][0] < 1e-3 < 0.9 < left_over["denoising"][0]
assert left_over["target"][-1] > 10
smaller = np.minimum(left_over["denoising"], left_over["target"])
assert np.all(left_over["both"] < 1.3 * smaller)
assert left_over["both"].max() < 0.5

# %% [markdown]
# ## All three in a run
#
# A config names them, as it names the project's own; `train` is what `--mode=train` calls. From
# the command line the same is one file that imports the project's `main`, fills the tables and
# calls `main.main()`.

# %%
config = mixture_dsm_vp.get_config()
config.training.sde = "straight"
config.training.objective = "both_targets"
config.sampling.method = "pc"
config.sampling.predictor = "eta_1"
config.sampling.num_steps = 100
config.sampling.num_samples = config.sampling.batch_size = 2000
config.training.batch_size = 256
config.training.n_iters = config.training.eval_freq = config.training.snapshot_freq = 800
config.optim.decay_steps = config.training.snapshot_freq_for_preemption = 800
config.training.n_jitted_steps = 100
config.training.loggers = ()
config.eval.bpd_rtol = config.eval.bpd_atol = 1e-3  # for the picture of the density,
score_field.CELLS = 32  # a coarse one
config.model.nf = 64
config.model.num_res_blocks = 2

folder = tempfile.TemporaryDirectory()
workdir = pathlib.Path(folder.name) / "run"
train(config, workdir)

plt.figure(figsize=(12, 3.4), layout="constrained")
plt.imshow(plt.imread(workdir / "field.png"))  # which a training on points ends with
plt.axis("off")
plt.show()

# %%
parts = experiment.build(config)
assert isinstance(parts.sde, Straight)
trained = load_weights(config, parts.module, parts.image_shape, workdir)
learned = parts.score(trained.params)


@jax.jit
def off_and_exact(time):
    t, z = jnp.full(len(x0), time), jax.random.normal(jax.random.key(3), x0.shape)
    x = batch_mul(straight.alpha(t), x0) + batch_mul(straight.sigma(t), z)
    exact = score_of(straight)(x, t)
    return learned(x.reshape(-1, 1, 1, 2), t).reshape(-1, 2) - exact, exact


error = {}
for time in (0.1, 0.3, 0.6):
    off, exact = map(np.asarray, off_and_exact(time))
    error[time] = float(np.sum(off**2) / np.sum(exact**2))
print(
    "share of the score's square that the network misses:",
    {k: f"{v:.1%}" for k, v in error.items()},
)
assert error[0.1] < 0.2  # where the data are nearly bare; a network of zeros would miss 100 %
assert error[0.3] < 0.05
assert error[0.6] < 0.01
folder.cleanup()

# %% [markdown]
# What deserves to stay becomes a line of the table in its file, beside a test that states a fact,
# as the assertions above do: [CONTRIBUTING.md](../../CONTRIBUTING.md) says, for each thing that
# can be added, which file it touches. Next: [your own images](9_your_images.py).
