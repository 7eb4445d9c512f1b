# %% [markdown]
# # 7. Inverse problems
#
# Some of an image is known: half of its pixels, a blurred or a grey version, a few measurements
# with noise,
#
# $$y = A x_0 + \tau\, n, \qquad n \sim \mathcal N(0, I).$$
#
# What images are likely, given $y$? Bayes' rule says it for scores as in
# [chapter 6](6_guidance.py), and nothing is trained for it:
#
# $$\nabla_x \log p_t(x \mid y) = \nabla_x \log p_t(x) + \nabla_x \log p_t(y \mid x), \qquad
# p_t(y \mid x) = \int p(y \mid x_0)\, p(x_0 \mid x_t = x)\, dx_0 .$$
#
# The integral is the trouble: $y$ speaks of the clean image, the sampler holds a noisy one. Methods
# differ in what they put in its place. The priors of this chapter are Gaussians and mixtures of
# them, whose posterior is known, so that beside every answer stands the exact one.

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

import controllable
import data
import sde_lib
from data.transforms import scale
from diffusion import few_steps, grids, inverse
from diffusion.noise import image_noise

jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner what computes little
plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"
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
# ## Two pixels, of which one is known
#
# The smallest image worth in-painting has two pixels: Gaussian, of variance 1 and correlation 0.8,
#
# $$x_0 \sim \mathcal N(0, C), \qquad C = \begin{pmatrix} 1 & 0.8 \\ 0.8 & 1 \end{pmatrix}, \qquad
# \nabla_x \log p_t(x) = -(\alpha^2 C + \sigma^2 I)^{-1} x .$$
#
# The first is known to be 1.5. Then the second is $\mathcal N(0.8 \cdot 1.5,\ 1 - 0.8^2)$, and every
# method has to answer with that.

# %%
C = jnp.array([[1.0, 0.8], [0.8, 1.0]])
mask = jnp.array([1.0, 0.0]).reshape(1, 2, 1)
COUNT = 2000
known = jnp.full((COUNT, 1, 2, 1), 1.5)
pair_noise = noise_of(COUNT, (1, 2, 1), 5)
MEAN, VARIANCE = 0.8 * 1.5, 1 - 0.8**2
lengths, axes_of_C = jnp.linalg.eigh(C)


def pair_score(x, t):
    """-(alpha^2 C + sigma^2 I)^-1 x for images of one row and two pixels, along the axes of C."""
    variance = sde.alpha(t)[:, None] ** 2 * lengths + sde.sigma(t)[:, None] ** 2
    return -((x.reshape(-1, 2) @ axes_of_C / variance) @ axes_of_C.T).reshape(x.shape)


# %% [markdown]
# **By what is known of $x_t$** (`controllable.infilled`). The known part of $x_t$ is $\mathcal
# N(\alpha P y, \sigma^2)$ whatever the rest is ($P$ keeps the known pixels), so its score is known,
# and the rest takes the prior's:
#
# $$P\,\frac{\alpha y - x}{\sigma^2} + (I - P)\, s(x, t).$$
#
# The second term hears of the known pixel only through its *noised* copy, and learns too late.
# **RePaint** (`controllable.repaint`) goes back and forth in time, until both parts agree.
#
# **By Tweedie's formulas** (`inverse.posterior_guided`). The law of $x_0$ given $x_t$ has the mean and
# the covariance
#
# $$D(x) = \frac{x + \sigma^2 s(x, t)}{\alpha}, \qquad
# V = \frac{\sigma^2}{\alpha}\, \frac{\partial D}{\partial x} .$$
#
# Taken for a Gaussian, it makes the integral one: $y \mid x_t \sim \mathcal N(A D,\ A V A^\top +
# \tau^2 I)$, hence
#
# $$\nabla_x \log p_t(y \mid x) \approx
# \left(\frac{\partial D}{\partial x}\right)^{\top} A^\top
# \left(A V A^\top + \tau^2 I\right)^{-1} \bigl(y - A D(x)\bigr).$$
#
# For Gaussian data nothing is approximate in that. First we hold it against the score of what it
# must be, the posterior $\mathcal N(m_y, C_y)$ with noise added, and against the project's, which
# never forms a matrix: it solves for the inverse by conjugate gradients.

# %%
tau = 0.1
A = jnp.array([[1.0, 0.0]])


