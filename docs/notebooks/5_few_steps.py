# %% [markdown]
# # 5. Few steps
#
# A sampler is a numerical method, and its cost is the number of evaluations of the score (NFE).
# The predictor-corrector sampler of chapter 3 spends a thousand. Here the same images cost ten:
# what is known of the probability flow is integrated exactly, and only the rest is approximated,
# as well as its smoothness allows.
#
# The score of this chapter is exact: the data are a mixture of Gaussians. So every error on this
# page is the sampler's.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sampling
import sde_lib
from data.toy import GaussianMixture
from diffusion import few_steps, grids
from diffusion.noise import recorded_noise
from diffusion.trajectory import denoised

jax.config.update("jax_enable_x64", True)  # to see small errors
jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner what computes little
plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"

sde = sde_lib.VPSDE()
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


score_fn = score_of(sde)

# %% [markdown]
# ## One integral
#
# Write $D(x, t) = \mathbb E[x_0 \mid x_t = x]$, which the score gives by Tweedie's formula, and
# measure time by $\lambda = \log(\alpha/\sigma)$, which grows from noise to data. The probability
# flow is then
#
# $$\frac{d}{d\lambda}\,\frac{x}{\sigma} = e^{\lambda}\, D(x, \lambda)
# \qquad\Longrightarrow\qquad
# x_s = \frac{\sigma_s}{\sigma_t}\, x_t +
# \sigma_s \int_{\lambda_t}^{\lambda_s} e^{\lambda}\, D(x_\lambda, \lambda)\, d\lambda .$$
#
# Nothing is approximated yet. $D$ is the only unknown, and it is a tame function of $\lambda$: a
# guess of the image, that is the mean of the data at first and the image itself at last. We follow
# one point very accurately and look at it.

# %%
one = recorded_noise(jnp.array([[[0.9, -0.4]]]))  # the latent z of x_T = z
fine = grids.time_grid(sde, "log_snr", 400)


@jax.jit
def followed():
    """The point [401, 2] at all times, and D there."""
    path = few_steps.unipc(sde, score_fn, one, fine, denoise=False, num_frames=401)
    x = path.trajectory[:, 0]
    return x, jax.vmap(lambda x, t: denoised(sde, score_fn, x[None], t)[0])(x, jnp.array(fine))


(x, guess), level = map(np.asarray, followed()), grids.levels(sde, fine)

# The integral by the trapezium rule, from the first time to each:
slope = np.exp(level.lam)[:, None] * guess
area = np.cumsum(0.5 * (slope[1:] + slope[:-1]) * np.diff(level.lam)[:, None], 0)
by_formula = level.sigma[1:, None] * (x[0] / level.sigma[0] + area)
assert np.abs(by_formula - x[1:]).max() < 1e-3

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
coarse = slice(None, None, 50)  # 8 steps
for k, colour in enumerate((BLUE, RED)):
    left.plot(fine, guess[:, k], color=colour, label=f"$D$, coordinate {k + 1}")
    left.plot(fine[coarse], guess[coarse, k], "o", color=colour, ms=4)
    right.plot(level.lam, guess[:, k], color=colour)
    right.step(level.lam[coarse], guess[coarse, k], where="post", color=colour, lw=0.9, ls="--")
    right.plot(level.lam[coarse], guess[coarse, k], "o", color=colour, ms=4)
left.invert_xaxis()
left.set(xlabel="time $t$, from noise to data", title="in $t$: all at once, at the end")
right.set(
    xlabel=r"$\lambda = \log(\alpha/\sigma)$",
    title=r"in $\lambda$: smooth; dashed: what DDIM takes it for",
)
left.legend(frameon=False)
plt.show()

# %% [markdown]
# ## DDIM: the guess is held
#
# DDIM holds $D$ at its value at the start of the step. Then $\sigma_s \int e^\lambda d\lambda =
# \alpha_s (1 - e^{-h})$ with $h = \lambda_s - \lambda_t$, and
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\, x_t + \alpha_s\,(1 - e^{-h})\, D(x_t, t).$$
#
# Everything better than DDIM is a better $D$ inside the step: DPM-Solver++ draws a line (2M) or a
# parabola (3M) through the last two or three guesses, which cost nothing more; UniPC corrects,
# with the next guess, the step that led to it.

