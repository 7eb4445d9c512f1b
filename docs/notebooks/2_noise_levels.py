# %% [markdown]
# # 2. Noise levels
#
# [Chapter 1](1_score_matching.py) ended with a wish: the scores of the data at many levels of noise. Two lines of work
# came to it from different sides. *NCSN* (Song and Ermon 2019) adds noise and matches scores. *DDPM* (Ho et al. 2020)
# adds noise, shrinks the data, and bounds a likelihood. Both end with a network that guesses the noise in $x$.

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
from data.toy import GaussianMixture
from diffusion import ancestral
from diffusion.noise import recorded_noise

plt.rcParams |= {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, GREY = "#2a6f97", "#c8553d", "#588157", "#888888"

# %% [markdown]
# The data are four Gaussians of the plane, from `data/toy.py`. Shrunk by $\alpha$ and with noise of deviation $\sigma$
# added they are four Gaussians again, so the score is known at every level:
#
# $$p(x) = \sum_k w_k\, \mathcal N\bigl(x;\ \alpha m_k,\ \operatorname{diag}(\alpha^2 s_k^2 + \sigma^2)\bigr).$$

# %%
W, M, S = (
    np.array(v) for v in (GaussianMixture.WEIGHTS, GaussianMixture.MEANS, GaussianMixture.STDS)
)
train = GaussianMixture.draw("train")[0].reshape(-1, 2)


def log_density(x, alpha, sigma):
    """log p of one point x [2]."""
    variance = (alpha * S) ** 2 + sigma**2
    squares = (x - alpha * M) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
    return jax.nn.logsumexp(jnp.log(W) - 0.5 * jnp.sum(squares, 1))


log_p = jax.jit(jax.vmap(log_density, (0, None, None)))
exact_score = jax.jit(jax.vmap(jax.grad(log_density)))  # x [B, 2], alpha [B], sigma [B] -> [B, 2]


def shares(x):
    """The share of the points x that are likelier of Gaussian k than of the others, for each k."""
    squares = ((np.asarray(x)[:, None] - M) / S) ** 2 + 2 * np.log(S)
    return np.bincount(np.argmin(squares.sum(2) - 2 * np.log(W), 1), minlength=4) / len(x)


def show(panel, x, title, half=2.6, color=BLUE):
    panel.plot(*np.asarray(x).T, ".", ms=1.6, alpha=0.5, color=color)
    panel.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    panel.set_title(title, fontsize=11)


# %% [markdown]
# ## NCSN: one network for all levels
#
# Levels $\sigma_1 > \dots > \sigma_N$ fall geometrically, from as large as the data are wide to small enough not to be seen.
# The network is told the level $i$, and the loss is denoising score matching at all of them:
#
# $$\ell = \frac1N \sum_{i} \lambda(\sigma_i)\; \mathbb E\, \Bigl\lVert s(x_0 + \sigma_i z,\, i) + \frac{z}{\sigma_i} \Bigr\rVert^2,
# \qquad \lambda(\sigma) = \sigma^2 .$$
#
# Why $\sigma^2$? The target $-z/\sigma$ is large where the noise is small; with $\lambda = \sigma^2$ the loss compares
# $\sigma s$ with $-z$, of unit size at every level. `losses.smld` computes it, per dimension. The best network is the
# exact score, and what it leaves, the noise that nobody can guess from $x$, is known:
#
# $$\text{floor}_i = 1 - \frac{\sigma_i^2}{D}\, \mathbb E\, \lVert \nabla \log p_{\sigma_i}(x) \rVert^2 .$$

# %%
N = 12
ve = sde_lib.VESDE(sigma_min=0.05, sigma_max=5.0, N=N)
sigmas = np.asarray(ve.discrete_sigmas)[::-1]  # sigma_1 > ... > sigma_N
TRAINING, BATCH = 1000, 256  # steps, points
optimizer = optax.flatten(optax.adam(optax.cosine_decay_schedule(5e-3, TRAINING)))


def network_of(**options):
    return models.MLP(nf=64, num_res_blocks=2, **options)


def fit(module, loss, levels):
    """Parameters after training on `loss(network, x0 [B, 2], labels [B], z [B, 2])` at random levels."""

    def step(carry, key):
        params, state = carry
        pick, level, draw = jax.random.split(key, 3)
        x0 = jnp.asarray(train)[jax.random.randint(pick, (BATCH,), 0, len(train))]
        labels = jax.random.randint(level, (BATCH,), 0, levels)
        z = jax.random.normal(draw, x0.shape)

        def mean_loss(params):
            return jnp.mean(
                loss(functools.partial(module.apply, {"params": params}), x0, labels, z)
            )

        updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    initial = models.init(module, jax.random.key(0), (2,))
    start = initial, optimizer.init(initial)
    run = jax.jit(lambda start, keys: jax.lax.scan(step, start, keys)[0][0])
    return run(start, jax.random.split(jax.random.key(1), TRAINING))


ncsn = network_of(
    embedding_type="positional", scale_by_sigma=True, sigma_min=0.05, sigma_max=5.0, num_scales=N
)
params = fit(ncsn, functools.partial(losses.smld, ve), N)

# The loss by level, of the network and of the exact score, for the same points and noise.
rng = np.random.default_rng(0)
COUNT = 4000
x0 = train[: COUNT * N]
z = np.float32(rng.normal(size=x0.shape))
labels = np.repeat(np.arange(N), COUNT)
std = sigmas[labels]


def by_level(values):
    return np.asarray(values).reshape(N, COUNT).mean(1)


@jax.jit
def network_loss(params):
    return losses.smld(ve, functools.partial(ncsn.apply, {"params": params}), x0, labels, z)


loss = by_level(network_loss(params))
score = np.asarray(exact_score(x0 + std[:, None] * z, np.ones_like(std), std))
floor = 1 - by_level(std**2 * np.sum(score**2, 1) / 2)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.loglog(sigmas, loss / sigmas**2, "o-", ms=4, color=GREY, label=r"$\lambda = 1$")
left.loglog(sigmas, loss, "o-", ms=4, color=BLUE, label=r"$\lambda = \sigma^2$")
left.set(xlabel=r"$\sigma_i$", title="what a level adds to the loss")
left.legend(frameon=False)
right.semilogx(sigmas, loss, "o", ms=6, color=BLUE, label="network")
right.semilogx(sigmas, floor, color="k", lw=1, label="closed form of the exact score")
right.set(xlabel=r"$\sigma_i$", title="squared error of the noise, per dimension")
right.legend(frameon=False)
plt.show()
assert np.abs(loss - floor).max() < 0.05

# %% [markdown]
# The floor tells the story of the levels: at large $\sigma$ nearly all of $x$ is noise and guessing it is easy; at small
# $\sigma$ it hides in the width of the data.
#
# ## Annealed Langevin dynamics
#
# Steps of $x' = x + \epsilon_i\, s(x, i) + \sqrt{2 \epsilon_i}\, z$ with $\epsilon_i \propto \sigma_i^2$, level after level, and a
# last denoising step: `sampling.annealed_langevin_dynamics`.

# %%
POINTS, EACH = 2000, 30


@jax.jit
def anneal(params, draws):
    score_fn = models.score_fn(
        ve, functools.partial(ncsn.apply, {"params": params}), continuous=False
    )
    return sampling.annealed_langevin_dynamics(
        ve, score_fn, recorded_noise(draws), step_size=5e-4, n_steps_each=EACH, num_frames=N + 1
    )


draws = np.float32(rng.normal(size=(1 + N * EACH, POINTS, 2)))
samples = anneal(params, draws)
figure, panels = plt.subplots(1, 6, figsize=(12, 2.3), layout="constrained")
for panel, i in zip(panels, (1, 4, 6, 8, 12), strict=False):
    sigma = sigmas[i - 1]
    show(panel, samples.trajectory[i], rf"$\sigma_{{{i}}}$ = {sigma:.2f}", 2.6 + 2 * sigma, RED)
show(panels[5], train[:POINTS], "data")
plt.show()
print("shares of the four Gaussians:", shares(samples.x), "of the data:", shares(train).round(3))
assert np.abs(shares(samples.x) - shares(train)).max() < 0.06

# %% [markdown]
# ## DDPM: a chain that forgets
#
# DDPM shrinks while it adds noise, so that the variance stays near one:
#
# $$x_i = \sqrt{1 - \beta_i}\; x_{i-1} + \sqrt{\beta_i}\; z
# \quad\Longrightarrow\quad
# x_i = \sqrt{\bar\alpha_i}\; x_0 + \sqrt{1 - \bar\alpha_i}\; z, \qquad \bar\alpha_i = \prod_{j \le i} (1 - \beta_j).$$
#
# `VPSDE` has the chain; its `discretize` is one step (it returns what is added to $x$, and the noise's deviation). We run
# it from a single point and compare the mean and deviation of 4000 walkers with the closed form.

# %%
N = 100
vp = sde_lib.VPSDE(N=N)
abar = np.asarray(vp.alphas_cumprod)


@jax.jit
def chain(x, draws):
    def step(x, at):
        t, z = at
        f, G = vp.discretize(x, jnp.full(len(x), t))
        x = x + f + G[:, None] * z
        return x, (jnp.mean(x[:, 0]), jnp.std(x[:, 0]), x[:2000])

    times = (jnp.arange(N) + 0.5) / (N - 1)  # the middle of step i, cut to the integer i
    return jax.lax.scan(step, x, (times, draws))[1]


point = np.full((4000, 2), 1.5, np.float32)
mean, deviation, _ = chain(point, np.float32(rng.normal(size=(N, 4000, 2))))
assert np.abs(mean - 1.5 * np.sqrt(abar)).max() < 0.06
assert np.abs(deviation - np.sqrt(1 - abar)).max() < 0.06
walkers = chain(train[:4000], np.float32(rng.normal(size=(N, 4000, 2))))[2]

steps = np.arange(1, N + 1)
figure = plt.figure(figsize=(12, 2.9), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 2.4))
axes = left.subplots()
axes.plot(steps, mean / 1.5, color=BLUE, lw=4, alpha=0.4, label="mean / $x_0$")
axes.plot(steps, deviation, color=RED, lw=4, alpha=0.4, label="deviation")
axes.plot(steps, np.sqrt(abar), "k:", label="closed form")
axes.plot(steps, np.sqrt(1 - abar), "k:")
axes.set(xlabel="step $i$")
axes.legend(frameon=False)
for panel, i in zip(right.subplots(1, 4), (1, 8, 20, 100), strict=True):
    show(panel, walkers[i - 1], f"$x_{{{i}}}$")