def by_hand(x, t):
    """s + J' A' (A V A' + tau^2 I)^-1 (y - A D) of one point x [2]."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)

    def score(x):
        return pair_score(x.reshape(1, 1, 2, 1), t[None]).reshape(2)

    def D(x):
        return (x + sigma**2 * score(x)) / alpha

    J = jax.jacobian(D)(x)
    V = sigma**2 / alpha * J
    return score(x) + J.T @ A.T @ jnp.linalg.solve(
        A @ V @ A.T + tau**2 * jnp.eye(1), 1.5 - A @ D(x)
    )


gain = C @ A.T / (A @ C @ A.T + tau**2)
m_y, C_y = 1.5 * gain[:, 0], C - gain @ A @ C  # the posterior of y = 1.5


def must_be(x, t):
    """The score of N(alpha m_y, alpha^2 C_y + sigma^2 I)."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return -jnp.linalg.solve(alpha**2 * C_y + sigma**2 * jnp.eye(2), x - alpha * m_y)


@jax.jit
def three_ways(x, t):
    pixels = x.reshape(-1, 1, 2, 1)
    operator = inverse.masking(mask)
    project = inverse.posterior_guided(
        sde, pair_score, operator, mask * jnp.full_like(pixels, 1.5), noise_std=tau, iterations=2
    )
    return jax.vmap(by_hand)(x, t), project(pixels, t).reshape(-1, 2), jax.vmap(must_be)(x, t)


side = np.linspace(-2.5, 2.5, 13)
square = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
t = np.full(len(square), 0.3, np.float32)
ours, project, exact = map(np.asarray, three_ways(square, t))
assert np.abs(ours - exact).max() < 2e-3
assert np.abs(project - exact).max() < 2e-3

free = np.asarray(jax.jit(pair_score)(square.reshape(-1, 1, 2, 1), t)).reshape(-1, 2)
figure, panels = plt.subplots(1, 3, figsize=(10, 3.7), layout="constrained", sharey=True)
titles = (
    r"$\nabla \log p_t(x)$",
    r"$+\ \nabla \log p_t(y\,|\,x)$",
    r"$=\ \nabla \log p_t(x\,|\,y)$",
)
for panel, field, title in zip(panels, (free, project - free, project), titles, strict=True):
    panel.quiver(*square.T, *field.T, color=BLUE, angles="xy", scale=45, width=0.004)
    panel.set(title=title, aspect="equal", xlabel="the known pixel", xticks=[], yticks=[])
panels[0].set_ylabel("the unknown pixel")
plt.show()

# %% [markdown]
# Now the samples. Their unknown pixel, and what it has to be:

# %%
constraint = controllable.in_painting(known, mask)


def by_repaint(score_fn, noise, constraint, steps, jump, repeats):
    times = grids.time_grid(sde, "log_snr", steps)
    return controllable.repaint(
        sde, score_fn, noise, times, constraint, jump=jump, repeats=repeats
    ).x


def by_posterior(score_fn, noise, operator, y, noise_std, iterations):
    guided = inverse.posterior_guided(
        sde, score_fn, operator, y, noise_std=noise_std, iterations=iterations
    )
    return draw(guided, noise)


answers = {
    "infilled": jax.jit(
        lambda: draw(controllable.infilled(sde, pair_score, constraint), pair_noise, 60)
    )(),
    "repaint": jax.jit(lambda: by_repaint(pair_score, pair_noise, constraint, 60, 10, 20))(),
    "posterior_guided": jax.jit(
        lambda: by_posterior(pair_score, pair_noise, inverse.masking(mask), mask * known, 0.0, 2)
    )(),
}
figure, panels = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained", sharey=True)
values = np.linspace(-2, 4, 200)
exact = np.exp(-0.5 * (values - MEAN) ** 2 / VARIANCE) / np.sqrt(2 * np.pi * VARIANCE)
law = {}
for panel, (name, x) in zip(panels, answers.items(), strict=True):
    x = np.asarray(x)
    law[name] = float(x[:, 0, 1, 0].mean()), float(x[:, 0, 1, 0].var())
    panel.hist(x[:, 0, 1, 0], bins=40, density=True, color=BLUE, alpha=0.6)
    panel.plot(values, exact, color=RED, label=f"exact: {MEAN:.2f}, {VARIANCE:.2f}")
    panel.set(
        title="{}:\nmean {:.2f}, variance {:.2f}".format(name, *law[name]),
        xlabel="the unknown pixel",
    )
