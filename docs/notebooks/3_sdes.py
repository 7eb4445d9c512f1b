# %% [markdown]
# # 3. Stochastic differential equations
#
# NCSN's levels and DDPM's chain ([chapter 2](2_noise_levels.py)) are two discretisations of one thing (Song et al. 2021):
#
# $$dx = f(x, t)\, dt + g(t)\, dw, \qquad t \in [0, T],$$
#
# data at $t = 0$, noise at $T$. Run backwards, it needs one function that is not known: the score.

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
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

import sampling
import sde_lib
from diffusion.noise import recorded_noise

plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"
rng = np.random.default_rng(0)

# %% [markdown]
# ## Four equations
#
# | | drift $f(x, t)$ | $g(t)$ | from |
# |---|---|---|---|
# | VE | $0$ | $\sqrt{d\sigma^2/dt}$, with $\sigma(t) = \sigma_{\min} (\sigma_{\max} / \sigma_{\min})^t$ | NCSN |
# | VP | $-\tfrac12 \beta(t)\, x$ | $\sqrt{\beta(t)}$, with $\beta(t) = \beta_{\min} + t\, (\beta_{\max} - \beta_{\min})$ | DDPM |
# | sub-VP | $-\tfrac12 \beta(t)\, x$ | $\sqrt{\beta(t)\, (1 - e^{-2 \int_0^t \beta})}$ | its variance is below VP's |
# | $b^t$ | $0$ | $b^t$ | the tutorial's |
#
# The drift is linear in $x$, so noise added to one point stays Gaussian, and the equation is as good as its
# **perturbation kernel**
#
# $$p(x_t | x_0) = \mathcal N\bigl(\alpha(t)\, x_0,\ \sigma(t)^2 I\bigr), \qquad
# f(x, t) = \frac{d \log \alpha}{dt}\, x, \quad g^2 = \frac{d\sigma^2}{dt} - 2\, \frac{d \log\alpha}{dt}\, \sigma^2 .$$
#
# In `sde_lib.py` an SDE *is* its kernel, and $f$ and $g$ follow by differentiation. Three of the four are there; the one of
# Song's tutorial is six lines, and its $g$ comes out as $b^t$. (There $b = 25$; 8 suits data of unit size.)

# %%


@dataclasses.dataclass(frozen=True)
class PowerSDE(sde_lib.SDE):
    """dx = b^t dw, hence sigma(t)^2 = (b^(2 t) - 1) / (2 log b)."""

    b: float = 8.0
    variance_exploding: ClassVar[bool] = True

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def sigma(self, t):
        return jnp.sqrt(jnp.expm1(2 * t * np.log(self.b)) / (2 * np.log(self.b)))


SDES = {
    "VE": sde_lib.VESDE(sigma_min=0.01, sigma_max=5.0),
    "VP": sde_lib.VPSDE(),
    "sub-VP": sde_lib.SubVPSDE(),
    "$8^t$": PowerSDE(),
}
t = np.linspace(0.01, 1, 100, dtype=np.float32)
assert np.allclose(jax.jit(SDES["$8^t$"].diffusion)(t), 8.0**t, rtol=1e-4)

# %% [markdown]
# ## Perturbation kernels
#
# The data of this chapter are numbers, from a mixture of three Gaussians $\sum_k w_k \mathcal N(m_k, s_k^2)$, so that $p_t$ can
# be drawn as a picture: at time $t$ the means are $\alpha m_k$ and the variances $\alpha^2 s_k^2 + \sigma^2$.
#
# We run each equation forwards by Euler's method with noise (Euler-Maruyama),
#
# $$x_{t + \Delta t} = x_t + f(x_t, t)\, \Delta t + g(t) \sqrt{\Delta t}\; z,$$
#
# from $x_0 = 1$: the walkers' mean must be $\alpha(t)$ and their deviation $\sigma(t)$.

# %%
W, M, S = np.array([0.3, 0.5, 0.2]), np.array([-1.5, 0.3, 1.6]), np.array([0.2, 0.3, 0.15])


