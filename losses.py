"""Objectives whose minimiser is the score.

Each is a function of a network or score function, images `x0` [B, ...] and its random draws, and
returns its error `noise_mse` [B]: the mean squared error per dimension of the noise that the
network predicts. It is 1 for a network that predicts nothing, and comparable across objectives,
weightings and image sizes. Objectives that never see the noise (`ism`, `ssm`, `ssm_vr`) return an
estimate of it with the same mean. `weighted` makes it the loss, in one place for all of them.

`docs/objectives.md` has them in a table. Equation numbers are those of Song et al. 2021
(arXiv:2011.13456), unless another source is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from ml_collections import ConfigDict

import models
from configs.names import lookup
from configs.shapes import example_shape
from diffusion import probes, training_draws
from diffusion.times import TIME_DRAWS, times_from_config
from diffusion.weighting import WEIGHTINGS, Losses, weight, weighted, weighting_from_config
from models import flow_maps, guide_losses
from models.guide_losses import Classes, classifier_cross_entropy, contrastive
from models.score import Labels, Network
from sde_lib import (
    SDE,
    VESDE,
    AnyArray,
    Arrays,
    Images,
    Keys,
    ScoreFn,
    Times,
    VariancePreservingSDE,
    batch_mul,
)

__all__ = [
    "OBJECTIVES", "WEIGHTINGS", "Loss", "Losses", "Network", "ScoreMatching",
    "classifier_cross_entropy", "contrastive", "ddpm", "dsm", "esm", "from_config", "ism",
    "smld", "ssm", "ssm_vr", "wants_points", "weight", "weighted",
]  # fmt: skip

Directions = Float[AnyArray, "directions batch *image"]  # [K, B, ...]
Known = Classes | None
Pair = Callable[[Images, Images], tuple[Images, Images]] | None  # of x_0 and z
Loss = Callable[..., Losses]  # (network, x0 [B, ...], keys [B], u [B], y [B] or None)

LARGEST_TRACE = 64  # dimensions of which `ism` takes the exact trace, a derivative for each
DISTANCES_AT_ONCE = 2**22  # from images to points in `esm`, to bound the memory
DIRECTIONS_AT_ONCE = 8  # of the derivatives of `ism`, `ssm` and `ssm_vr`, to bound the memory


# Objectives for all times t [B], with z [B, ...] standard normal and `x_t = alpha x_0 + sigma z`.


def dsm(sde: SDE, score_fn: ScoreFn, x0: Images, t: Times, z: Images) -> Times:
    """Denoising score matching (eq. 7; Vincent 2011).

    `sigma^2 |s(x_t, t) - grad log p(x_t | x_0)|^2 / D` [B], where the target is `-z / sigma`. So s
    becomes the score of p_t, the data with noise.
    """
    mean, std = sde.marginal_prob(x0, t)
    return _mean_square(batch_mul(std, score_fn(mean + batch_mul(std, z), t)) + z)


def esm(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Images,
    t: Times,
    z: Images,
    points: Arrays,
    bandwidth: float,
) -> Times:
    """Explicit score matching against the kernel density estimate of `points` [M, ...].

    `sigma^2 |s(x_t, t) - grad log q_t(x_t)|^2 / D` [B] (Hyvarinen 2005; Vincent 2011) with `q_t`,
    the estimate with Gaussian kernels of standard deviation `bandwidth` diffused to time t, again a
    mixture of Gaussians: means `alpha x_i`, variance `sigma^2 + alpha^2 bandwidth^2`. Here x_t is
    `alpha x_0` with noise of that variance: a draw from q_t if x0 are draws from the points.

    Raises:
      ValueError: points of another shape than x0.
    """
    if points.shape[1:] != x0.shape[1:] or not len(points):
        raise ValueError(f"points are {points.shape}; x0 {x0.shape} needs (M, *{x0.shape[1:]})")
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    std = jnp.sqrt(jnp.square(sigma) + jnp.square(alpha * bandwidth))
    x = batch_mul(alpha, x0) + batch_mul(std, z)
    flat, centres = x.reshape(len(x), -1), points.reshape(len(points), -1)

    def expected_point(image: tuple[Array, Array, Array]) -> Array:
        """The mean of the points that one image may have come from."""
        x, alpha, std = image
        # Squares of differences, not differences of products, which would cancel.
        distances = jnp.sum(jnp.square((x - alpha * centres) / std), 1)
        shares = jax.nn.softmax(-0.5 * distances)
        return jnp.matmul(shares, centres, precision=jax.lax.Precision.HIGHEST)

    images_at_once = max(1, DISTANCES_AT_ONCE // len(centres))
    mean = jax.lax.map(expected_point, (flat, alpha, std), batch_size=images_at_once)
    mean = mean.reshape(x.shape)
    target = batch_mul(1.0 / jnp.square(std), batch_mul(alpha, mean) - x)
    return _mean_square(batch_mul(sigma, score_fn(x, t) - jax.lax.stop_gradient(target)))


def ssm(
    sde: SDE, score_fn: ScoreFn, x0: Images, t: Times, z: Images, directions: Directions
) -> Times:
    """Sliced score matching along `directions` [K, B, ...] (Song et al. 2019, arXiv:1905.07088).

    `1 + sigma^2 E[2 v' (grad s) v + (v' s)^2] / D` [B] at x_t, averaged over the directions v, for
    which E[v v'] = I. The 1 is a constant that makes the mean that of `dsm`.
    """
    score, curvature = _along(sde, score_fn, x0, t, z, directions)
    square = jnp.mean(jnp.square(jnp.sum(directions * score, _axes(directions, 2))), 0)
    return _by_parts(sde, t, square, curvature, math.prod(x0.shape[1:]))


def ssm_vr(
    sde: SDE, score_fn: ScoreFn, x0: Images, t: Times, z: Images, directions: Directions
) -> Times:
    """`ssm` with reduced variance: `|s|^2` in place of its estimate `(v' s)^2`."""
    score, curvature = _along(sde, score_fn, x0, t, z, directions)
    square = jnp.sum(jnp.square(score), _axes(score))
    return _by_parts(sde, t, square, curvature, math.prod(x0.shape[1:]))


def ism(sde: SDE, score_fn: ScoreFn, x0: Images, t: Times, z: Images) -> Times:
    """Implicit score matching (Hyvarinen 2005): `1 + sigma^2 (2 tr grad s + |s|^2) / D` [B].

    `ssm_vr` with the exact trace: the derivatives along all D axes.
    """
    axes = probes.exact(jnp.arange(len(x0)), x0.shape[1:])
    return ssm_vr(sde, score_fn, x0, t, z, axes)


def _along(
    sde: SDE, score_fn: ScoreFn, x0: Images, t: Times, z: Images, directions: Directions
) -> tuple[Images, Times]:
    """The score s at x_t, and v' (grad s) v [B], averaged over the directions."""
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
    return score, jnp.mean(curvatures, 0)


def _by_parts(sde: SDE, t: Times, square: Times, divergence: Times, size: int) -> Times:
    """`noise_mse` from `|s|^2` and `div s` [B] for images of D = `size` dimensions.

    `E |sigma s + z|^2 = E [sigma^2 |s|^2 + 2 sigma^2 div s + D]`, integrated by parts.
    """
    return 1.0 + jnp.square(sde.sigma(t)) * (square + 2.0 * divergence) / size


# Objectives for discrete noise levels.


def smld(sde: VESDE, network: Network, x0: Images, labels: Labels, z: Images) -> Times:
    """NCSN's objective (eq. 1) at noise levels `labels` [B], counted from the largest sigma down.

    `sigma_i^2 |s(x_0 + sigma_i z, i) + z / sigma_i|^2 / D` [B]; `network(x, labels)` is the score
    itself.
    """
    sigma = sde.discrete_sigmas[::-1][labels]
    return _mean_square(batch_mul(sigma, network(x0 + batch_mul(sigma, z), labels)) + z)


def ddpm(
    sde: VariancePreservingSDE, network: Network, x0: Images, labels: Labels, z: Images
) -> Times:
    """DDPM's objective (eq. 3; `L_simple` of Ho et al. 2020, eq. 14) at steps `labels` [B].

    `|e(sqrt(abar_i) x_0 + sqrt(1 - abar_i) z, i) - z|^2 / D` [B]; `network(x, labels)` predicts the
    noise. ValueError where the SDE has no discrete betas (one would reach 1).
    """
    std = sde.sqrt_1m_alphas_cumprod[labels]
    x = batch_mul(sde.sqrt_alphas_cumprod[labels], x0) + batch_mul(std, z)
    return _mean_square(network(x, labels) - z)


def _mean_square(error: Images) -> Times:
    """Mean over the dimensions of each image [B] of the squared error of the noise [B, ...]."""
    return jnp.mean(jnp.square(error), _axes(error))


def _axes(x: Arrays, batch_axes: int = 1) -> tuple[int, ...]:
    return tuple(range(batch_axes, x.ndim))


# The seam to configs.

Arguments = Callable[[Keys, tuple[int, ...]], dict[str, Any]]  # keys [B], shape -> by name


def _no_arguments(config: ConfigDict, points: Array | None) -> Arguments:
    del config, points
    return lambda keys, shape: {}


def _exact_trace(config: ConfigDict, points: Array | None) -> Arguments:
    """The arguments of `ism`: none, but the data must be small."""
    size = math.prod(example_shape(config.data))
    if size > LARGEST_TRACE:
        raise ValueError(
            f"config.training.objective 'ism' differentiates along every dimension; data of {size} "
            f"have more than {LARGEST_TRACE}: use 'ssm' or 'ssm_vr'"
        )
    return _no_arguments(config, points)


def _random_directions(config: ConfigDict, points: Array | None) -> Arguments:
    del points
    name, count = config.training.directions, config.training.num_directions
    random = {kind: probes.PROBES[kind] for kind in ("rademacher", "gaussian")}
    probe = lookup(random, name, "training.directions")

    def arguments(keys: Keys, shape: tuple[int, ...]) -> dict[str, Any]:
        keys = training_draws.part_of(keys, training_draws.FURTHER)
        return {"directions": probe(keys, shape, count)}

    return arguments


def _kernels(config: ConfigDict, points: Array | None) -> Arguments:
    bandwidth = config.training.kde_bandwidth

    def arguments(keys: Keys, shape: tuple[int, ...]) -> dict[str, Any]:
        if points is None:
            raise ValueError("config.training.objective 'esm' needs the training images as points")
        return {"points": points, "bandwidth": bandwidth}

    return arguments


class ScoreMatching(NamedTuple):
    """A line of `OBJECTIVES`.

    Attributes:
      noise_mse: the objective, (sde, score_fn, x0, t, z, and further arguments by name) -> [B].
      arguments: from the config and the points to those further arguments.
      needs_points: True if it is shown training images, as `from_config`'s `points`.
    """

    noise_mse: Callable[..., Array]
    arguments: Callable[[ConfigDict, Array | None], Arguments] = _no_arguments
    needs_points: bool = False


# A new objective is a function such as `dsm`, and a line here.
OBJECTIVES: dict[str, ScoreMatching] = {
    "dsm": ScoreMatching(dsm),
    "esm": ScoreMatching(esm, _kernels, needs_points=True),
    "ism": ScoreMatching(ism, _exact_trace),
    "ssm": ScoreMatching(ssm, _random_directions),
    "ssm_vr": ScoreMatching(ssm_vr, _random_directions),
}

# Objectives of other networks than a score's, whose losses have a file of their own.
GUIDES: dict[str, Callable[[ConfigDict, SDE, Array | None], Loss]] = guide_losses.LOSSES
FLOW_MAPS: dict[str, Callable[[ConfigDict, SDE, ScoreFn | None], Loss]] = flow_maps.LOSSES


def wants_points(config: ConfigDict) -> bool:
    """True if the objective needs the training images themselves, as `from_config`'s `points`."""
    return config.training.objective in [n for n, line in OBJECTIVES.items() if line.needs_points]


def from_config(
    config: ConfigDict,
    sde: SDE,
    points: Array | None = None,
    captions: Array | None = None,
    teacher: ScoreFn | None = None,
) -> Loss:
    """The loss of `config.training`: `loss(network, x0 [B, ...], keys [B], u [B], y=None)`.

    It returns a number for each image [B] and its named parts [B]. The u in [0, 1) become times,
    the part "t"; all else is drawn from the keys, the first part of which made u where it is
    independent (see `training_draws`). `continuous` trains at all times, otherwise at the N levels
    of SMLD (VE) or DDPM (VP), integers. The classes y [B] are for the objectives of `models.GUIDES`
    alone: the classifier's network gives logits [B, K]; CLIP's reads tokens as well. The loss of
    "clip" takes a further `gather`, see `contrastive`, that of a score a `pair`, see `coupling`,
    that of a flow map the `step`.

    Args:
      points: [M, ...], scaled as x0, where `wants_points`; the loss refuses to be called without.
      captions: tokens of each class's captions, int32 [K, captions, length], for "clip".
      teacher: E[x_0 | x] of the run whose flow a map of `flow_maps` learns; None: of single paths.

    Raises:
      ValueError: an unknown name, or settings that do not belong together.
    """
    training = config.training
    lookup({**OBJECTIVES, **FLOW_MAPS, **GUIDES}, training.objective, "training.objective")
    lookup(TIME_DRAWS, training.time_draws, "training.time_draws")
    if training.objective in GUIDES:
        return GUIDES[training.objective](config, sde, captions)
    if training.objective in FLOW_MAPS:
        return FLOW_MAPS[training.objective](config, sde, teacher)
    return _continuous(config, sde, points) if training.continuous else _discrete(config, sde)


def _continuous(config: ConfigDict, sde: SDE, points: Array | None) -> Loss:
    """The loss of an objective for all times."""
    training, model = config.training, config.model
    weighting, reduce_mean = weighting_from_config(training), bool(training.reduce_mean)
    objective = OBJECTIVES[training.objective]
    arguments = objective.arguments(config, points)
    times = times_from_config(config, sde)
    if model.prediction not in ("", "score") and model.scale_by_sigma:
        raise ValueError(
            f"config.model.scale_by_sigma divides the network by sigma, which suits a score; "
            f"config.model.prediction {model.prediction!r} needs it False"
        )

    predicted: Any = {"prediction": model.prediction, "sigma_data": model.sigma_data}

    def score_from(network: Network) -> ScoreFn:
        return models.score_fn(sde, network, True, **predicted)

    score_from(lambda x, labels: x)  # refuses an unknown prediction

    def loss(
        network: Network, x0: Images, keys: Keys, u: Times, y: Known = None, pair: Pair = None
    ) -> Losses:
        del y  # the network sees the classes by itself, if at all
        t, factor = times(u)
        shape = x0.shape[1:]
        z = training_draws.noise(keys, shape)
        x0, z = pair(x0, z) if pair else (x0, z)
        further = arguments(keys, shape)
        weights = factor * weight(sde, t, weighting, model.sigma_data)
        noise_mse = objective.noise_mse(sde, score_from(network), x0, t, z, **further)
        per_image, parts = weighted(noise_mse, math.prod(shape), weights, reduce_mean)
        return per_image, {**parts, "t": t}

    return loss


def _discrete(config: ConfigDict, sde: SDE) -> Loss:
    """The loss of SMLD or DDPM, at the N noise levels of the SDE."""
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
    usual = {"objective": "dsm", "weighting": "", "time": "uniform", "coupling": "independent"}
    for name, only in usual.items():
        if training[name] != only:
            raise ValueError(
                f"config.training.{name} is {training[name]!r}, which needs config.training."
                f"continuous=True; SMLD and DDPM have {only!r}"
            )
    models.score_fn(sde, lambda x, labels: x, False, prediction=config.model.prediction)
    if isinstance(sde, VariancePreservingSDE):
        sde.step_betas()
    reduce_mean, by_key = bool(training.reduce_mean), training.time_draws == "independent"

    def loss(network: Network, x0: Images, keys: Keys, u: Times, y: Known = None) -> Losses:
        del y  # the network sees the classes by itself, if at all
        if by_key:
            labels = training_draws.integers(keys, training_draws.TIME, sde.N)
        else:
            labels = jnp.minimum((u * sde.N).astype(jnp.int32), sde.N - 1)
        z = training_draws.noise(keys, x0.shape[1:])
        if isinstance(sde, VESDE):  # whose labels count down, see `models.discrete_labels`
            elapsed, noise_mse = sde.N - 1 - labels, smld(sde, network, x0, labels, z)
        else:
            elapsed, noise_mse = labels, ddpm(sde, network, x0, labels, z)
        per_image, parts = weighted(noise_mse, math.prod(x0.shape[1:]), reduce_mean=reduce_mean)
        return per_image, {**parts, "t": elapsed * (sde.T / max(sde.N - 1, 1))}

    return loss