plt.show()

# %% [markdown]
# ## The bound
#
# A model of the way back, $p(x_{i-1} \mid x_i)$, Gaussian, bounds the likelihood, as in any latent-variable model:
#
# $$-\log p(x_0) \le
# \underbrace{\mathrm{KL}\bigl(q(x_N | x_0)\, \|\, \mathcal N(0, I)\bigr)}_{\text{prior}}
# + \sum_{i=2}^{N} \underbrace{\mathbb E\, \mathrm{KL}\bigl(q(x_{i-1} | x_i, x_0)\, \|\, p(x_{i-1} | x_i)\bigr)}_{L_{i-1}}
# \; \underbrace{-\, \mathbb E \log p(x_0 | x_1)}_{L_0} .$$
#
# All are Gaussians. If the model's mean is that of $q$ with $x_0$ replaced by a guess $\hat x_0(x_i)$, and its variance
# that of $q$, the step costs the squared error of the guess times a number. With the signal-to-noise ratio
# $\mathrm{SNR}_i = \bar\alpha_i / (1 - \bar\alpha_i)$, and the guess of the noise, $x_i = \sqrt{\bar\alpha_i}\, \hat x_0 +
# \sqrt{1 - \bar\alpha_i}\, \hat z$:
#
# $$L_{i-1} = \tfrac12 \bigl(\mathrm{SNR}_{i-1} - \mathrm{SNR}_i\bigr)\, \mathbb E \lVert x_0 - \hat x_0 \rVert^2
# = \underbrace{\tfrac12 \Bigl(\frac{\mathrm{SNR}_{i-1}}{\mathrm{SNR}_i} - 1\Bigr)}_{w_i}\, \mathbb E \lVert z - \hat z(x_i, i) \rVert^2 .$$
#
# `ancestral.steps` has the coefficients of $q(x_{i-1} | x_i, x_0)$; the same number must come out of them.

