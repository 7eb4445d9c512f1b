# %% [markdown]
# # 4. Probability flow
#
# The way back of [chapter 3](3_sdes.py) draws noise at every step. It need not. There is an ordinary differential equation
# with the same densities $p_t$ at every time (Song et al. 2021, section 4.3):
#
# $$\frac{dx}{dt} = f(x, t) - \tfrac12\, g(t)^2\, \nabla_x \log p_t(x) .$$
#
# It makes a sample a function of its latent, the latent a code of the data, and the likelihood a number that one computes.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

import likelihood
import sampling
import sde_lib
from data.toy import GaussianMixture
from diffusion import probes
from diffusion.noise import recorded_noise

jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner what computes little
plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"
rng = np.random.default_rng(0)
sde = sde_lib.VPSDE()

# %% [markdown]
# ## Why it has the same densities
#
# The density of a diffusion obeys the Fokker-Planck equation. Its second derivative can be written as a first one, since
# $\nabla p = p\, \nabla\log p$:
#
# $$\frac{\partial p_t}{\partial t} = -\nabla\cdot (f p_t) + \tfrac12 g^2\, \Delta p_t
# = -\nabla\cdot \Bigl( \bigl[ f - \tfrac12 g^2\, \nabla\log p_t \bigr]\, p_t \Bigr),$$
#
# and that says that mass is carried by the field in the brackets, without any noise.
#
# For numbers, the field carries them without changing their order. So a point keeps its *rank*: with $F_t$ the distribution
# function of $p_t$, $F_t(x_t)$ is constant along a path, and the flow from $T$ to $\epsilon$ has a closed form,
#
# $$x_\epsilon = F_\epsilon^{-1} \bigl( F_T(x_T) \bigr).$$
#
# The data are a mixture of three Gaussians. `sampling.ode_sampler` solves the equation; below it, the reverse SDE starts from
# the same points.

# %%
W, M, S = np.array([0.3, 0.5, 0.2]), np.array([-1.5, 0.3, 1.6]), np.array([0.2, 0.3, 0.15])


