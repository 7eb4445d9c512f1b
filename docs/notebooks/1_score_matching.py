# %% [markdown]
# # 1. Score matching
#
# A density has to integrate to one, and for a density over images nobody can compute that integral. Its *score* is
# free of it:
#
# $$s(x) = \nabla_x \log p(x), \qquad \nabla_x \log \frac{q(x)}{Z} = \nabla_x \log q(x).$$
#
# The score is a field of arrows that point to where data are more likely. This chapter learns it from samples alone,
# in four ways, and then sees where one score is not enough.

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
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import losses
import models
import sampling
import sde_lib
from diffusion import langevin, probes
from diffusion.noise import recorded_noise
from diffusion.times import time_of_noise

plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"

# %% [markdown]
# ## Data whose score is known
#
# Two round Gaussians in the plane, one four times as heavy as the other:
#
# $$p(x) = \tfrac15\, \mathcal N(x;\, m_1, h^2 I) + \tfrac45\, \mathcal N(x;\, m_2, h^2 I).$$
#
# With noise of deviation $\sigma$ it is again such a mixture, of variance $h^2 + \sigma^2$, so everything below can be
# checked. The score is the gradient of the logarithm, which JAX takes. By hand it is a mean of arrows to the centres,
# weighted by the probability $r_k(x)$ that $x$ came from centre $k$:
#
# $$\nabla_x \log p(x) = \sum_k r_k(x)\, \frac{m_k - x}{h^2 + \sigma^2}.$$

# %%
WEIGHTS, CENTRES, H = np.array([0.2, 0.8]), np.array([[-2.0, -2.0], [2.0, 2.0]]), 0.5


def log_p(x, sigma, weights=WEIGHTS):
    """log p of one point x [2] with noise of deviation sigma."""
    variance = H**2 + sigma**2
    squares = jnp.sum((x - CENTRES) ** 2, 1) / variance
    return jax.nn.logsumexp(jnp.log(weights) - 0.5 * squares) - jnp.log(2 * jnp.pi * variance)


density = jax.jit(jax.vmap(lambda x, sigma: jnp.exp(log_p(x, sigma)), (0, None)))
exact_score = jax.jit(jax.vmap(jax.grad(log_p)))  # x [B, 2], sigma [B] -> [B, 2]
rng = np.random.default_rng(0)


def data(count):
    k = rng.choice(2, count, p=WEIGHTS)
    return np.float32(CENTRES[k] + H * rng.normal(size=(count, 2)))


def plane(cells, half=4.0):
    """A grid of points on [-half, half]^2, [cells^2, 2]."""
    side = np.linspace(-half, half, cells)
    return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)


def shade(axes, values, half=4.0, **options):
    """A picture of values at the points of `plane`."""
    cells = round(len(values) ** 0.5)
    options = {"cmap": "Blues", "origin": "lower", "extent": (-half, half) * 2} | options
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes.imshow(np.reshape(values, (cells, cells)), **options)


def arrows(axes, x, score, color=BLUE):
    """The score as arrows; their lengths are the square root of its norm."""
    score = np.asarray(score)
    norm = np.linalg.norm(score, axis=1, keepdims=True) + 1e-9
    axes.quiver(
        *x.T, *(score / np.sqrt(norm)).T, color=color, angles="xy", width=0.004, pivot="mid"
    )


x = plane(17)
score = np.asarray(exact_score(x, np.zeros(len(x))))
towards = (CENTRES - x[:, None]) / H**2
p_k = WEIGHTS * np.exp(-0.5 * H**2 * np.sum(towards**2, 2))
r = p_k / p_k.sum(1, keepdims=True)
assert np.allclose(score, np.sum(r[..., None] * towards, 1), atol=1e-3)
# Of 7 p instead of p the score is the same.
assert np.allclose(
    jax.jit(jax.vmap(jax.grad(lambda x: log_p(x, 0.0, 7 * WEIGHTS))))(x), score, atol=1e-4
)

train = data(20_000)
fine = plane(101)
figure, panels = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
panels[0].plot(*train[:1500].T, ".", ms=2, alpha=0.5, color=BLUE)
panels[0].set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xticks=[], yticks=[], title="samples")
shade(panels[1], density(fine, 0.0))
panels[1].set_title("density $p$")
shade(panels[2], density(fine, 0.0), alpha=0.6)
arrows(panels[2], x, score)
panels[2].set_title(r"score $\nabla \log p$")
plt.show()