# %%


def log_snr_of(sde):
    """log SNR of steps 1 .. N of a chain, in float64."""
    abar = np.exp(np.cumsum(np.log1p(-sde.step_betas())))
    return np.log(abar) - np.log1p(-abar)


w = 0.5 * np.expm1(-np.diff(log_snr_of(vp)))  # w_2 .. w_N
table = ancestral.steps(vp, np.arange(N), discrete=True)  # the noisiest step first
kl = table.of_x0**2 * (table.variance / table.alpha**2) / (2 * np.exp(table.log_small))
assert np.allclose(kl[:-1][::-1], w)

# %% [markdown]
# **It is an area.** The best guess of the noise is $\hat z = -\sigma\, \nabla\log p(x)$, and its error depends on the
# signal-to-noise ratio alone: $\mathbb E \lVert x_0 - \hat x_0 \rVert^2 = \mathrm{mmse}(\mathrm{SNR})$, one decreasing
# curve for the data, however the levels are chosen. With it
#
# $$\sum_i L_{i-1} = \tfrac12 \sum_i (\mathrm{SNR}_{i-1} - \mathrm{SNR}_i)\; \mathrm{mmse}(\mathrm{SNR}_i)$$
#
# is an upper sum of an integral: bars that stand above a curve. With more and smaller steps between the same ends they come
# down to it, like $1/N$, and the bound to $\mathbb E[-\log p(x_0)]$, which we know. (The last term, $L_0$, has a Gaussian
# $p(x_0 | x_1)$ around $\hat x_0$ with the variance $1 / \mathrm{SNR}_1$.)