# %%
z = jax.random.normal(jax.random.key(0), (64, 2))
noise = recorded_noise(z[None])
t, s = 0.6, 0.4
two = grids.levels(sde, np.array([t, s]))


@jax.jit
def both_ways():
    D = denoised(sde, score_fn, z, t)
    carry, gain = two.sigma[1] / two.sigma[0], two.alpha[1] * (1 - np.exp(two.lam[0] - two.lam[1]))
    by_hand = carry * z + gain * D
    return by_hand, few_steps.ddim(sde, score_fn, noise, np.array([t, s]), denoise=False).x


by_hand, project = map(np.asarray, both_ways())
assert np.abs(by_hand - project).max() < 1e-12

# %% [markdown]
# ## Orders are slopes
#
# If $D$ is matched by a polynomial of degree $p - 1$, the error of a step is $O(h^{p+1})$ and that
# of all steps together $O(h^p)$: twice as many steps divide it by $2^p$. On logarithmic axes an
# order is a slope. We take 64 latents from $t = 1$ to $t = 0.3$, against a Runge-Kutta solution
# with adaptive steps and tolerances of $10^{-9}$.

# %%
END = 0.3
METHODS = {  # name: the solver, evaluations a step, order
    "DDIM": (few_steps.ddim, {}, 1, 1),
    "EDM's Heun": (few_steps.edm, {}, 2, 2),
    "DPM-Solver++ 2M": (few_steps.dpm_solver_pp, {"order": 2}, 1, 2),
    "UniPC 3": (few_steps.unipc, {"order": 3}, 1, 4),
}


def exact_flow(end, noise):
    return sampling.ode_sampler(sde, score_fn, noise, eps=end, rtol=1e-9, atol=1e-9).x


def deviations(steps, end, exact):
    """The root mean square distance of each method's points from the exact ones."""

    @jax.jit
    def run():
        times = grids.time_grid(sde, "log_snr", steps, end)
        return [
            jnp.sqrt(
                jnp.mean(
                    (solver(sde, score_fn, noise, times, denoise=False, **options).x - exact) ** 2
                )
            )
            for solver, options, _, _ in METHODS.values()
        ]

    return [float(v) for v in run()]


exact = jax.jit(lambda: exact_flow(END, noise))()
STEPS = np.array([8, 16, 48, 96])
errors = np.array([deviations(int(n), END, exact) for n in STEPS])  # [steps, methods]

figure, axes = plt.subplots(figsize=(6.6, 4.2), layout="constrained")
print("method            order  measured")
for (name, (_, _, cost, order)), error in zip(METHODS.items(), errors.T, strict=True):
    line = axes.loglog(cost * STEPS, error, "o-", ms=4, label=f"{name}: order {order}")[0]
    axes.loglog(
        cost * STEPS[-2:],
        error[-1] * (STEPS[-1] / STEPS[-2:]) ** order,
        ":",
        color=line.get_color(),
        lw=3,
    )
    measured = np.log2(error[-2] / error[-1])
    print(f"{name:18}{order:5}{measured:10.2f}")
    assert abs(measured - order) < 0.3, name
axes.set(xlabel="evaluations of the score (NFE)", ylabel="distance from the exact flow")
axes.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# The dotted lines have slope $-p$. (UniPC's corrector adds one order to its predictor's three;
# Heun asks twice a step, which moves it to the right.) Order is what happens with *many* steps.
# With few, the constant matters:

# %%
few = {name: errors[0, i] for i, name in enumerate(METHODS)}  # 8 steps
assert few["UniPC 3"] < few["DPM-Solver++ 2M"] < few["DDIM"]

# %% [markdown]
# ## What ten evaluations buy
#
# To the data now, with the last step that removes the remaining noise ($D$ itself, one evaluation
# more). Beside the solvers of the flow stands Euler-Maruyama on the reverse SDE. Behind the samples
# is the density of the data, whose logarithm has the mean $\mathbb E \log p$ over the samples: too
# small where they are scattered, too large where they crowd.

# %%
plane = recorded_noise(jax.random.normal(jax.random.key(1), (21, 2000, 2)))