# %% [markdown]
# ## Four objectives, one minimum
#
# **Explicit.** If we knew the score, we would fit a model $s$ to it by least squares:
#
# $$J = \tfrac12\, \mathbb E_{p}\, \lVert s(x) - \nabla \log p(x) \rVert^2 .$$
#
# **Implicit** (Hyvärinen 2005). Expand the square. In the cross term $p\,\nabla\log p = \nabla p$, and integration by
# parts moves the derivative to $s$; the unknown score is gone but for a constant:
#
# $$J = \mathbb E_p \bigl[ \operatorname{tr} \nabla s(x) + \tfrac12 \lVert s(x) \rVert^2 \bigr] + \text{const}.$$
#
# **Sliced** (Song et al. 2019). The trace costs one derivative for each dimension. Random directions with
# $\mathbb E\, v v^\top = I$ estimate it by one:
#
# $$J = \mathbb E_{p}\, \mathbb E_v \bigl[ v^\top \nabla s(x)\, v + \tfrac12 (v^\top s(x))^2 \bigr] + \text{const}.$$
#
# **Denoising** (Vincent 2011). Add noise, $x = x_0 + \sigma z$, and fit the direction back to the clean point:
#
# $$J_\sigma = \tfrac12\, \mathbb E_{x_0, z} \Bigl\lVert s(x_0 + \sigma z) + \frac{z}{\sigma} \Bigr\rVert^2 + \text{const},$$
#
# no derivative at all. A network cannot know $z$; the best that it can do is the mean of $-z/\sigma$ given $x$, which
# is the score of $p_\sigma$, the data *with* noise.
#
# In the project they are `losses.esm`, `ism`, `ssm` and `dsm`. Each is given an SDE, which says how noise is added, and
# a time, which says how much. We hold $\sigma = 0.3$, and add the same noise in all four, so that they speak of the same
# $p_\sigma$. (They return $2 \sigma^2 J / D$ with the constant that makes it the squared error of the noise.) Explicit
# matching takes the centres themselves, as a kernel density estimate of bandwidth $h$.

# %%
SIGMA = 0.3
sde = sde_lib.VESDE(sigma_min=0.05, sigma_max=8.0)
t = float(time_of_noise(sde, SIGMA))


def directions(key, shape):
    return probes.rademacher(jax.random.split(key, shape[0]), shape[1:])


KDE = np.float32(CENTRES[[0, 1, 1, 1, 1]])  # one point and four: the weights 1/5 and 4/5


def objective(name, score_fn, x0, key):
    """The error [B] of one objective on data x0 [B, 2], with noise and directions from the key."""
    times = jnp.full(len(x0), t)
    z = jax.random.normal(key, x0.shape)
    if name == "esm":
        x0 = jnp.where(x0.sum(1, keepdims=True) > 0, CENTRES[1], CENTRES[0])
        return losses.esm(sde, score_fn, x0, times, z, points=KDE, bandwidth=H)
    if name == "ssm":
        v = directions(jax.random.fold_in(key, 1), x0.shape)
        return losses.ssm(sde, score_fn, x0, times, z, directions=v)
    return losses.OBJECTIVES[name].noise_mse(sde, score_fn, x0, times, z)


NAMES = {"esm": "explicit", "ism": "implicit", "ssm": "sliced", "dsm": "denoising"}

# %% [markdown]
# Take the models $s_a = a\,\nabla \log p_\sigma$, right only for $a = 1$. With $F = \mathbb E \lVert \nabla\log p_\sigma
# \rVert^2$ the closed form is a parabola, and the same for all:
#
# $$\frac{2\sigma^2}{D} J(a) = \frac{\sigma^2 F}{D}\,(a - 1)^2 + c, \qquad
# c = 0 \text{ (explicit)}, \quad c = 1 - \frac{\sigma^2 F}{D} \text{ (the others)}.$$

# %%
factors = np.linspace(0.2, 1.8, 9)


@functools.partial(jax.jit, static_argnums=0)
def curve(name):
    def at(a):
        score_fn = lambda x, t: a * exact_score(x, sde.sigma(t))  # noqa: E731
        return jnp.mean(objective(name, score_fn, train[:8000], jax.random.key(1)))

    return jax.lax.map(at, factors)


noisy = train + np.float32(SIGMA * rng.normal(size=train.shape))
target = np.asarray(exact_score(noisy, np.full(len(noisy), SIGMA)))
F = np.mean(np.sum(target**2, 1))
share = SIGMA**2 * F / 2

figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for (name, title), color in zip(NAMES.items(), (GREY, GREEN, RED, BLUE), strict=True):
    constant = 0.0 if name == "esm" else 1 - share
    values = np.asarray(curve(name))
    assert np.abs(values - share * (factors - 1) ** 2 - constant).max() < 0.02, name
    axes.plot(factors, values, "o", ms=15 - 4 * list(NAMES).index(name), color=color, label=title)
many = np.linspace(0.2, 1.8, 100)
for constant in (0.0, 1 - share):
    axes.plot(many, share * (many - 1) ** 2 + constant, color="k", lw=0.8)
axes.axvline(1, color=GREY, lw=0.8, ls=":")
axes.set(
    xlabel="$a$",
    ylabel="objective",
    title="Four objectives of $a$ times the score, and the closed form",
)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Training
#
# The same small network, the same steps, four objectives; not one is told the score (explicit matching is told the
# density, which on real data is a poor estimate). The error is the Fisher divergence relative to $F$,
#
# $$\frac{\mathbb E_{p_\sigma} \lVert s(x) - \nabla\log p_\sigma(x) \rVert^2}{\mathbb E_{p_\sigma} \lVert \nabla\log p_\sigma(x) \rVert^2}.$$

# %%
TRAINING = 400  # steps
network = models.MLP(nf=64, num_res_blocks=1, conditional=False)
initial = models.init(network, jax.random.key(3), (2,))
optimizer = optax.flatten(optax.adam(optax.cosine_decay_schedule(1e-2, TRAINING)))


def score_of(params):
    return models.score_fn(sde, functools.partial(network.apply, {"params": params}), True)


@functools.partial(jax.jit, static_argnums=0)
def trained(name):
    def step(carry, key):
        params, state = carry
        pick, draw = jax.random.split(key)
        x0 = jnp.asarray(train)[jax.random.randint(pick, (256,), 0, len(train))]
        loss = lambda params: jnp.mean(objective(name, score_of(params), x0, draw))  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = initial, optimizer.init(initial)
    return jax.lax.scan(step, start, jax.random.split(jax.random.key(4), TRAINING))[0][0]


@jax.jit
def learned(params, x):
    return score_of(params)(x, jnp.full(len(x), t))


figure, panels = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
fisher, params = {}, {}
for panel, (name, title) in zip(panels, NAMES.items(), strict=True):
    params[name] = trained(name)
    error = np.asarray(learned(params[name], noisy)) - target
    fisher[name] = np.mean(np.sum(error**2, 1)) / F
    shade(panel, density(fine, SIGMA), alpha=0.6)
    arrows(panel, x, learned(params[name], x))
    panel.set_title(f"{title}: {100 * fisher[name]:.1f} % off", fontsize=11)
plt.show()
assert max(fisher.values()) < 0.1

# %% [markdown]
# The explicit target has no noise, and is known here only because the density is. Of the other three, denoising is the
# one that never differentiates the network by its input: it is what all later chapters use.
#
# ## Where there are no data, nothing is learned
#
# The errors above are means over $p_\sigma$. Between the two clusters there is no density, hence no loss, hence any answer
# will do. The picture has the relative error of the denoising model over the plane; the lines are the density, a factor
# of 100 apart. And a sampler that starts anywhere must cross that land.

# %%
exact = np.asarray(exact_score(fine, np.full(len(fine), SIGMA)))
error = np.linalg.norm(learned(params["dsm"], fine) - exact, axis=1) / np.linalg.norm(exact, axis=1)
level = np.log(density(fine, SIGMA))

figure, axes = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
picture = shade(axes, error, cmap="Reds", vmin=0, vmax=1)
side = np.linspace(-4, 4, 101)
lines = np.log(1e-2) * np.arange(5, -1, -1)
axes.contour(
    side, side, np.reshape(level, (101, 101)), lines, colors="k", linewidths=0.7, linestyles="-"
)
figure.colorbar(picture, label="relative error of the learned score")
axes.set_title("Learned where there are data", fontsize=11)
plt.show()
common, rare = error[level > np.log(1e-2)], error[level < np.log(1e-6)]
print(f"median error: {np.median(common):.2f} where p > 1e-2, {np.median(rare):.2f} where p < 1e-6")
assert np.median(rare) > 4 * np.median(common)