# %%
data = train[:25_000]
entropy = -float(np.mean(log_p(data, 1.0, 0.0)))


@jax.jit
def mmse_of_noise(log_snr):
    """E |z - z_hat|^2 at these log-SNRs [L], of the exact guess, with alpha^2 + sigma^2 = 1."""

    def at(pair):
        log_snr, key = pair
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
        z = jax.random.normal(key, data.shape)
        every = jnp.ones(len(data))
        guess = -sigma * exact_score(alpha * data + sigma * z, alpha * every, sigma * every)
        return jnp.mean(jnp.sum((z - guess) ** 2, 1))

    return jax.lax.map(at, (log_snr, jax.random.split(jax.random.key(2), len(log_snr))))


lam = np.linspace(-12, 12, 97)
curve = np.asarray(mmse_of_noise(np.float32(lam)))  # SNR mmse(SNR), at lambda = log SNR


class Bound:
    """The bound of levels with these log-SNRs [N], from data to noise, in nats.

    `errors` [N] are the squared errors of the guessed noise; None: those of the exact guess.
    """

    def __init__(self, log_snr, errors=None):
        errors = np.interp(log_snr, lam, curve) if errors is None else errors
        self.log_snr = log_snr
        abar = 1 / (1 + np.exp(-log_snr[-1]))
        self.prior = 0.5 * np.mean(np.sum(abar * data**2 - abar - np.log1p(-abar), 1))
        self.steps = 0.5 * np.expm1(-np.diff(log_snr)) * errors[1:]  # L_1 .. L_{N-1}
        self.decoder = np.log(2 * np.pi) - log_snr[0] + 0.5 * errors[0]  # L_0, for D = 2
        self.total = self.prior + self.steps.sum() + self.decoder


def of_chain(count):
    return Bound(log_snr_of(sde_lib.VPSDE(N=count)))


def of_even_levels(count):
    return Bound(np.linspace(9, -10, count))


COUNTS = np.array([25, 50, 100, 200, 400, 800])
gaps = {
    name: np.array([of(count).total for count in COUNTS]) - entropy
    for name, of in {"DDPM's chain": of_chain, "even in log SNR": of_even_levels}.items()
}

figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(1.7, 1)
)
few = of_even_levels(25)
width = -np.diff(few.log_snr)
label = f"25 levels: an area of {few.steps.sum():.2f} nats"
left.bar(
    few.log_snr[1:],
    few.steps / width,
    width,
    align="edge",
    color=RED,
    alpha=0.35,
    ec="white",
    label=label,
)
chain_25 = of_chain(25)
width = -np.diff(chain_25.log_snr)
left.stairs(
    (chain_25.steps / width)[::-1],
    chain_25.log_snr[::-1],
    color=GREY,
    label=f"DDPM's chain of 25: {chain_25.steps.sum():.2f} nats",
)
inside = (lam <= 9) & (lam >= -10)
area = np.trapezoid(0.5 * curve[inside], lam[inside])
label = rf"$\frac{{1}}{{2}}\,$SNR mmse(SNR): {area:.2f} nats"
left.plot(lam, 0.5 * curve, color="k", lw=1.2, label=label)
left.set(
    xlabel="log SNR, from noise to data",
    xlim=(-10.5, 9.5),
    ylim=(0, 3.3),
    title=r"$\sum_i L_{i-1}$ as an area",
)
left.legend(frameon=False, loc="upper left")
for (name, gap), color in zip(gaps.items(), (GREY, RED), strict=True):
    right.loglog(COUNTS, gap, "o-", ms=4, color=color, label=name)
right.loglog(COUNTS, 25 * gaps["even in log SNR"][0] / COUNTS, "k:", label="$1/N$")
right.set(
    xlabel="steps $N$",
    ylabel="nats",
    xticks=COUNTS,
    xticklabels=COUNTS,
    title=r"bound $-\ \mathbb{E}[-\log p(x_0)]$",
)
right.minorticks_off()
right.legend(frameon=False)
plt.show()
print(
    f"E[-log p] = {entropy:.3f} nats;", {name: gap.round(3).tolist() for name, gap in gaps.items()}
)
even = gaps["even in log SNR"]
assert np.all(even > 0)
assert even[-1] < 0.15
assert 1.5 < even[-2] / even[-1] < 2.6