panels[0].legend(frameon=False, loc="upper left")
plt.show()

assert np.abs(np.asarray(answers["repaint"])[:, 0, 0, 0] - 1.5).max() < 1e-5  # the known pixel
assert abs(law["infilled"][0] - MEAN) > 0.3  # hears too little of it
assert abs(law["repaint"][0] - MEAN) < 0.12
assert np.allclose(law["posterior_guided"], (MEAN, VARIANCE), atol=0.06)

# %% [markdown]
# ## Digits: the lower half of a picture
#
# Ten Gaussians of 64 dimensions, one for each digit, fitted to 1500 small handwritten digits: poor
# handwriting, but a prior whose score is exact, and so is its posterior. From $y = A x_0 +
# \text{noise}$ with deviation $\tau$ follows for each Gaussian
#
# $$x_0 \mid y, k \sim \mathcal N\bigl(m_k + G_k (y - A m_k),\ C_k - G_k A C_k\bigr), \qquad
# G_k = C_k A^\top (A C_k A^\top + \tau^2 I)^{-1},$$
#
# and $p(k \mid y) \propto w_k\, \mathcal N(y;\ A m_k,\ A C_k A^\top + \tau^2 I)$.

# %%
digits = {split: data.load("digits", split) for split in ("train", "test")}
pixels = {
    split: np.asarray(scale(jnp.asarray(d.images[:]), d.levels, centered=True), np.float64).reshape(
        -1, 64
    )
    for split, d in digits.items()
}
of = [pixels["train"][digits["train"].labels[:] == k] for k in range(10)]
m = np.stack([x.mean(0) for x in of])
covariances = np.stack([np.cov(x.T) + 0.05**2 * np.eye(64) for x in of])
lam, U = (jnp.asarray(v, jnp.float32) for v in np.linalg.eigh(covariances))  # C_k = U lam U'
along_m = jnp.einsum("kij,ki->kj", U, jnp.asarray(m, jnp.float32))  # the means, in those axes


def digit_score(x, t):
    """The exact score of the ten diffused Gaussians, from each one's own axes."""

    def one(x, t):
        variance = sde.alpha(t) ** 2 * lam + sde.sigma(t) ** 2  # [10, 64]
        along = jnp.einsum("kij,i->kj", U, x) - sde.alpha(t) * along_m
        logs = -0.5 * jnp.sum(along**2 / variance + jnp.log(variance), 1)
        return -jnp.einsum("k,kij,kj->i", jax.nn.softmax(logs), U, along / variance)

    return jax.vmap(one)(x.reshape(-1, 64), t).reshape(x.shape)


def exact_posterior(A, y, tau, rng, count):
    """`count` draws of p(x_0 | y), and its mean."""
    spread = A @ covariances @ A.T + tau**2 * np.eye(len(A))  # [10, m, m]
    gain = covariances @ A.T @ np.linalg.inv(spread)
    rest = y - m @ A.T
    log_share = -0.5 * (
        np.einsum("ki,kij,kj->k", rest, np.linalg.inv(spread), rest) + np.linalg.slogdet(spread)[1]
    )
    share = np.exp(log_share - log_share.max()) / np.exp(log_share - log_share.max()).sum()
    centre = m + np.einsum("kij,kj->ki", gain, rest)
    left = covariances - gain @ A @ covariances
    picks = rng.choice(10, count, p=share)
    draws = [rng.multivariate_normal(centre[k], left[k], check_valid="ignore") for k in picks]
    return np.array(draws), share @ centre


# %% [markdown]
# Six digits that the Gaussians were not fitted to lose their lower half. The three methods answer
# eight times each, and so does the exact posterior. Below are two answers of each. They differ, as
# they should: the upper half does not say everything.

# %%
VARIANTS = 8
chosen = np.array([3, 7, 12, 20, 31, 44])
originals = pixels["test"][chosen].reshape(-1, 8, 8, 1)


