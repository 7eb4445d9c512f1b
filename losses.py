"""Objectives whose minimiser is the score.

Each is a function of a network or score function, images `x0` [B, ...] and its random draws, and
returns the loss of every image [B] with its named parts, also [B]. The part `noise_mse` is the
mean squared error per dimension of the noise that the network predicts: it is 1 for a network that
predicts nothing, and comparable across objectives, weightings and image sizes. Objectives that
never see the noise (`ism`, `ssm`, `ssm_vr`) give an estimate of it with the same mean.

`docs/objectives.md` has them in a table. Equation numbers are those of Song et al. 2021
(arXiv:2011.13456), unless another source is named.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import models
from configs.names import lookup
from diffusion import parametrisation, probes
from diffusion.times import TIME_DRAWS, times_from_config
from sde_lib import SDE, VESDE, ScoreFn, VariancePreservingSDE, batch_mul

Losses = tuple[Array, dict[str, Array]]
Loss = Callable[..., Losses]  # (network, x0 [B, ...], keys [B], u [B], y [B] or None)
Network = Callable[[Array, Array], Array]
ClassLogProb = Callable[[Array, Array], Array]  # (x [B, ...], t [B]) -> [B, classes]

LARGEST_TRACE = 64  # dimensions of which `ism` takes the exact trace, a derivative for each
DISTANCES_AT_ONCE = 2**22  # from images to points in `esm`, to bound the memory
DIRECTIONS_AT_ONCE = 8  # of the derivatives of `ism`, `ssm` and `ssm_vr`, to bound the memory


# Weights: how the squared errors of different times count.


def _in_space(kind: str, sde: SDE, t: Array, sigma_data: float) -> Array:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return jnp.square(parametrisation.coefficients(alpha, sigma, "noise", kind, sigma_data)[1])


def _likelihood(sde: SDE, t: Array, sigma_data: float) -> Array:
    del sigma_data
    return jnp.square(sde.diffusion(t) / sde.sigma(t))


WEIGHTINGS: dict[str, Callable[[SDE, Array, float], Array]] = {
    **{kind: functools.partial(_in_space, kind) for kind in parametrisation.PREDICTIONS},
    "noise": lambda sde, t, sigma_data: jnp.ones_like(t),  # without rounding
    "likelihood": _likelihood,
}


def weight(sde: SDE, t: Array, weighting: str = "noise", sigma_data: float = 0.5) -> Array:
    """The factor [B] on the squared error of the noise at times t [B].

    `lambda(t) / sigma^2`, where lambda is the weight of the score's squared error. A name of
    `parametrisation.PREDICTIONS` means the squared error in that space: "noise" is `lambda =
    sigma^2` of section 3.3; "edm" is the weight `(r^2 + sigma_data^2) / (r sigma_data)^2` of x_0's
    error, r = sigma / alpha (Karras et al. 2022, arXiv:2206.00364, table 1). "likelihood" is
    `lambda = g^2`, which bounds the likelihood (theorem 1 of Song et al. 2021, "Maximum Likelihood
    Training of Score-Based Diffusion Models", arXiv:2101.09258).

    Raises:
      ValueError: unknown weighting.
    """
    return lookup(WEIGHTINGS, weighting, "training.weighting")(sde, t, sigma_data)


# Objectives for all times. Each takes `weight` [B], 1 by default, and `reduce_mean`: the mean of
# the squared error over dimensions, without the factor 1/2, in place of half its sum.


def dsm(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Array,
    t: Array,
    z: Array,
    *,
    weight: Array | None = None,
    reduce_mean: bool = False,
) -> Losses:
    """Denoising score matching (eq. 7; Vincent 2011) at times t [B], with z [B, ...] normal.

    `lambda(t) |s(x_t, t) - grad log p(x_t | x_0)|^2 / 2` with `x_t = alpha x_0 + sigma z`, where
    the target is `-z / sigma`. So s becomes the score of p_t, the data with noise.
    """
    mean, std = sde.marginal_prob(x0, t)
    error = batch_mul(std, score_fn(mean + batch_mul(std, z), t)) + z
    return _reduce(error, weight, reduce_mean)


def esm(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Array,
    t: Array,
    z: Array,
    points: Array,
    bandwidth: float,
    *,
    weight: Array | None = None,
    reduce_mean: bool = False,
) -> Losses:
    """Explicit score matching against the kernel density estimate of `points` [M, ...].

    `lambda(t) |s(x_t, t) - grad log q_t(x_t)|^2 / 2` (Hyvarinen 2005; Vincent 2011) with `q_t`, the
    estimate with Gaussian kernels of standard deviation `bandwidth` diffused to time t, again a
    mixture of Gaussians: means `alpha x_i`, variance `sigma^2 + alpha^2 bandwidth^2`. x_t is a draw
    from it if x0 are draws from the points. The part `noise_mse` is the error of the score in units
    of the noise's.

    Raises:
      ValueError: points of another shape than x0.
    """
    if points.shape[1:] != x0.shape[1:] or not len(points):
        raise ValueError(f"points are {points.shape}; x0 {x0.shape} needs (M, *{x0.shape[1:]})")
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    std = jnp.sqrt(jnp.square(sigma) + jnp.square(alpha * bandwidth))
    x = batch_mul(alpha, x0) + batch_mul(std, z)
    flat, centres = x.reshape(len(x), -1), points.reshape(len(points), -1)

    def nearest(drawn: tuple[Array, Array, Array]) -> Array:
        """The mean of the points that one image may have come from."""
        x, alpha, std = drawn
        # Squares of differences, not differences of products, which would cancel.
        distances = jnp.sum(jnp.square((x - alpha * centres) / std), 1)
        shares = jax.nn.softmax(-0.5 * distances)
        return jnp.matmul(shares, centres, precision=jax.lax.Precision.HIGHEST)

    images_at_once = max(1, DISTANCES_AT_ONCE // len(centres))
    mean = jax.lax.map(nearest, (flat, alpha, std), batch_size=images_at_once).reshape(x.shape)
    target = batch_mul(1.0 / jnp.square(std), batch_mul(alpha, mean) - x)
    error = batch_mul(sigma, score_fn(x, t) - jax.lax.stop_gradient(target))
    return _reduce(error, weight, reduce_mean)


def ssm(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Array,
    t: Array,
    z: Array,
    directions: Array,
    *,
    weight: Array | None = None,
    reduce_mean: bool = False,
) -> Losses:
    """Sliced score matching along `directions` [K, B, ...] (Song et al. 2019, arXiv:1905.07088).

    `lambda(t) E[v' (grad s) v + (v' s)^2 / 2]` at `x_t = alpha x_0 + sigma z`, averaged over the
    directions v, for which E[v v'] = I. The constant `lambda / sigma^2 D / 2` is added: then the
    mean is that of `dsm`.
    """
    x, score, curvature = _along(sde, score_fn, x0, t, z, directions)
    square = jnp.mean(jnp.square(jnp.sum(directions * score, _axes(directions, 2))), 0)
    return _by_parts(sde, t, square, curvature, x, weight, reduce_mean)


def ssm_vr(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Array,
    t: Array,
    z: Array,
    directions: Array,
    *,
    weight: Array | None = None,
    reduce_mean: bool = False,
) -> Losses:
    """`ssm` with reduced variance: `|s|^2` in place of its estimate `(v' s)^2`."""
    x, score, curvature = _along(sde, score_fn, x0, t, z, directions)
    square = jnp.sum(jnp.square(score), _axes(score))
    return _by_parts(sde, t, square, curvature, x, weight, reduce_mean)


def ism(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Array,
    t: Array,
    z: Array,
    *,
    weight: Array | None = None,
    reduce_mean: bool = False,
) -> Losses:
    """Implicit score matching (Hyvarinen 2005): `lambda (tr grad s + |s|^2 / 2)`.

    At `x_t = alpha x_0 + sigma z`, with the exact trace: the derivatives along all D axes. The
    constant is that of `ssm`.
    """
    axes = probes.exact(jnp.arange(len(x0)), x0.shape[1:])
    return ssm_vr(sde, score_fn, x0, t, z, axes, weight=weight, reduce_mean=reduce_mean)


def _along(
    sde: SDE, score_fn: ScoreFn, x0: Array, t: Array, z: Array, directions: Array
) -> tuple[Array, Array, Array]:
    """x_t, the score s there, and v' (grad s) v [B], averaged over the directions."""
    mean, std = sde.marginal_prob(x0, t)
    x = mean + batch_mul(std, z)
    score, derivative = jax.linearize(lambda x: score_fn(x, t), x)

    def curvature(v: Array) -> Array:
        return jnp.sum(v * derivative(v), _axes(v))

    if len(directions) <= DIRECTIONS_AT_ONCE:
        curvatures = jax.vmap(curvature)(directions)
    else:
        curvatures = jax.lax.map(
            jax.checkpoint(curvature), directions, batch_size=DIRECTIONS_AT_ONCE
        )
    return x, score, jnp.mean(curvatures, 0)


def _by_parts(
    sde: SDE,
    t: Array,
    square: Array,
    divergence: Array,
    x: Array,
    weight: Array | None,
    reduce_mean: bool,
) -> Losses:
    """From `|s|^2` and `div s` [B] to the loss, by `E |sigma s + z|^2 = E [sigma^2 |s|^2 + 2
    sigma^2 div s + D]`, integrated by parts."""
    size = math.prod(x.shape[1:])
    noise_mse = 1.0 + jnp.square(sde.sigma(t)) * (square + 2.0 * divergence) / size
    return _weighted(noise_mse, size, weight, reduce_mean)


# Objectives for discrete noise levels.


def smld(
    sde: VESDE, network: Network, x0: Array, labels: Array, z: Array, reduce_mean: bool = False
) -> Losses:
    """NCSN's objective (eq. 1) at noise levels `labels` [B], counted from the largest sigma down.

    `sigma_i^2 |s(x_0 + sigma_i z, i) + z / sigma_i|^2 / 2`; `network(x, labels)` is the score
    itself.
    """
    sigma = sde.discrete_sigmas[::-1][labels]
    error = batch_mul(sigma, network(x0 + batch_mul(sigma, z), labels)) + z
    return _reduce(error, None, reduce_mean)


def ddpm(
    sde: VariancePreservingSDE,
    network: Network,
    x0: Array,
    labels: Array,
    z: Array,
    reduce_mean: bool = False,
) -> Losses:
    """DDPM's objective (eq. 3; `L_simple` of Ho et al. 2020, eq. 14) at steps `labels` [B].

    `|e(sqrt(abar_i) x_0 + sqrt(1 - abar_i) z, i) - z|^2 / 2`; `network(x, labels)` predicts the
    noise. ValueError where the SDE has no discrete betas (one would reach 1).
    """
    std = sde.sqrt_1m_alphas_cumprod[labels]
    x = batch_mul(sde.sqrt_alphas_cumprod[labels], x0) + batch_mul(std, z)
    return _reduce(network(x, labels) - z, None, reduce_mean)


# The noisy classifier's objective.


def classifier_cross_entropy(
    sde: SDE, class_log_prob: ClassLogProb, x0: Array, y: Array, t: Array, z: Array
) -> Losses:
    """The negative log-likelihood -log q(y | x_t, t) of the classes y [B] of noisy images.

    `x_t = alpha x_0 + sigma z` at times t [B], with the standard-normal draw z [B, ...];
    `class_log_prob` is as `models.class_log_prob` gives it. The minimiser is the posterior
    p_t(y | x_t), whose gradient in x turns the score into that of a class (eq. 14). A class out of
    range has the loss NaN. The part `accuracy` is 1 where y is the likeliest class, else 0.
    """
    mean, std = sde.marginal_prob(x0, t)
    log_prob = class_log_prob(mean + batch_mul(std, z), t)
    y = jnp.where(y < 0, log_prob.shape[1], y)  # out of range, where NumPy would count backwards
    told = jnp.take_along_axis(log_prob, y[:, None], axis=1, mode="fill", fill_value=jnp.nan)
    correct = jnp.argmax(log_prob, axis=1) == y
    return -told[:, 0], {"accuracy": correct.astype(jnp.float32)}


# CLIP's objective.


def contrastive(
    image: Array,
    text: Array,
    scale: Array,
    y: Array,
    gather: Callable[[Array], Array] = lambda rows: rows,
) -> Array:
    """The symmetric contrastive loss [B] of images and their captions, unit vectors [B, E].

    With similarities `s_ij = scale <image_i, text_j>` (Radford et al. 2021, arXiv:2103.00020,
    figure 3), image i's is the mean of `KL(q_i || softmax_j s_ij)` and `KL(q_i || softmax_j s_ji)`.
    Captions of one class say the same, so the target q_i is uniform over all j with y_j = y_i (Yang
    et al. 2022, arXiv:2204.03610); where every class occurs once it is CLIP's own. The entropy of
    q_i is taken off: 0 is perfect, and towers that see nothing have log(B / number of y_i).

    At the minimum s is `log p_t(x | text) / p_t(x)` up to a constant: each direction leaves it a
    function of what it conditions on, x or the text, and the two together leave neither.

    Args:
      gather: from rows of this device to those of all devices, of which each is contrasted.
    """
    images, texts, same = gather(image), gather(text), y[:, None] == gather(y)
    share = same / jnp.sum(same, 1, keepdims=True)
    entropy = jnp.log(jnp.sum(same, 1))

    def divergence(rows: Array, columns: Array) -> Array:
        similarity = scale * jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
        return -jnp.sum(share * jax.nn.log_softmax(similarity), 1) - entropy

    return (divergence(image, texts) + divergence(text, images)) / 2


# The seam to configs.

Own = Callable[[Array, tuple[int, ...]], dict[str, Any]]  # (keys, shape) -> further arguments


def _nothing(config: Any, points: Array | None) -> Own:
    del config, points
    return lambda keys, shape: {}


def _axis_directions(config: Any, points: Array | None) -> Own:
    """Of `ism`: nothing, but the data must be small."""
    size = config.data.image_size**2 * config.data.num_channels
    if size > LARGEST_TRACE:
        raise ValueError(
            f"config.training.objective 'ism' differentiates along every dimension; data of {size} "
            f"have more than {LARGEST_TRACE}: use 'ssm' or 'ssm_vr'"
        )
    return _nothing(config, points)


def _random_directions(config: Any, points: Array | None) -> Own:
    del points
    name, count = config.training.directions, config.training.num_directions
    known = {kind: probes.PROBES[kind] for kind in ("rademacher", "gaussian")}
    probe = lookup(known, name, "training.directions")
    return lambda keys, shape: {"directions": probe(_part(keys, 2), shape, count)}


def _kernels(config: Any, points: Array | None) -> Own:
    bandwidth = config.training.kde_bandwidth

    def own(keys: Array, shape: tuple[int, ...]) -> dict[str, Any]:
        if points is None:
            raise ValueError("config.training.objective 'esm' needs the training images as points")
        return {"points": points, "bandwidth": bandwidth}

    return own


# The objective, and from the config and points to what else it is given.
OBJECTIVES: dict[str, tuple[Callable[..., Losses], Callable[[Any, Array | None], Own]]] = {
    "dsm": (dsm, _nothing),
    "esm": (esm, _kernels),
    "ism": (ism, _axis_directions),
    "ssm": (ssm, _random_directions),
    "ssm_vr": (ssm_vr, _random_directions),
}


def wants_points(config: Any) -> bool:
    """Whether the objective needs the training images themselves, as `from_config`'s `points`."""
    return config.training.objective == "esm"


def from_config(
    config: Any, sde: SDE, points: Array | None = None, captions: Array | None = None
) -> Loss:
    """What `config.training` describes, `loss(network, x0 [B, ...], keys [B], u [B], y=None)`.

    The u in [0, 1) become the times (see `time_draws`), which are the part "t" of the result; all
    else is drawn from the keys, whose first half is that of an independent u. `continuous` trains
    at all times, otherwise at the N levels of SMLD (VE) or DDPM (VP), where independent u are
    replaced by an integer's own draw. The classes y [B] are for the objectives of `models.GUIDES`
    alone: the classifier's network gives logits [B, K]; CLIP's is given tokens as well. The loss of
    "clip" takes a further `gather`, see `contrastive`.

    Args:
      points: [M, ...], scaled as x0, where `wants_points`; the loss refuses to be called without.
      captions: tokens of each class's captions, int32 [K, captions, length], for "clip".

    Raises:
      ValueError: an unknown name, or settings that do not belong together.
    """
    training = config.training
    lookup({**OBJECTIVES, **models.GUIDES}, training.objective, "training.objective")
    lookup(TIME_DRAWS, training.time_draws, "training.time_draws")
    if training.objective == models.CLASSIFIER:
        return _classifier(config, sde)
    if training.objective == models.CLIP_OBJECTIVE:
        return _clip(config, sde, captions)
    return (_continuous if training.continuous else _discrete)(config, sde, points)


def _check_unweighted(training: Any) -> None:
    """Refuses what weighs errors of a score, where there is none."""
    for name, only in (("weighting", ""), ("likelihood_weighting", False)):
        if training[name] != only:
            raise ValueError(
                f"config.training.{name} is {training[name]!r}, which weighs errors of a "
                f"score; config.training.objective {training.objective!r} needs {only!r}"
            )
    if training.time == "likelihood":
        raise ValueError(
            "config.training.time 'likelihood' is for training.weighting 'likelihood', not for "
            f"config.training.objective {training.objective!r}"
        )


def _classifier(config: Any, sde: SDE) -> Loss:
    _check_unweighted(config.training)
    times = times_from_config(config, sde)

    def loss(network: Network, x0: Array, keys: Array, u: Array, y: Array | None = None) -> Losses:
        if y is None:
            raise ValueError("the objective 'classifier' needs the classes of the images")
        t, _ = times(u)
        log_prob = models.class_log_prob(sde, network)
        z = _noise(keys, x0.shape[1:])
        per_image, parts = classifier_cross_entropy(sde, log_prob, x0, y, t, z)
        return per_image, {**parts, "t": t}

    return loss


def _clip(config: Any, sde: SDE, captions: Array | None) -> Loss:
    _check_unweighted(config.training)
    if config.training.accumulation > 1:
        raise ValueError(
            f"config.training.accumulation is {config.training.accumulation}, but objective 'clip' "
            "contrasts all images of a batch; it must be 1"
        )
    times = times_from_config(config, sde)

    def loss(
        network: Callable[..., Any],
        x0: Array,
        keys: Array,
        u: Array,
        y: Array | None = None,
        gather: Callable[[Array], Array] = lambda rows: rows,
    ) -> Losses:
        if y is None or captions is None:
            raise ValueError("the objective 'clip' needs the classes of the images, and captions")
        t, _ = times(u)
        mean, std = sde.marginal_prob(x0, t)
        x = mean + batch_mul(std, _noise(keys, x0.shape[1:]))
        draw = functools.partial(jax.random.randint, shape=(), minval=0, maxval=captions.shape[1])
        own = captions[y, jax.vmap(draw)(_part(keys, 2))]
        tokens = jnp.concatenate([own, captions[:, 0]])
        image, texts, scale = network(x, models.continuous_labels(sde, t), tokens)
        text, names = texts[: len(own)], texts[len(own) :]
        known = jnp.argmax(image @ names.T, axis=1) == y
        per_image = contrastive(image, text, scale, y, gather)
        return per_image, {"accuracy": known.astype(jnp.float32), "t": t}

    return loss


def _continuous(config: Any, sde: SDE, points: Array | None) -> Loss:
    training, model = config.training, config.model
    weighting = _weighting(training)
    objective, own_from_config = OBJECTIVES[training.objective]
    own = own_from_config(config, points)
    times = times_from_config(config, sde)
    if model.prediction not in ("", "score") and model.scale_by_sigma:
        raise ValueError(
            f"config.model.scale_by_sigma divides the network by sigma, which suits a score; "
            f"config.model.prediction {model.prediction!r} needs it False"
        )

    def score_from(network: Network) -> ScoreFn:
        return models.score_fn(
            sde, network, True, prediction=model.prediction, sigma_data=model.sigma_data
        )

    score_from(lambda x, labels: x)  # refuses an unknown prediction

    def loss(network: Network, x0: Array, keys: Array, u: Array, y: Array | None = None) -> Losses:
        del y  # the network has been told already, or is not to be
        t, factor = times(u)
        per_image, parts = objective(
            sde,
            score_from(network),
            x0,
            t,
            _noise(keys, x0.shape[1:]),
            **own(keys, x0.shape[1:]),
            weight=factor * weight(sde, t, weighting, model.sigma_data),
            reduce_mean=bool(training.reduce_mean),
        )
        return per_image, {**parts, "t": t}

    return loss


def _weighting(training: Any) -> str:
    """The name of the weighting, which must suit how the times are drawn."""
    given = training.weighting
    if given not in ("", "likelihood") and training.likelihood_weighting:
        raise ValueError(
            f"config.training.weighting is {given!r}; it contradicts likelihood_weighting=True"
        )
    weighting = given or ("likelihood" if training.likelihood_weighting else "noise")
    lookup(WEIGHTINGS, weighting, "training.weighting")
    if (training.time == "likelihood") and weighting != "likelihood":
        raise ValueError(
            "config.training.time 'likelihood' is for training.weighting 'likelihood', "
            f"not {weighting!r}"
        )
    if weighting == "likelihood" and training.time in ("log_normal", "fixed"):
        raise ValueError(
            "config.training.weighting 'likelihood' bounds the likelihood with training.time "
            f"'uniform' or 'likelihood', not {training.time!r}"
        )
    return weighting


def _discrete(config: Any, sde: SDE, points: Array | None) -> Loss:
    del points
    training = config.training
    if not isinstance(sde, VESDE | VariancePreservingSDE):
        raise ValueError(
            f"config.training.continuous is False, but {type(sde).__name__} has no discrete "
            "objective; vesde (SMLD), vpsde and cosine_vpsde (DDPM) have one"
        )
    if training.likelihood_weighting:
        raise ValueError(
            "config.training.likelihood_weighting needs config.training.continuous=True; "
            "SMLD and DDPM have their own weights"
        )
    for name, only in (("objective", "dsm"), ("weighting", ""), ("time", "uniform")):
        if training[name] != only:
            raise ValueError(
                f"config.training.{name} is {training[name]!r}, which needs config.training."
                f"continuous=True; SMLD and DDPM have {only!r}"
            )
    models.score_fn(sde, lambda x, labels: x, False, prediction=config.model.prediction)
    if isinstance(sde, VariancePreservingSDE):
        sde.step_betas()
    reduce_mean, by_key = bool(training.reduce_mean), training.time_draws == "independent"

    def loss(network: Network, x0: Array, keys: Array, u: Array, y: Array | None = None) -> Losses:
        del y  # the network has been told already, or is not to be
        if by_key:
            draw = functools.partial(jax.random.randint, shape=(), minval=0, maxval=sde.N)
            labels = jax.vmap(draw)(_part(keys, 0))
        else:
            labels = jnp.minimum((u * sde.N).astype(jnp.int32), sde.N - 1)
        z = _noise(keys, x0.shape[1:])
        if isinstance(sde, VESDE):  # whose labels count down, see `models.discrete_labels`
            elapsed = sde.N - 1 - labels
            per_image, parts = smld(sde, network, x0, labels, z, reduce_mean)
        else:
            elapsed = labels
            per_image, parts = ddpm(sde, network, x0, labels, z, reduce_mean)
        return per_image, {**parts, "t": elapsed * (sde.T / max(sde.N - 1, 1))}

    return loss


def _part(keys: Array, part: int) -> Array:
    """Sub-keys [B] for one draw of every image: 0 its time, 1 its noise, 2 its directions."""
    return jax.vmap(lambda key: jax.random.split(key, max(part + 1, 2))[part])(keys)


def _noise(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_part(keys, 1))


# From errors to losses.


def _axes(x: Array, batch_axes: int = 1) -> tuple[int, ...]:
    return tuple(range(batch_axes, x.ndim))


def _reduce(error: Array, weight: Array | None, reduce_mean: bool) -> Losses:
    """Weighted squared error of the noise, per image: averaged, or half the sum."""
    noise_mse = jnp.mean(jnp.square(error), _axes(error))
    return _weighted(noise_mse, error.size // error.shape[0], weight, reduce_mean)


def _weighted(noise_mse: Array, size: int, weight: Array | None, reduce_mean: bool) -> Losses:
    weight = jnp.ones_like(noise_mse) if weight is None else weight
    return weight * noise_mse * (1.0 if reduce_mean else 0.5 * size), {"noise_mse": noise_mse}