# %% [markdown]
# DDPM's own chain gains less from more steps, because its first level moves: it has less and less noise, and the second
# step always doubles it. Where the levels are matters to the bound.
#
# In the limit the sum is an integral over time, and the bound that of a stochastic differential equation
# ([chapter 3](3_sdes.py)); for images `likelihood.elbo` estimates it, and `--mode=eval` reports it beside the exact likelihood
# of [chapter 4](4_probability_flow.py).

# %% [markdown]
# ## The simple loss
#
# DDPM drops the weights $w_i$, which are largest where there is hardly any noise, and trains
#
# $$L_{\text{simple}} = \mathbb E_{i, x_0, z}\, \lVert z - \hat z(\sqrt{\bar\alpha_i}\, x_0 + \sqrt{1 - \bar\alpha_i}\, z,\; i) \rVert^2 ,$$
#
# `losses.ddpm`. It is the loss of NCSN in other variables: $\hat z = -\sigma s$, and $\lambda = \sigma^2$. The minimum is the
# same for all weights; they say where a network that is not perfect errs. What its errors cost is read off the bound.

# %%
ddpm = network_of()
params = fit(ddpm, functools.partial(losses.ddpm, vp), N)

SOME = 500  # points for each step
x0, labels = train[: SOME * N], np.repeat(np.arange(N), SOME)
z = np.float32(rng.normal(size=x0.shape))


@jax.jit
def ddpm_loss(params):
    return losses.ddpm(vp, functools.partial(ddpm.apply, {"params": params}), x0, labels, z)


errors = 2 * np.asarray(ddpm_loss(params)).reshape(N, SOME).mean(1)
exact = of_chain(N)
network = Bound(exact.log_snr, errors)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.semilogy(steps[1:], w, color=RED, label="$w_i$ of the bound")
left.semilogy(steps[1:], np.ones(N - 1), color=BLUE, label="1, of the simple loss")
left.set(xlabel="step $i$", title="weights of the error of the noise")
left.legend(frameon=False)
right.plot(
    steps[1:], network.steps, ".", color=BLUE, label=f"network: {network.total:.2f} nats in all"
)
right.plot(steps[1:], exact.steps, color="k", lw=1, label=f"exact score: {exact.total:.2f} nats")
right.set(xlabel="step $i$", title="$L_{i-1}$ in nats")
right.legend(frameon=False)
plt.show()
assert exact.total - 0.1 < network.total < exact.total + 0.3

# %% [markdown]
# ## Ancestral sampling
#
# The way back, from noise: $x_{i-1}$ is drawn from the Gaussian $p(x_{i-1} | x_i)$ of the bound (DDPM's other choice of
# variance is $\beta_i$),
#
# $$x_{i-1} = \frac{1}{\sqrt{1 - \beta_i}} \Bigl(x_i + \beta_i\, s(x_i, i)\Bigr) + \text{noise}, \qquad s = -\hat z / \sqrt{1 - \bar\alpha_i} .$$

# %%


@jax.jit
def sample(params, draws):
    score_fn = models.score_fn(
        vp, functools.partial(ddpm.apply, {"params": params}), continuous=False
    )
    return ancestral.ancestral(
        vp, score_fn, recorded_noise(draws), num_steps=N, discrete=True, num_frames=N + 1
    )


samples = sample(params, np.float32(rng.normal(size=(N + 1, POINTS, 2))))
figure, panels = plt.subplots(1, 6, figsize=(12, 2.3), layout="constrained")
for panel, i in zip(panels, (100, 60, 30, 10, 0), strict=False):
    show(panel, samples.trajectory[N - i], f"$x_{{{i}}}$", color=RED)
show(panels[5], train[:POINTS], "data")
plt.show()
print("shares of the four Gaussians:", shares(samples.x), "of the data:", shares(train).round(3))
assert np.abs(shares(samples.x) - shares(train)).max() < 0.06
assert np.abs(np.cov(samples.x.T) - np.cov(train.T)).max() < 0.12

# %% [markdown]
# Thirty steps at each of twelve levels, or one at each of a hundred: two samplers of one idea. [Chapter 3](3_sdes.py) lets
# the number of levels grow to infinity, and both become one equation.
