"""Correctors: steps of Langevin dynamics at one time t, whose stationary law is p_t.

A corrector closes over its own settings; a sampler hands it only what every corrector needs.
Algorithm numbers are those of Song et al. 2021 (arXiv:2011.13456) unless another source is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from configs.names import lookup
from diffusion.trajectory import Draws
from sde_lib import SDE, Images, ScoreFn, Times, batch_mul


@runtime_checkable
class Corrector(Protocol):
    """Returns x after `len(zs)` steps at time t, and the last mean before noise.

    The draws `zs` [n, B, ...] are standard normal.
    """

    def __call__(
        self, sde: SDE, score_fn: ScoreFn, x: Images, t: Times, zs: Draws
    ) -> tuple[Images, Images]: ...


# Norms of a batch: from the Euclidean length of each image [B] to the lengths of a step size.


def _image_norms(lengths: Times, axis_name: str | None) -> Array:
    return lengths


def _batch_norm(lengths: Times, axis_name: str | None) -> Array:
    mean = jnp.mean(lengths)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


NORMS: dict[str, Callable[[Array, str | None], Array]] = {
    "image": _image_norms,
    "batch": _batch_norm,
}


# Correctors by their settings.


def langevin(snr: float, norm: str = "image", axis_name: str | None = None) -> Corrector:
    """Langevin dynamics with a step size set by the signal-to-noise ratio (algorithms 4 and 5).

    x' = x + e score + sqrt(2 e) z with e = 2 alpha_i (snr |z| / |score|)^2. (In a handful of
    dimensions the score of one image may vanish, and its step explode: the rule is meant for
    images.)

    Args:
      snr: the signal-to-noise ratio r.
      norm: a name in NORMS. "image": both norms are those of each image; "batch": their means over
        the batch, as the published numbers were made.
      axis_name: the mapped axis over devices that "batch" includes.

    Raises:
      ValueError: unknown norm, or snr not positive.
    """
    _check_snr(snr)
    norms = lookup(NORMS, norm, "corrector_norm")

    def length(v: Images) -> Array:
        return norms(jnp.sqrt(jnp.sum(jnp.square(v), axis=tuple(range(1, v.ndim)))), axis_name)

    def correct(
        sde: SDE, score_fn: ScoreFn, x: Images, t: Times, zs: Draws
    ) -> tuple[Images, Images]:
        alpha = sde.step_alpha(t)

        def step_size(score: Images, z: Images) -> Times:
            return 2.0 * alpha * jnp.square(snr * length(z) / length(score))

        return _steps(score_fn, x, t, zs, step_size)

    return correct


def annealed_langevin(snr: float) -> Corrector:
    """Langevin dynamics with the step size of annealed Langevin dynamics, blind to x.

    e = 2 alpha_i (snr sigma(t))^2: Song and Ermon 2019 (arXiv:1907.05600), algorithm 1.

    Args:
      snr: the signal-to-noise ratio r.

    Raises:
      ValueError: snr not positive.
    """
    _check_snr(snr)

    def correct(
        sde: SDE, score_fn: ScoreFn, x: Images, t: Times, zs: Draws
    ) -> tuple[Images, Images]:
        size = 2.0 * sde.step_alpha(t) * jnp.square(snr * sde.sigma(t))
        return _steps(score_fn, x, t, zs, lambda score, z: size)

    return correct


def no_corrector() -> Corrector:
    """The corrector that leaves x as it is: sampling by the predictor alone."""

    def correct(
        sde: SDE, score_fn: ScoreFn, x: Images, t: Times, zs: Draws
    ) -> tuple[Images, Images]:
        return x, x

    return correct


def _check_snr(snr: float) -> None:
    if snr <= 0:
        raise ValueError(f"snr must be positive, not {snr}")


def _steps(
    score_fn: ScoreFn,
    x: Images,
    t: Times,
    zs: Draws,
    step_size: Callable[[Array, Array], Array],
) -> tuple[Images, Images]:
    def step(carry: tuple[Array, Array], z: Images) -> tuple[tuple[Array, Array], None]:
        x, _ = carry
        score = score_fn(x, t)
        size = step_size(score, z)
        x_mean = x + batch_mul(size, score)
        return (x_mean + batch_mul(jnp.sqrt(2.0 * size), z), x_mean), None

    end, _ = jax.lax.scan(step, (x, x), zs)
    return end


# Each takes those of the settings `snr`, `norm` and `axis_name` that its parameters name.
CORRECTORS: dict[str, Callable[..., Corrector]] = {
    "langevin": langevin,
    "ald": annealed_langevin,
    "none": no_corrector,
}


def corrector_of(name: str, snr: float, norm: str, axis_name: str | None) -> Corrector:
    """The corrector that CORRECTORS calls `name`, made with those of the settings that it takes.

    Raises:
      ValueError: unknown name or norm, or a number out of range.
    """
    make = lookup(CORRECTORS, name, "corrector")
    lookup(NORMS, norm, "corrector_norm")
    settings = {"snr": snr, "norm": norm, "axis_name": axis_name}
    return make(**{key: settings[key] for key in inspect.signature(make).parameters})