def compare(operator, A, tau, iterations, more):
    """Exact and guided answers [6, VARIANTS, 8, 8] for the chosen digits; their mean's distance."""
    rng = np.random.default_rng(0)
    y = np.asarray(operator(jnp.asarray(originals, jnp.float32)))
    y = y + tau * rng.standard_normal(y.shape)
    repeated = jnp.asarray(np.repeat(y, VARIANTS, 0), jnp.float32)
    noise = noise_of(len(repeated), (8, 8, 1), 6)
    exact = [exact_posterior(A, row.reshape(-1)[: len(A)], tau, rng, VARIANTS) for row in y]
    answers = {"exact posterior": np.stack([x for x, _ in exact])}
    answers["posterior_guided"] = jax.jit(
        lambda: by_posterior(digit_score, noise, operator, repeated, tau, iterations)
    )()
    answers |= {
        name: jax.jit(lambda method=method: method(noise, repeated))()
        for name, method in more.items()
    }
    answers = {name: np.asarray(x).reshape(6, VARIANTS, 64) for name, x in answers.items()}
    centre = np.stack([mean for _, mean in exact])
    off = {name: float(np.sqrt(np.mean((x.mean(1) - centre) ** 2))) for name, x in answers.items()}
    return y, answers, off


def show(rows):
    """A row of pictures [12, 8, 8] for each name."""
    framed = [np.pad(row, ((0, 0), (0, 1), (0, 1)), constant_values=1) for row in rows.values()]
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in framed])[:-1, :-1]
    _, axes = plt.subplots(figsize=(10, 0.75 * len(rows)), layout="constrained")
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
    axes.set_yticks(9 * np.arange(len(rows)) + 3.5, rows.keys())
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    plt.show()


half = np.repeat(np.float32([1, 0]), 32).reshape(8, 8, 1)
y, answers, off = compare(
    inverse.masking(half),
    np.eye(64)[:32],
    0.0,
    20,
    {
        "repaint": lambda noise, y: by_repaint(
            digit_score, noise, controllable.in_painting(y, half), 40, 10, 8
        ),
        "infilled": lambda noise, y: draw(
            controllable.infilled(sde, digit_score, controllable.in_painting(y, half)), noise
        ),
    },
)


def pairs(x):
    """The first two answers for each digit."""
    return x[:, :2].reshape(12, 8, 8)


show(
    {"known": np.repeat(np.where(half > 0, y, 0.0)[..., 0], 2, 0)}
    | {name: pairs(x) for name, x in answers.items()}
    | {"original": np.repeat(originals[..., 0], 2, 0)}
)
print("distance of the mean:", {name: round(value, 3) for name, value in off.items()})
kept = answers["exact posterior"].reshape(6, VARIANTS, 8, 8, 1) * half - (y * half)[:, None]
assert np.abs(kept).max() < 1e-5  # what is known is kept
assert off["posterior_guided"] < off["infilled"]
assert off["repaint"] < off["infilled"]

# %% [markdown]
# The numbers printed are the distance of the mean of eight answers from the exact posterior's mean,
# root mean square per pixel; that of eight exact draws is not zero either. `posterior_guided` is no
# longer exact, since $x_0$ given $x_t$ is a mixture here, but it is nearest.
#
# **Super-resolution** is the same with another $A$, which takes the mean of 2 x 2 pixels; here with
# noise, $\tau = 0.1$. A new method stands beside it, diffusion posterior sampling (`inverse.dps`),
# which after each step follows the gradient of the residual,
#
# $$x \leftarrow x - \zeta\, \nabla_x \lVert y - A D(x) \rVert .$$
#
# It meets the measurement, and costs one gradient, but it is no draw of the posterior.

# %%
pool = inverse.average_pool(2)
A = np.asarray(pool(jnp.eye(64).reshape(64, 8, 8, 1))).reshape(64, 16).T
inverse.check_adjoint(pool, (8, 8, 1))
y, answers, off = compare(
    pool,
    A,
    0.1,
    16,
    {
        "dps": lambda noise, y: (
            inverse.dps(sde, digit_score, noise, grids.time_grid(sde, "log_snr", 60), pool, y).x
        )
    },
)
show(
    {"measured": np.repeat(y.repeat(2, 1).repeat(2, 2)[..., 0], 2, 0)}
    | {name: pairs(x) for name, x in answers.items()}
    | {"original": np.repeat(originals[..., 0], 2, 0)}
)
spread = {name: float(x.std(1).mean()) for name, x in answers.items()}
for name in off:
    print(f"{name:17} distance of the mean {off[name]:.3f}, spread {spread[name]:.3f}")
assert off["posterior_guided"] < 2 * off["exact posterior"]
assert abs(spread["posterior_guided"] / spread["exact posterior"] - 1) < 0.25