def log_density(x, alpha, sigma):
    """log p_t of one number x."""
    variance = (alpha * S) ** 2 + sigma**2
    parts = -0.5 * ((x - alpha * M) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
    return jax.nn.logsumexp(jnp.log(W) + parts)


def score_fn(x, t):
    return jax.vmap(jax.grad(log_density))(x[:, 0], sde.alpha(t), sde.sigma(t))[:, None]


@jax.jit
def kernel(t):
    return sde.alpha(t), sde.sigma(t)


def distribution(x, t):
    """F_t(x), for numbers x."""
    alpha, sigma = (float(v[0]) for v in kernel(np.float32([t])))
    return norm.cdf((x[:, None] - alpha * M) / np.hypot(alpha * S, sigma)) @ W


fine = np.linspace(-5, 5, 20_001)


def exact_flow(x, end):
    """F_end^{-1}(F_T(x))."""
    return np.interp(distribution(x, sde.T), distribution(fine, end), fine)


RANKS = (np.arange(256) + 0.5) / 256
latents = np.float32(norm.ppf(RANKS))
start = recorded_noise(jnp.asarray(latents)[None, :, None])
FRAMES = 201


@jax.jit
def flow():
    return sampling.ode_sampler(sde, score_fn, start, rtol=1e-5, atol=1e-5, num_frames=FRAMES)


@jax.jit
def reverse_sde(draws):
    few = dataclasses.replace(sde, N=FRAMES - 1)
    return sampling.pc_sampler(
        few,
        score_fn,
        recorded_noise(draws),
        predictor="euler_maruyama",
        corrector="none",
        num_frames=FRAMES,
    )


solution = flow()
draws = np.float32(rng.normal(size=(FRAMES, 256, 1)))
draws[0, :, 0] = latents
noisy = reverse_sde(draws)

times = np.linspace(1, 1e-3, FRAMES, dtype=np.float32)
places = np.linspace(-2.8, 2.8, 200, dtype=np.float32)
density = jax.jit(jax.vmap(jax.vmap(log_density, (None, 0, 0)), (0, None, None)))
p = np.exp(density(places, *kernel(times)))
figure, panels = plt.subplots(
    1, 3, figsize=(12, 3.6), layout="constrained", width_ratios=(1.3, 1.3, 1)
)
for panel, paths, title in zip(
    panels,
    (solution.trajectory, noisy.trajectory),
    ("probability flow", "reverse SDE"),
    strict=False,
):
    panel.imshow(
        p / p.max(0),
        extent=(1, 0, -2.8, 2.8),
        origin="lower",
        aspect="auto",
        cmap="Blues",
        vmax=1.4,
    )
    panel.plot(times, paths[:, 8::16, 0], color=RED, lw=0.8)
    panel.set(xlabel="$t$, from noise to data", ylim=(-2.8, 2.8), title=title)
panels[2].plot(latents, exact_flow(latents, 1e-3), color="k", lw=1, label="same rank")
panels[2].plot(latents[::6], solution.x[::6, 0], "o", ms=4, color=RED, label="flow")
panels[2].set(xlabel="$x_T$", ylabel=r"$x_\epsilon$", title="latent to data")
panels[2].legend(frameon=False)
plt.show()
assert bool(jnp.all(solution.ok))
assert np.all(np.diff(solution.trajectory[:, :, 0], axis=1) > 0)  # in order at all times
rank = distribution(np.float64(solution.x[:, 0]), 1e-3)
print(f"ranks change by {np.abs(rank - distribution(np.float64(latents), 1.0)).max():.1e} at most")
assert np.abs(rank - distribution(np.float64(latents), 1.0)).max() < 2e-3

# %% [markdown]
# ## Accuracy against speed
#
# An equation without noise can be handed to any solver. One with an error estimate chooses its own steps, for each image, so
# that the error of a step stays below $\text{atol} + \text{rtol}\, |x|$; the tolerance is the knob, and the cost is the
# number of evaluations of the score (NFE). Beside it, Euler's method with equal steps, an error of the order of $1/N$. The
# error is the mean distance from the closed form. (Tsit5 is a Runge-Kutta pair of order five; `diffusion.ode.SOLVERS` has more.)

# %%


@functools.partial(jax.jit, static_argnums=0)
def adaptive(tolerance):
    return sampling.ode_sampler(sde, score_fn, start, rtol=tolerance, atol=tolerance)


@functools.partial(jax.jit, static_argnums=0)
def euler(count):
    few = dataclasses.replace(sde, N=count)
    return sampling.pc_sampler(
        few, score_fn, start, predictor="euler_maruyama", corrector="none", probability_flow=True
    )


def error(samples, end):
    return np.mean(np.abs(samples.x[:, 0] - exact_flow(latents, end)))


TOLERANCES, COUNTS = (1e-1, 1e-2, 1e-3), (64, 256, 1024)
runs = [adaptive(tolerance) for tolerance in TOLERANCES] + [solution]  # that had 1e-5
curves = {
    "Euler, equal steps": [(n, error(euler(n), 0.0)) for n in COUNTS],
    "Tsit5, adaptive": [(float(np.mean(run.nfe)), error(run, 1e-3)) for run in runs],
}

figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for (name, curve), color in zip(curves.items(), (GREY, BLUE), strict=True):
    axes.loglog(*zip(*curve, strict=True), "o-", ms=5, color=color, label=name)
axes.set(xlabel="evaluations of the score (NFE)", ylabel="distance from the exact flow")
axes.legend(frameon=False)
plt.show()
for name, curve in curves.items():
    print(f"{name:20}", "  ".join(f"{nfe:.0f}: {error:.1e}" for nfe, error in curve))

last_two = curves["Euler, equal steps"][-2:]
assert 3 < last_two[0][1] / last_two[1][1] < 5  # four times the steps, a quarter of the error
best = min(curves["Tsit5, adaptive"], key=lambda point: point[1])
assert best[0] < 200  # a fifth of Euler's evaluations, and nearer
assert best[1] < last_two[1][1]

# %% [markdown]
# [Chapter 5](5_few_steps.py) has solvers that know more of this equation, and need ten evaluations.
#
# ## Encodings
#
# The flow can be followed either way. From data to noise it gives each point its code, which no encoder was trained for:
# `likelihood.encode`, and back `decode`. The codes depend on the score alone, so any network that has learned it has the same.
#
# Now points of the plane, again with an exact score. Their codes should be a standard normal draw, of which the disc of
# radius $r$ holds the share $1 - e^{-r^2/2}$. We encode 1500 points, decode them again, and decode three such circles too:
# each encloses its share of the data.

# %%
W2, M2, S2 = (
    np.array(v) for v in (GaussianMixture.WEIGHTS, GaussianMixture.MEANS, GaussianMixture.STDS)
)
data = GaussianMixture.draw("train")[0].reshape(-1, 2)


def log_density_2d(x, alpha, sigma):
    """log p_t of one point x [2]: means alpha m, variances alpha^2 s^2 + sigma^2."""
    variance = (alpha * S2) ** 2 + sigma**2
    squares = (x - alpha * M2) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
    return jax.nn.logsumexp(jnp.log(W2) - 0.5 * jnp.sum(squares, 1))


def score_2d(x, t):
    return jax.vmap(jax.grad(log_density_2d))(x, sde.alpha(t), sde.sigma(t))


@jax.jit
def encode(x):
    return likelihood.encode(sde, score_2d, x)


@jax.jit
def decode(z):
    return likelihood.decode(sde, score_2d, z)


x = data[:1500]
codes = np.asarray(encode(x).y)
SHARES = np.array([0.25, 0.6, 0.9])
radii = np.sqrt(-2 * np.log(1 - SHARES))
angle = np.linspace(0, 2 * np.pi, 300)
circles = np.float32(radii[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1))
decoded = np.asarray(decode(np.concatenate([codes, circles.reshape(-1, 2)])).y)
round_trip, rings = decoded[: len(x)], decoded[len(x) :].reshape(circles.shape)

figure, panels = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
colors = plt.get_cmap("hsv")((np.arctan2(codes[:, 1], codes[:, 0]) / (2 * np.pi)) % 1.0) * [
    0.85,
    0.8,
    0.85,
    1,
]
for panel, points, curves_, title in zip(
    panels, (codes, x), (circles, rings), ("codes $x_T$", "data $x_0$"), strict=True
):
    panel.scatter(*points.T, s=5, c=colors, linewidths=0)
    for curve in curves_:
        panel.plot(*curve.T, color="k", lw=1)
    half = 3.2 if title.startswith("codes") else 2.6
    panel.set(
        xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[], title=title
    )
plt.show()
print(f"there and back: {np.abs(round_trip - x).max():.1e} at most")
assert np.abs(round_trip - x).max() < 5e-3
inside = [np.mean(np.linalg.norm(codes, axis=1) < r) for r in radii]
print("shares in the circles:", np.round(inside, 3), "expected", SHARES)
assert np.abs(inside - SHARES).max() < 0.04

# %% [markdown]
# The colour is the angle of the code. Neighbours stay neighbours; a straight way between two codes is a smooth way between
# two data.
#
# ## Exact likelihood
#
# A flow stretches volume, and a density pays for it (the change of variables, for small steps):
#
# $$\log p_0(x_0) = \log p_T(x_T) + \int_0^T \nabla\cdot \Bigl[ f - \tfrac12 g^2\, \nabla\log p_t \Bigr] (x_t, t)\; dt .$$
#
# `likelihood.log_likelihood` integrates both together. It takes the divergence along directions $v$ with $\mathbb E\, v v^\top = I$,
# one derivative for each: $\nabla \cdot F = \mathbb E\, v^\top (\nabla F)\, v$. In two dimensions the two axes will do, and it is exact.
# So the density of the data comes from solving an equation at every point, and can be held against the mixture's.
#
# One error is left, and we can say which: the latent's density is the prior's, $\mathcal N(0, I)$, and should be that of $p_T$. With
# the exact $\log p_T$ in its place, the difference is the solver's alone.

# %%
CELLS, HALF = 40, 2.6
side = np.linspace(-HALF, HALF, CELLS, dtype=np.float32)
grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
log_p = jax.jit(jax.vmap(log_density_2d, (0, None, None)))


@jax.jit
def by_flow(x, v):
    return likelihood.log_likelihood(sde, score_2d, x, v)


TWO = np.float32([[-1.2, 0.3], [0.5, 0.4]])  # for the next picture
result = by_flow(np.concatenate([grid, TWO]), probes.exact(np.arange(len(grid) + 2), (2,)))
of_two = np.asarray(result.logp)[-2:]
result = jax.tree.map(lambda values: values[:-2], result)
exact = np.asarray(log_p(grid, *(v[0] for v in kernel(np.float32([sde.training_eps])))))
of_prior = np.asarray(result.logp) - exact
true_end = np.asarray(log_p(result.z, *(v[0] for v in kernel(np.float32([sde.T])))))
of_solver = of_prior - np.asarray(sde.prior_logp(result.z)) + true_end

figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
options = {"extent": (-HALF, HALF) * 2, "origin": "lower"}
for panel, values, title in zip(
    panels, (exact, result.logp), ("$p$, closed form", "$p$, by the flow"), strict=False
):
    panel.imshow(np.exp(values).reshape(CELLS, CELLS), cmap="Blues", **options)
    panel.set(xticks=[], yticks=[], title=title)
image = panels[2].imshow(
    of_prior.reshape(CELLS, CELLS), cmap="RdBu", vmin=-0.03, vmax=0.03, **options
)
panels[2].set(xticks=[], yticks=[], title=r"difference of $\log p$")
figure.colorbar(image, ax=panels[2])
plt.show()
print(
    f"difference: {np.abs(of_prior).max():.4f} nats at most; without the prior's error {np.abs(of_solver).max():.5f}"
)
assert np.abs(of_prior).max() < 0.06
assert np.abs(of_solver).max() < 4e-3

# %% [markdown]
# **Random directions.** An image has thousands of axes, so there $v$ is random, one for the whole path, of entries $\pm 1$
# (Skilling and Hutchinson). The likelihood becomes an estimate without bias, whose spread the next picture shows for two
# points. In the plane there are two such directions but for the sign, so an estimate has one of two values, with the exact
# one in the middle; at the centre of a Gaussian (blue) the field has no mixed derivatives, and both are exact.

# %%
many = np.repeat(TWO, 300, 0)
v = probes.rademacher(jax.random.split(jax.random.key(0), len(many)), (2,))
estimates = np.asarray(by_flow(many, v).logp).reshape(2, 300)

figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
for estimate, value, color in zip(estimates, of_two, (BLUE, RED), strict=True):
    axes.hist(estimate, 40, color=color, alpha=0.5)
    axes.axvline(value, color=color, lw=2)
    standard_error = estimate.std() / np.sqrt(len(estimate))
    assert abs(estimate.mean() - value) < 4 * standard_error + 1e-3
axes.set(xlabel=r"estimates of $\log p(x)$, with one direction each; lines: exact", yticks=[])
plt.show()

# %% [markdown]
# In bits per dimension, for images of integer levels, it is `likelihood.bits_per_dim`; `--mode=eval` measures it over a test
# set ([docs/evaluate.md](../evaluate.md)). Next: [few steps](5_few_steps.py).
