# %% [markdown]
# # 6. Control
#
# A score is a prior. Conditions are put on it while it samples: a class, a sentence, known pixels,
# a measurement. The network is not trained again. Here the priors are mixtures of Gaussians, so
# that beside every answer stands the exact one.

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
import data
import losses
import models
import sde_lib
from data.captions import END, VOCABULARY, tokens
from data.toy import GaussianMixture
from data.transforms import scale
from diffusion import few_steps, grids, inverse
from diffusion.noise import image_noise
from models.clip import TextTower, on_sphere

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
# So a *classifier of noisy points*, $p_t(y \mid x)$, steers a score that knows of no classes. For
# a mixture it is exact: the share of each Gaussian in the density at $x$.

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
guided = jax.jit(controllable.guided(score_fn, controllable.of_class(class_log_prob, jnp.array(y))))
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
# With exact scores this is the same field. $w = 0$ forgets the class, $w = 1$ is the class, $w >
# 1$ exaggerates it.

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
# has read twelve sentences. The text tower is the project's (a transformer over bytes), and so is
# the loss; `--mode=control` does the same with pictures, and reads CLIPs that others have trained:
# [docs/controllable.md](../controllable.md).

# %%
NAMES = ("left", "upper", "right", "lower")
SENTENCES = ("a point on the {} side", "the {} cloud", "{}")
captions = jnp.stack([tokens(form.format(name), 32) for name in NAMES for form in SENTENCES])
images = models.MLP(nf=64, num_res_blocks=2, num_outputs=16)
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


@jax.jit
def initial(key):
    """The last layer of an MLP begins at zero, which has no direction: some noise gives it one."""
    image = models.init(images, key, (2,))
    image = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(key, p.shape), image)
    return {"image": image, "text": texts.init(key, captions)["params"], "log_scale": jnp.log(5.0)}


parameters = initial(jax.random.key(0))
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


def similarity(prompt):
    """k <I(x, t), T(prompt)>: log p_t(prompt | x) up to a constant, if the CLIP is good."""
    text = texts.apply({"params": parameters["text"]}, jnp.asarray(tokens(prompt, 32))[None])[0]
    return lambda x, t: jnp.exp(parameters["log_scale"]) * image_vectors(parameters, x, t) @ text


def by_text(prompt):
    noise = noise_of(500, (2,), 3)
    return jax.jit(lambda: draw(controllable.guided(score_fn, similarity(prompt)), noise))()


PROMPTS = ("the left cloud", "a point on the upper side", "right", "the lower cloud")
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained", sharey=True)
for k, (axis, prompt) in enumerate(zip(axes, PROMPTS, strict=True)):
    x = np.asarray(by_text(prompt))
    share = float(np.mean(taken_for(x) == k))
    axis.plot(*truth[:1500].T, ".", ms=1.5, color="#cccccc")
    axis.plot(*x.T, ".", ms=2.5, color=COLOURS[k])
    axis.set(title=f"“{prompt}”\n{share:.0%}", aspect="equal", xticks=[], yticks=[])
    assert share > 0.8, prompt
plt.show()


# Its gradient, held against the exact one where noisy data are:
@jax.jit
def gradients(x):
    t = jnp.full(len(x), 0.3)
    x = sde.alpha(t)[:, None] * x + sde.sigma(t)[:, None] * noise_of(len(x), (2,), 4)(0)
    learned = jax.grad(lambda x: jnp.sum(similarity("left")(x, t)))(x)
    return learned, jax.grad(lambda x: jnp.sum(class_log_prob(x, t)[:, 0]))(x)


learned, exact = map(np.asarray, gradients(truth[:1000].astype(np.float32)))
correlation = np.sum(learned * exact) / np.linalg.norm(learned) / np.linalg.norm(exact)
print(f"cosine between the gradients of the CLIP and of log p_t(left | x): {correlation:.3f}")
assert correlation > 0.9

# %% [markdown]
# ## In-painting: a known pixel and an unknown one
#
# Known is a part $P x_0 = P v$ of the image. The known part of $x_t$ is $\mathcal N(\alpha P v,
# \sigma^2)$ whatever the rest is, so its score is known, and the rest takes the network's
# (`controllable.infilled`):
#
# $$P\,\frac{\alpha v - x}{\sigma^2} + (I - P)\, s(x, t).$$
#
# The second term hears the known pixel only through its *noised* copy. That is an approximation,
# and two pixels show it: variances 1, correlation 0.8, the first known to be 1.5. Then the second
# is $\mathcal N(0.8 \cdot 1.5,\ 1 - 0.8^2)$. RePaint (`controllable.repaint`) goes back and forth
# in time until both parts agree; `inverse.posterior_guided` asks for $\nabla_x \log p(y \mid x_t)$
# with the covariance of $x_0$ given $x_t$ (Tweedie's second formula), exact for Gaussian data.

# %%
C = jnp.array([[1.0, 0.8], [0.8, 1.0]])
mask = jnp.array([1.0, 0.0]).reshape(1, 2, 1)
COUNT = 4000
known = jnp.full((COUNT, 1, 2, 1), 1.5)
constraint = controllable.in_painting(known, mask)
pair_noise = noise_of(COUNT, (1, 2, 1), 5)