# %% [markdown]
# ## Langevin dynamics mixes slowly
#
# With a score one can sample. Langevin dynamics climbs, and shakes:
#
# $$x' = x + \epsilon\, s(x) + \sqrt{2\epsilon}\; z .$$
#
# For small $\epsilon$ and many steps its law becomes $p$, from any start. How many steps? Around each centre the score
# is that of one Gaussian, and the weights have left it:
#
# $$r_k(x) \approx 1 \quad\Longrightarrow\quad \nabla\log p(x) \approx \frac{m_k - x}{h^2 + \sigma^2}, \text{ whatever } w_k .$$
#
# So a walker that starts nearer to $m_1$ goes there and stays: the shares of the two modes are those of the start. Here
# they are a half each, the score is exact, and 1000 steps change nothing.

# %%
near = fine[fine.sum(1) < -1.5]
swapped = jax.jit(jax.vmap(jax.grad(lambda x: log_p(x, SIGMA, WEIGHTS[::-1]))))(near)
assert np.allclose(swapped, exact_score(near, np.full(len(near), SIGMA)), atol=0.02)

COUNT, STEPS = 1000, 1000
start = np.float32(rng.uniform(-4, 4, (COUNT, 2)))


def exact_score_fn(x, t):
    return exact_score(x, sde.sigma(t))


@jax.jit
def walk(start, z):
    """Langevin dynamics at the one noise level."""
    correct = langevin.annealed_langevin(snr=0.3)  # epsilon = 2 (0.3 sigma)^2
    return correct(sde, exact_score_fn, start, jnp.full(len(start), t), z)[0]


def share_of_first(x):
    """The share of the points x that are nearer to the first centre than to the second."""
    return np.mean(np.sum(x, 1) < 0)


draws = np.float32(rng.normal(size=(1 + STEPS, COUNT, 2)))
end = np.asarray(walk(start, draws[1:]))
figure, panels = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
for panel, x, title in zip(panels, (start, end), ("start", f"after {STEPS} steps"), strict=True):
    shade(panel, density(fine, SIGMA))
    panel.plot(*x.T, ".", ms=2, color=RED, alpha=0.6)
    panel.set(xlim=(-4, 4), ylim=(-4, 4))
    panel.set_title(f"{title}: {100 * share_of_first(x):.0f} % in the lower mode", fontsize=11)
plt.show()
assert abs(share_of_first(end) - share_of_first(start)) < 0.02
assert abs(share_of_first(end) - 0.2) > 0.25

# %% [markdown]
# ## Annealing is the cure
#
# Both troubles have one cure: noise. With $\sigma$ as large as the distance of the modes, $p_\sigma$ is one hill; there is
# density everywhere, and the score knows the weights. So learn the scores of many levels $\sigma_1 > \dots > \sigma_N$, and
# walk a little at each, from the largest down. Each level hands the next a start that is nearly right:
#
# $$x' = x + \epsilon_i\, \nabla\log p_{\sigma_i}(x) + \sqrt{2\epsilon_i}\; z, \qquad \epsilon_i \propto \sigma_i^2 .$$
#
# That is annealed Langevin dynamics (Song and Ermon 2019), `sampling.annealed_langevin_dynamics`. With as many steps as
# above, 25 at each of 40 levels, it finds the weights.

# %%
levels = sde_lib.VESDE(sigma_min=0.05, sigma_max=8.0, N=40)


@jax.jit
def anneal(draws):
    return sampling.annealed_langevin_dynamics(
        levels,
        exact_score_fn,
        recorded_noise(draws),
        step_size=5e-4,
        n_steps_each=25,
        num_frames=41,
    )


samples = anneal(draws)
figure, panels = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
for panel, i in zip(panels, (1, 15, 21, 28, 40), strict=True):
    sigma = float(levels.discrete_sigmas[::-1][i - 1])
    half = 4 + 2 * sigma
    shade(panel, density(plane(101, half), sigma), half)
    panel.plot(*samples.trajectory[i].T, ".", ms=1.5, color=RED, alpha=0.6)
    panel.set(xlim=(-half, half), ylim=(-half, half))
    panel.set_title(rf"$\sigma$ = {sigma:.2f}", fontsize=11)
plt.show()
print(f"{100 * share_of_first(samples.x):.1f} % are in the lower mode; of the data 20 %")
assert abs(share_of_first(samples.x) - 0.2) < 0.05

# %% [markdown]
# [Chapter 2](2_noise_levels.py) learns all levels with one network.