def euler_maruyama(nfe):
    fewer = dataclasses.replace(sde, N=nfe)
    return sampling.pc_sampler(fewer, score_fn, plane, predictor="euler_maruyama", corrector="none")


def solver(function, grid, **options):
    return lambda nfe: function(
        sde, score_fn, plane, grids.time_grid(sde, grid, nfe - 1), **options
    )


ROWS = {
    "Euler-Maruyama": euler_maruyama,
    "DDIM": solver(few_steps.ddim, "uniform"),
    "DPM-Solver++ 2M": solver(few_steps.dpm_solver_pp, "log_snr"),
    "UniPC 3": solver(few_steps.unipc, "log_snr"),
}
side = np.linspace(-2.6, 2.6, 80)
square = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)


@jax.jit
def log_density(x):
    """log p of the data, the mixture without noise."""
    _, _, logs = parts_of(sde, x, jnp.zeros(len(x)))
    return jax.nn.logsumexp(logs, 1) - jnp.log(2 * jnp.pi)


density = np.exp(log_density(square)).reshape(80, 80)
data, _ = GaussianMixture.place(np.random.default_rng(0).uniform(size=(50_000, 4)))
of_data = float(np.mean(log_density(data)))

figure, axes = plt.subplots(3, 4, figsize=(10, 7.6), layout="constrained", sharex=True, sharey=True)
mean_log = {}
for row, nfe in zip(axes, (5, 10, 20), strict=True):
    for axis, (name, draw) in zip(row, ROWS.items(), strict=True):
        samples = jax.jit(draw, static_argnums=0)(nfe)
        assert samples.nfe == nfe
        x = np.asarray(samples.x)
        mean_log[name, nfe] = float(np.mean(log_density(x)))
        axis.contourf(side, side, density, levels=6, cmap="Greys", alpha=0.5)
        axis.plot(*x.T, ".", ms=1.2, alpha=0.6, color=BLUE)
        axis.set_title(f"{name}: {mean_log[name, nfe]:.2f}", fontsize=10)
    row[0].set_ylabel(f"{nfe} NFE")
axes[0, 0].set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
figure.suptitle(rf"$\mathbb{{E}}\,\log p$ of the samples; of the data it is {of_data:.2f}")
plt.show()

off = {key: abs(value - of_data) for key, value in mean_log.items()}
assert max(off["UniPC 3", 10], off["UniPC 3", 20], off["DPM-Solver++ 2M", 20]) < 0.15
assert off["UniPC 3", 10] < off["Euler-Maruyama", 20] < off["Euler-Maruyama", 10]
assert off["UniPC 3", 5] > off["DPM-Solver++ 2M", 5]

# %% [markdown]
# DDIM at few steps pulls everything inward: early guesses are near the mean, and are held too
# long. Parabolas repair that from ten evaluations on, and overshoot with five: extrapolation wants
# steps that are not too long.

# %% [markdown]
# ## EDM: where to spend the steps
#
# Karras et al. look at the noise relative to the data, $\sigma/\alpha$, here simply $\sigma$ from
# 80 to 0.002, and place the levels evenly in $\sigma^{1/\rho}$:
#
# $$\sigma_i = \left(\sigma_{\max}^{1/\rho} +
# \tfrac{i}{N-1}\,(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho})\right)^{\rho}.$$
#
# $\rho = 1$ is even in $\sigma$ and wastes nearly all steps on pure noise; $\rho \to \infty$ is
# even in $\log \sigma$, which is $\lambda$. Between them is the least error, and the picture shows
# it for Heun's method.

# %%
edm = sde_lib.EDMSDE()
edm_score = score_of(edm)