# %% [markdown]
# ## Colour for a grey pixel
#
# In an orthonormal basis of grey and two colours, colourisation *is* in-painting: the first
# channel is known. Our world has five paints, round Gaussians of deviation $s$ in RGB. Three of them
# are equally grey, and grey cannot tell them apart: the answer is a law, not a colour. With $g$ the
# coordinate along grey, of length $\sqrt 3$ times the mean of the channels, it is
#
# $$p(k \mid g) \propto \mathcal N(g;\ g_k, s^2), \qquad g_k \text{ that of paint } k.$$
#
# Four greys: that of the darkest paint, the one that three paints share, one between these and the
# brightest, and that one's. In the pictures the grey stands left of what RePaint made of it.

# %%
PAINTS = np.array(
    [[0.9, 0.3, 0.25], [0.25, 0.55, 0.65], [0.95, 0.8, 0.3], [0.1, 0.15, 0.35], [0.45, 0.7, 0.3]]
)
S = 0.06
centres = jnp.asarray(2 * PAINTS - 1, jnp.float32)  # in [-1, 1]


def paint_score(x, t):
    def log_density(x, t):
        variance = sde.alpha(t) ** 2 * S**2 + sde.sigma(t) ** 2
        return jax.nn.logsumexp(-0.5 * jnp.sum((x - sde.alpha(t) * centres) ** 2, 1) / variance)

    return jax.vmap(jax.grad(log_density))(x.reshape(-1, 3), t).reshape(x.shape)


greys = np.repeat(np.float32([-0.6, -0.03, 0.17, 0.37]), 400)  # the mean of R, G and B
pixel = controllable.colourisation(jnp.asarray(greys.reshape(-1, 1, 1, 1)))
painted = np.asarray(
    jax.jit(lambda: by_repaint(paint_score, noise_of(1600, (1, 1, 3), 8), pixel, 60, 10, 10))()
).reshape(4, 400, 3)
assert np.abs(painted.mean(-1).ravel() - greys).max() < 1e-5  # grey is kept

basis = controllable.GREY_AND_COLOURS
to_grey = np.asarray(centres) @ basis[:, 0]
exact = np.exp(-0.5 * ((np.sqrt(3) * np.unique(greys)[:, None] - to_grey) / S) ** 2)
exact /= exact.sum(1, keepdims=True)
nearest = np.argmin(np.linalg.norm(painted[:, :, None] - np.asarray(centres), axis=-1), -1)
shares = np.stack([np.mean(nearest == k, 1) for k in range(5)], 1)

_, axes = plt.subplots(2, 4, figsize=(10, 3.4), layout="constrained", height_ratios=(1, 2))
for i, grey in enumerate(np.unique(greys)):
    strip = np.concatenate([np.full((4, 1, 3), grey), painted[i, :56].reshape(4, 14, 3)], 1)
    axes[0, i].imshow(np.clip(0.5 * strip + 0.5, 0, 1))
    axes[0, i].set_axis_off()
    axes[1, i].bar(
        np.arange(5) - 0.2, exact[i], 0.4, color=PAINTS, edgecolor="black", label="exact"
    )
    axes[1, i].bar(
        np.arange(5) + 0.2,
        shares[i],
        0.4,
        color=PAINTS,
        hatch="///",
        edgecolor="black",
        label="repaint",
    )
    axes[1, i].set(xticks=[], ylim=(0, 1.05))
axes[1, 0].set_ylabel("share of each paint")
axes[1, 0].legend(frameon=False)
plt.show()
print(np.round(exact, 2), np.round(shares, 2), sep="\n")
assert np.abs((exact - shares)[:2]).max() < 0.1  # paints that are equally grey, or one alone
assert np.abs(exact - shares).max() < 0.25

# %% [markdown]
# Where the grey lies between two paints, ten repetitions do not mix: RePaint gives one of them up
# to a fifth too little. That is its bias, and more repetitions lessen it.
#
# In a run this is `--mode=control`, with `--config.control.task=inpaint`, `super_resolution`,
# `colorize` and more, for every network:
#
#     python main.py --mode=control --source=digits --config.control.task=inpaint
#
# fills in digits by the trained weights that are part of the project. [docs/control.md](../control.md)
# shows each task, [docs/controllable.md](../controllable.md) has the methods. Next: [your own SDE,
# sampler and objective](8_your_own.py).