def log_density(x, alpha, sigma):
    """log p_t of one number x."""
    variance = (alpha * S) ** 2 + sigma**2
    parts = -0.5 * ((x - alpha * M) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
    return jax.nn.logsumexp(jnp.log(W) + parts)


def exact_score(sde):
    """The score function (x [B, 1], t [B]) -> [B, 1] of p_t."""
    score = jax.vmap(jax.grad(log_density))
    return lambda x, t: score(x[:, 0], sde.alpha(t), sde.sigma(t))[:, None]


STEPS, WALKERS = 400, 2000
draws = np.float32(rng.normal(size=(STEPS, WALKERS, 1)))


@functools.partial(jax.jit, static_argnums=0)
def forward(sde, x, draws):
    """Paths [STEPS + 1, B] from x [B, 1]."""
    dt = sde.T / STEPS

    def step(x, at):
        t, z = at
        f, g = sde.sde(x, jnp.full(len(x), t))
        x = x + f * dt + (g * jnp.sqrt(dt))[:, None] * z
        return x, x[:, 0]

    times = jnp.maximum(jnp.arange(STEPS) * dt, 1e-4)
    return jnp.concatenate([x.T, jax.lax.scan(step, x, (times, draws))[1]])


@functools.partial(jax.jit, static_argnums=0)
def kernel(sde, t):
    return sde.alpha(t), sde.sigma(t)


@functools.partial(jax.jit, static_argnums=0)
def densities(sde, x, t):
    """p_t(x), [x, t]."""
    alpha, sigma = kernel(sde, t)
    of_times = jax.vmap(log_density, (None, 0, 0))
    return jnp.exp(jax.vmap(of_times, (0, None, None))(x, alpha, sigma))


def show_density(panel, sde, half):
    """p_t as a picture, each column divided by its maximum."""
    t = np.linspace(1e-3, 1, 160, dtype=np.float32)
    p = np.asarray(densities(sde, np.linspace(-half, half, 200, dtype=np.float32), t))
    panel.imshow(
        p / p.max(0),
        extent=(0, 1, -half, half),
        origin="lower",
        aspect="auto",
        cmap="Blues",
        vmax=1.4,
    )
    panel.set(ylim=(-half, half), xlim=(0, 1))


def height(sde):
    return 2.6 if sde.prior_std <= 1 else 2.2 * sde.prior_std


def data(count):
    k = rng.choice(3, count, p=W)
    return np.float32(M[k] + S[k] * rng.normal(size=count))


times = np.linspace(0, 1, STEPS + 1, dtype=np.float32)
figure, panels = plt.subplots(
    2, 4, figsize=(12, 5), layout="constrained", sharex=True, height_ratios=(1.4, 1)
)
for (upper, lower), (name, sde) in zip(panels.T, SDES.items(), strict=True):
    show_density(upper, sde, height(sde))
    walkers = forward(sde, data(WALKERS)[:, None], draws)
    upper.plot(times, walkers[:, :12], color=RED, lw=0.5, alpha=0.8)
    upper.set_title(name)
    alpha, sigma = kernel(sde, times)
    start = 1 + sigma[0] * rng.normal(size=(WALKERS, 1))  # VE has sigma(0) = sigma_min
    paths = np.asarray(forward(sde, np.float32(start), draws))
    assert np.abs(paths.mean(1) - alpha).max() < 0.08 * max(sde.prior_std, 1)
    assert np.abs(paths.std(1) - sigma).max() < 0.06 * max(sde.prior_std, 1)
    lower.plot(times, paths.mean(1), color=BLUE, lw=4, alpha=0.4, label="mean")
    lower.plot(times, paths.std(1), color=RED, lw=4, alpha=0.4, label="deviation")
    lower.plot(times, alpha, "k:", label=r"$\alpha(t)$, $\sigma(t)$")
    lower.plot(times, sigma, "k:")
    lower.set(xlabel="$t$")
panels[1, 0].legend(frameon=False)
plt.show()

# %% [markdown]
# Above: the density and a few walkers, data at the left. Where the variance explodes the data are drowned in noise; VP and
# sub-VP shrink them as well, and end at $\mathcal N(0, 1)$.
#
# ## The way back
#
# Anderson (1982): the process run backwards in time is again a diffusion,
#
# $$dx = \bigl[ f(x, t) - g(t)^2\, \nabla_x \log p_t(x) \bigr]\, dt + g(t)\, d\bar w .$$
#
# Its only unknown is the score of $p_t$, what the objectives of chapters 1 and 2 learn; here it is exact. `sde.reverse(score_fn)`
# is that equation, and `sampling.pc_sampler` with the predictor `euler_maruyama` solves it:
#
# $$x_{t - \Delta t} = x_t - \bigl[ f - g^2 s \bigr] \Delta t + g \sqrt{\Delta t}\; z .$$
#
# We count how far samples are from the data by the Wasserstein distance, the mean shift from each sorted sample to the
# quantile where it should be.

# %%
fine = np.linspace(-4, 4, 8001)
cdf = norm.cdf((fine[:, None] - M) / S) @ W


def wasserstein(x):
    x = np.sort(np.ravel(x))
    return np.mean(np.abs(x - np.interp((np.arange(len(x)) + 0.5) / len(x), cdf, fine)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample(sde, options, draws):
    return sampling.pc_sampler(sde, exact_score(sde), recorded_noise(draws), **dict(options))


euler = (("predictor", "euler_maruyama"), ("corrector", "none"), ("num_frames", STEPS + 1))
draws = np.float32(rng.normal(size=(STEPS + 1, 4000, 1)))
figure, panels = plt.subplots(2, 4, figsize=(12, 4.6), layout="constrained", height_ratios=(1.5, 1))
for (upper, lower), (name, sde) in zip(panels.T, SDES.items(), strict=True):
    samples = sample(dataclasses.replace(sde, N=STEPS), euler, draws)
    show_density(upper, sde, height(sde))
    upper.plot(times[::-1], samples.trajectory[:, :12, 0], color=RED, lw=0.5, alpha=0.8)
    upper.set(xlim=(1, 0), xlabel="$t$, from noise to data", title=name)
    lower.hist(samples.x[:, 0], 80, range=(-2.6, 2.6), density=True, color=RED, alpha=0.5)
    lower.plot(fine, np.gradient(cdf, fine), color="k", lw=1)
    lower.set(xlim=(-2.6, 2.6), yticks=[])
    distance = wasserstein(samples.x)
    lower.set_title(f"distance {distance:.3f}", fontsize=10)
    assert distance < 0.06, name
plt.show()

# %% [markdown]
# ## The right prior
#
# The way back starts from a Gaussian that does not know the data, in place of $p_T$. For VE and $b^t$ that costs what $\sigma(T)$
# leaves to be seen of them. For a Gaussian of deviation $s$ it is exact: the deviation of $p_T$ is $\sqrt{\alpha_T^2 s^2 +
# \sigma_T^2}$, not the prior's. For VP, $\alpha(T) = e^{-\frac14 (\beta_{\min} + \beta_{\max})}$, seven thousandths.

# %%
for name, sde in SDES.items():
    alpha, sigma = (float(v[0]) for v in kernel(sde, np.float32([sde.T])))
    ratio = np.hypot(alpha, sigma) / sde.prior_std  # for data of s = 1
    print(
        f"{name.strip('$'):7} alpha(T) {alpha:.4f}, deviation of p_T over the prior's {ratio:.4f}"
    )
    assert 0.998 < ratio < 1.04
alpha = float(kernel(SDES["VP"], np.float32([1.0]))[0][0])
assert np.isclose(alpha, np.exp(-0.25 * (0.1 + 20)), rtol=1e-3)

# %% [markdown]
# ## Predictor and corrector
#
# Euler-Maruyama is one **predictor**, a step of the reverse equation. Others run the forward chain's own discretisation
# backwards: `reverse_diffusion`, and DDPM's `ancestral_sampling`. All make an error at each step, and then $x$ is no draw of
# $p_t$. But for $p_t$ there is Langevin dynamics (chapter 1), whose law becomes $p_t$ from *any* start. So after each
# prediction some steps of that, as a **corrector**:
#
# $$x \leftarrow x + \epsilon\, s(x, t) + \sqrt{2 \epsilon}\; z, \qquad \epsilon = 2\, \alpha_i\, \left( r\, \sigma(t) \right)^2 .$$
#
# That is `pc_sampler` with the corrector `ald`. ($r$ is its signal-to-noise ratio `snr`. The corrector `langevin` of the paper
# divides by the norm of the score, and is meant for images, whose norms hardly vary.) The corrector alone is annealed
# Langevin dynamics, DDPM the predictor alone.

# %%
SAMPLERS = {
    "reverse diffusion": ("reverse_diffusion", "none"),
    "corrector alone": ("none", "ald"),
    "reverse diffusion and corrector": ("reverse_diffusion", "ald"),
}
COUNTS = (24, 34, 48)
rng = np.random.default_rng(1)
draws = np.float32(rng.normal(size=(1 + 2 * max(COUNTS), 20_000, 1)))
distance = {}
for name, (predictor, corrector) in SAMPLERS.items():
    options = (("predictor", predictor), ("corrector", corrector), ("snr", 0.4))
    for count in COUNTS:
        few = sde_lib.VPSDE(N=count)
        used = 1 + count * ((predictor != "none") + (corrector != "none"))
        samples = sample(few, options, draws[:used])
        distance[name, count] = wasserstein(samples.x)

figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for name, color in zip(SAMPLERS, (BLUE, GREEN, RED), strict=True):
    line = [distance[name, count] for count in COUNTS]
    axes.loglog(COUNTS, line, "o-", ms=4, color=color, label=name)
floor = np.mean([wasserstein(data(20_000)) for _ in range(20)])
axes.axhline(floor, color="k", ls=":", lw=1)
axes.set(xlabel="noise levels $N$", ylabel="distance from the data", ylim=(0.004, 0.5))
axes.set(xticks=COUNTS, xticklabels=COUNTS)
axes.minorticks_off()
axes.set_title("VP, exact score; dotted: 20,000 draws of the data themselves", fontsize=10)
axes.legend(frameon=False)
plt.show()
name = "reverse diffusion and corrector"
shrinks = [distance[name, count] / distance["reverse diffusion", count] for count in COUNTS]
print("the corrector multiplies the distance by", np.round(shrinks, 2))
assert np.mean(shrinks) < 0.9
assert all(distance[name, count] < 0.3 * distance["corrector alone", count] for count in COUNTS)
same_cost = distance["reverse diffusion", 48] / distance["reverse diffusion and corrector", 24]
assert 0.4 < same_cost < 2.5

# %% [markdown]
# The corrector takes back a part of the predictor's error, for one more evaluation of the score at each level. Here, where the
# score is exact, a predictor of twice as many levels would do as much with them. With a network it is different: its errors
# do not shrink with the steps, and a corrector takes back some of those, too. The paper's best FID comes from both together.
#
# The noise in all these samplers is not needed to draw samples: [chapter 4](4_probability_flow.py) leaves it out, and gets more than it loses.