share = np.linspace(0, 1, 12)
levels = {rho: grids.karras_noise(share, 80.0, 0.002, rho) for rho in (1, 3, 7, 40)}
by_hand = (80 ** (1 / 7) + share * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
assert np.allclose(levels[7], by_hand)

heun = few_steps.METHODS["heun"].solver
finest = grids.karras_noise(np.linspace(0, 1, 600), 80.0, 0.002, 7)
flow = jax.jit(lambda: heun(edm, edm_score, noise, finest).x)()  # 1199 evaluations
rms = {}
for rho, grid in levels.items():
    x = jax.jit(lambda grid=grid: heun(edm, edm_score, noise, grid).x)()
    rms[rho] = float(np.sqrt(np.mean((np.asarray(x) - flow) ** 2)))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for i, rho in enumerate((1, 3, 7, 40)):
    left.plot(levels[rho], np.full(12, i), "|", ms=18, mew=2, color=BLUE)
left.set(xscale="log", yticks=range(4), yticklabels=[rf"$\rho = {rho}$" for rho in (1, 3, 7, 40)])
left.set(xlabel=r"noise level $\sigma$", title="12 noise levels", ylim=(-0.6, 3.6))
right.loglog(list(rms), list(rms.values()), "o-", color=RED)
right.axvline(7, color=GREY, lw=0.8, ls=":")
right.set(
    xlabel=r"$\rho$", ylabel="distance from the exact flow", title="Heun's method, 23 evaluations"
)
plt.show()
print({rho: round(value, 4) for rho, value in rms.items()})
assert rms[7] < 0.2 * rms[1]
assert rms[7] < rms[40]

# %% [markdown]
# ## Noise forgives
#
# All of the above is deterministic: every point of the prior has its image, and an error is never
# taken back. A sampler that draws noise on its way forgets where it came from. For Gaussian data
# $N(m, s^2)$ one can say how much is remembered. Shift the start by 1, keep all draws: the score
# is linear, and the shift at time $t$ is
#
# $$\text{flow: } \sqrt{\frac{v_t}{v_T}}, \qquad
# \text{reverse SDE: } \frac{\operatorname{Cov}(x_t, x_T)}{\operatorname{Var} x_T} =
# \frac{\alpha_T}{\alpha_t}\,\frac{v_t}{v_T},
# \qquad v_t = \alpha_t^2 s^2 + \sigma_t^2 .$$
#
# DDIM's parameter $\eta$ goes from the first ($\eta = 0$) to the second ($\eta = 1$), ancestral
# sampling.

# %%
m, std = 0.5, 0.6


def v(t):
    return (sde.alpha(t) * std) ** 2 + sde.sigma(t) ** 2


def linear_score(x, t):
    return -(x - sde.alpha(t)[:, None] * m) / v(t)[:, None]


grid = grids.time_grid(sde, "log_snr", 200)
draws = jax.random.normal(jax.random.key(4), (201, 1, 1)).repeat(2, 1).at[0, 1].add(1.0)


def memory(eta):
    samples = few_steps.ddim(
        sde, linear_score, recorded_noise(draws), grid, eta=eta, denoise=False, num_frames=201
    )
    return samples.trajectory[:, 1, 0] - samples.trajectory[:, 0, 0]


remembered = {eta: np.asarray(jax.jit(lambda eta=eta: memory(eta))()) for eta in (0.0, 0.5, 1.0)}
t = jnp.array(grid)
flow = jnp.sqrt(v(t) / v(t[0]))
ancestral = sde.alpha(t[0]) / sde.alpha(t) * v(t) / v(t[0])

figure, axes = plt.subplots(figsize=(6.6, 3.6), layout="constrained")
for eta, shift in remembered.items():
    axes.plot(grid, shift, label=rf"DDIM, $\eta = {eta:g}$")
axes.plot(grid, flow, "k:", lw=2, label="closed forms")
axes.plot(grid, ancestral, "k:", lw=2)
axes.set(xlabel="time $t$, from noise to data", ylabel="what is left of a shift of 1 at $T$")
axes.invert_xaxis()
axes.legend(frameon=False)
plt.show()

assert np.abs(remembered[0.0] - flow).max() < 0.01
assert np.abs(remembered[1.0] - ancestral).max() < 0.01
assert remembered[1.0][-1] < 0.01 < 0.5 < remembered[0.0][-1]

# %% [markdown]
# So with an exact score, as here, solve the flow: ten evaluations do. With a trained network,
# whose errors are largest where there is much noise, some noise on the way is worth its steps:
# that is EDM's *churn*, DPM-Solver++ SDE, $\eta > 0$. [docs/samplers.md](../samplers.md) has the
# tables for a network. In a run all of this is a matter of two options,
# `--config.sampling.method=unipc_3 --config.sampling.num_steps=9`. Next: [guidance](6_guidance.py).