def pair_score(x, t):
    """-(alpha^2 C + sigma^2 I)^-1 x for images of one row and two pixels."""

    def one(x, t):
        return -jnp.linalg.inv(sde.alpha(t) ** 2 * C + sde.sigma(t) ** 2 * jnp.eye(2)) @ x

    return jax.vmap(one)(x.reshape(-1, 2), t).reshape(x.shape)


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
    "repaint": jax.jit(lambda: by_repaint(pair_score, pair_noise, constraint, 60, 10, 30))(),
    "posterior_guided": jax.jit(
        lambda: by_posterior(pair_score, pair_noise, inverse.masking(mask), mask * known, 0.0, 2)
    )(),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained", sharey=True)
values = np.linspace(-2, 4, 200)
exact = np.exp(-0.5 * (values - 1.2) ** 2 / 0.36) / np.sqrt(2 * np.pi * 0.36)
law = {}
for axis, (name, x) in zip(axes, answers.items(), strict=True):
    x = np.asarray(x)
    law[name] = float(x[:, 0, 1, 0].mean()), float(x[:, 0, 1, 0].var())
    axis.hist(x[:, 0, 1, 0], bins=50, density=True, color=BLUE, alpha=0.6)
    axis.plot(values, exact, color=RED)
    axis.set(
        title="{}: mean {:.2f}, variance {:.2f}".format(name, *law[name]),
        xlabel="the unknown pixel",
    )
plt.show()
print("exact: mean 1.20, variance 0.36; ", {k: f"{m:.2f}, {v:.2f}" for k, (m, v) in law.items()})

assert np.abs(np.asarray(answers["repaint"])[:, 0, 0, 0] - 1.5).max() < 1e-5  # the known pixel
assert abs(law["infilled"][0] - 1.2) > 0.3  # says too little
assert abs(law["repaint"][0] - 1.2) < 0.1
assert np.allclose(law["posterior_guided"], (1.2, 0.36), atol=0.05)

# %% [markdown]
# ## Digits, with the exact posterior beside
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
lam, U = (jnp.asarray(v, jnp.float32) for v in np.linalg.eigh(covariances))
m32 = jnp.asarray(m, jnp.float32)


def digit_score(x, t):
    """The exact score of the ten diffused Gaussians, in each one's own axes."""

    def log_density(x, t):
        variance = sde.alpha(t) ** 2 * lam + sde.sigma(t) ** 2  # [10, 64]
        along = jnp.einsum("kij,ki->kj", U, x - sde.alpha(t) * m32)
        return jax.nn.logsumexp(-0.5 * jnp.sum(along**2 / variance + jnp.log(variance), 1))

    return jax.vmap(jax.grad(log_density))(x.reshape(-1, 64), t).reshape(x.shape)


def exact_posterior(A, y, tau, rng, count):
    """`count` draws of p(x_0 | y), its mean, and the shares p(k | y)."""
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
    return np.array(draws), share @ centre, share


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
    exact = [exact_posterior(A, row.reshape(-1)[: len(A)], tau, rng, VARIANTS)[:2] for row in y]
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
    """A row of pictures for each name."""
    _, axes = plt.subplots(len(rows), 1, figsize=(8, 1.06 * len(rows)), layout="constrained")
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        axis.imshow(np.concatenate(list(row), 1), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.spines[:].set_visible(False)
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
print({name: round(value, 3) for name, value in off.items()})
assert off["posterior_guided"] < off["infilled"]
assert off["repaint"] < off["infilled"]

# %% [markdown]
# The number printed is the distance of the mean of eight answers from the exact posterior's mean,
# root mean square per pixel; that of eight exact draws is not zero either. The same for
# **super-resolution**, of which $A$ takes means of 2 x 2 pixels, with noise; diffusion posterior
# sampling (`inverse.dps`) follows the gradient of the residual instead, with a step of fixed
# length: it meets the measurement, and is no draw of the posterior.

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
print({name: (round(off[name], 3), round(spread[name], 3)) for name in off})
assert off["posterior_guided"] < 2 * off["exact posterior"]
assert abs(spread["posterior_guided"] / spread["exact posterior"] - 1) < 0.25

# %% [markdown]
# ## Colour for a grey pixel
#
# In an orthonormal basis of grey and two colours, colourisation *is* in-painting: the first
# channel is known. Our world has five paints, Gaussians in RGB. Three of them are equally grey, and
# grey cannot tell them apart: the answer is a law, not a colour. As the paints are round, knowing
# grey $g$ leaves each as it is, with weight $w_k\, \mathcal N(g;\ g_k, s^2)$.

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
    axes[1, i].set(xticks=[], ylim=(0, 1.05), title="share of each paint" if i == 0 else "")
axes[1, 0].legend(frameon=False)
plt.show()
print(np.round(exact, 2), np.round(shares, 2), sep="\n")
assert np.abs((exact - shares)[:2]).max() < 0.1  # paints that are equally grey, or one alone
assert np.abs(exact - shares).max() < 0.25

# %% [markdown]
# Where the grey lies between two paints, ten repetitions do not mix: RePaint gives one of them up
# to a fifth too little. That is its bias, and more repetitions lessen it.
#
# In a run all of this is `--mode=control`: `--config.control.task=class`, `prompt`, `inpaint`,
# `super_resolution`, `colorize` and more; [docs/control.md](../control.md) shows each. Next: [your
# own SDE, sampler and objective](7_your_own.py).
