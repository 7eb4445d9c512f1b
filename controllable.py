"""Control: guidance maps score functions to score functions; in-filling holds what is known.

Equation numbers are those of Song et al. 2021 (arXiv:2011.13456). Images are x [B, ...], times
t [B]. A guided or in-filled score is a score function like any other, so every predictor,
corrector, few-step solver and ODE serves it. Conditions (classes, known values) have the batch axis
of x; adaptive solvers ask for one image at a time, so there each image is sampled on its own, with
a batch of one under `vmap`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import sampling
from diffusion.noise import Noise
from diffusion.trajectory import Samples, all_finite, denoised, drive
from sde_lib import SDE, ScoreFn, batch_mul

Array = jax.Array
LogLikelihood = Callable[[Array, Array], Array]  # (x [B, ...], t [B]) -> log p_t(y | x) [B]
Scale = float | Callable[[Array], Array]  # of guidance: a number, or a function of t [B]


# Guidance.


def guided(score_fn: ScoreFn, log_likelihood: LogLikelihood, scale: Scale = 1.0) -> ScoreFn:
    """The score of p_t(x | y): score(x, t) + scale grad_x log p_t(y | x) (eq. 14).

    With the exact likelihood and scale 1 this is the score of the posterior. Another scale is that
    of p_t(x) p_t(y | x)^scale, which sharpens the condition (Dhariwal and Nichol 2021,
    arXiv:2105.05233).

    Args:
      log_likelihood: row b must depend on row b of x and t alone.
    """

    def total(x: Array, t: Array) -> Array:
        return jnp.sum(log_likelihood(x, t))

    return lambda x, t: score_fn(x, t) + batch_mul(_at(scale, t), jax.grad(total)(x, t))


def of_class(class_log_prob: Callable[[Array, Array], Array], y: Array) -> LogLikelihood:
    """log p_t(y | x) of the classes y [B], from all classes' [B, K]; see `models.class_log_prob`.

    A class out of range has the likelihood NaN.

    Raises:
      ValueError: (when it is called) there are not as many classes as images.
    """

    def log_likelihood(x: Array, t: Array) -> Array:
        every = class_log_prob(x, t)
        if len(y) != len(every):
            raise ValueError(f"{len(y)} classes for {len(every)} images")
        index = jnp.where(y < 0, every.shape[1], y)[:, None]
        return jnp.take_along_axis(every, index, axis=1, mode="fill", fill_value=jnp.nan)[:, 0]

    return log_likelihood


def classifier_free(score_fn: ScoreFn, conditional_fn: ScoreFn, scale: Scale) -> ScoreFn:
    """score + scale (conditional - score): Ho and Salimans 2022 (arXiv:2207.12598).

    Scale 0 is the unconditional score, 1 the conditional one; their weight w is scale - 1. With
    exact scores it is `guided` by the likelihood p_t(y | x).
    """

    def combined(x: Array, t: Array) -> Array:
        free = score_fn(x, t)
        return free + batch_mul(_at(scale, t), conditional_fn(x, t) - free)

    return combined


def within(low: float, high: float, scale: float, outside: float) -> Callable[[Array], Array]:
    """A scale that acts at times low < t <= high only, and is `outside` elsewhere.

    Kynkäänniemi et al. 2024 (arXiv:2404.07724) guide at middle noise levels only; `outside` is 1
    for `classifier_free`, where the conditional score remains, and 0 for `guided`.

    Raises:
      ValueError: not low < high.
    """
    if not low < high:
        raise ValueError(f"the guidance interval ({low:g}, {high:g}] is empty; use low < high")
    return lambda t: jnp.where((t > low) & (t <= high), scale, outside)


def times_of_noise(sde: SDE, low: float, high: float) -> tuple[float, float]:
    """The times in [0, T] at which the noise level sigma / alpha is `low` and `high`."""
    with jax.ensure_compile_time_eval():
        levels = jnp.maximum(jnp.array([low, high], jnp.float32), 1e-12)
        first, last = np.asarray(sde.time_of_log_snr(-2.0 * jnp.log(levels)))
    return max(float(first), 0.0), min(float(last), sde.T)


def _at(scale: Scale, t: Array) -> Array:
    return scale(t) if callable(scale) else jnp.full_like(t, scale)


# What is known of an image: its component in a linear subspace.


class Known(Protocol):
    """The orthogonal projection P x_0 = P `values` of images is known.

    Attributes:
      values: [B, ...], of which only the known component matters.
    """

    @property
    def values(self) -> Array: ...

    def impose(self, x: Array, values: Array) -> Array:
        """x with its known component replaced by that of `values`: (I - P) x + P values."""
        ...


# Columns: grey, and two colours orthogonal to it and to each other.
GREY_AND_COLOURS = np.array(
    [
        [1 / math.sqrt(3), -2 / math.sqrt(6), 0.0],
        [1 / math.sqrt(3), 1 / math.sqrt(6), 1 / math.sqrt(2)],
        [1 / math.sqrt(3), 1 / math.sqrt(6), -1 / math.sqrt(2)],
    ]
)


@dataclasses.dataclass(frozen=True)
class Masked:
    """Entries are known where a mask is 1, in the pixel basis or in a rotated one.

    Attributes:
      values: [B, H, W, C] in the pixel basis.
      mask: 1 where known, 0 elsewhere; broadcasts to `values`, and refers to the rotated basis.
      basis: orthogonal matrix [C, C] whose columns are the new channels; None: the pixels' own.
    """

    values: Array
    mask: Array
    basis: Array | None = None

    def impose(self, x: Array, values: Array) -> Array:
        """x with the known entries of `values`, exactly those in the pixel basis."""
        if self.basis is None:
            return jnp.where(self.mask > 0, values, x)
        return jnp.where(self.mask > 0, values @ self.basis, x @ self.basis) @ self.basis.T


def in_painting(images: Array, mask: Array) -> Masked:
    """`images` [B, H, W, C] are known where `mask` is 1 (appendix I.2).

    Raises:
      ValueError: a mask that does not broadcast to the images.
    """
    check_mask_shape(mask, images.shape)
    return Masked(images, jnp.asarray(mask))


def colourisation(grey: Array) -> Masked:
    """The grey part of red, green and blue is known (appendix I.3), from `grey` [B, H, W, 1 or 3].

    An orthonormal matrix decouples x into channels of which the first is the grey part,
    (R + G + B) / sqrt(3): in that basis colourisation is in-painting. Any image may stand for
    `grey`; its colours are ignored.

    Raises:
      ValueError: images without three colour channels.
    """
    if grey.shape[-1] not in (1, 3):
        raise ValueError(f"colourisation needs images of 3 channels, not {grey.shape[-1]}")
    values = jnp.broadcast_to(grey, (*grey.shape[:-1], 3))
    mask = jnp.array([1.0, 0.0, 0.0], values.dtype)
    return Masked(values, mask, jnp.asarray(GREY_AND_COLOURS, values.dtype))


def check_mask_shape(mask: Any, shape: tuple[int, ...]) -> None:
    """Refuses a mask that does not broadcast to images of this shape."""
    try:
        fits = np.broadcast_shapes(np.shape(mask), shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"the mask is {np.shape(mask)}, which does not fit images of {shape}")


def check_mask(mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuses a mask (on the host) that does not fit, or holds anything but 0 and 1.

    Raises:
      ValueError: says which shape or values.
    """
    check_mask_shape(mask, shape)
    strange = np.setdiff1d(mask, [0, 1])
    if len(strange):
        raise ValueError(f"a mask is 0 (unknown) or 1 (known) everywhere; it has {strange[0]:g}")


# In-filling as a score function.


def infilled(sde: SDE, score_fn: ScoreFn, known: Known) -> ScoreFn:
    """The score of p_t(x | known): exact in the known component, the network's in the other.

    The known component of x_t is N(alpha P values, sigma^2) whatever the other is, so its score is

        P (alpha values - x) / sigma^2,

    and a sampler carries it from noise to `values` itself. The other component gets
    (I - P) score(x, t), the score of p_t(unknown | known component of x_t): the approximation of
    appendix I.2, with the noised known part that the sampler itself carries. It says less than
    p_t(unknown | values) while there is noise; `repaint` and `inverse.posterior_guided` do better.
    A solver that ends on E[x_0 | x] ends on `values` up to rounding; others leave the noise of the
    last time on them, and `known.impose` takes it off. The score of the known component is as sharp
    as that of one data point: `sampling.pc_sampler` needs steps below sigma^2 / g^2 at the last
    time for it, of which there are hundreds; `pc_infill` does not.
    """

    def conditional(x: Array, t: Array) -> Array:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        toward = batch_mul(1.0 / jnp.square(sigma), batch_mul(alpha, known.values) - x)
        return known.impose(score_fn(x, t), toward)

    return conditional


# In-filling by replacement after each step.


def noised(sde: SDE, known: Known, x: Array, t: Array, z: Array) -> Array:
    """x with its known component replaced by a draw from p(x_t | values), with noise z."""
    mean, std = sde.marginal_prob(known.values, t)
    return known.impose(x, mean + batch_mul(std, z))


def pc_infill(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    known: Known,
    *,
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    snr: float = 0.16,
    n_steps_each: int = 1,
    denoise: bool = True,
    eps: float | None = None,
    probability_flow: bool = False,
    corrector_norm: str = "image",
    official: bool = False,
) -> Samples:
    """Predictor-corrector sampling that noises the known part anew after every update (appendix I).

    Draws of `noise`: the prior's; then at each time `n_steps_each` for the corrector, one for the
    known part, one for the predictor, one for the known part ('none' takes none of its own).

    Args:
      denoise: return the predictor's last mean, with the known values as they are.
      official: as the original code, which begins with known values that are not noised (and with
        a prior masked before it is rotated), takes the noise of the known part in the basis of the
        mask, and denoises the known part only, not what it fills in.

    The others are those of `sampling.pc_sampler`.

    Raises:
      ValueError: unknown name, nothing to do, a number out of range, or `official` without a mask.
    """
    predict, correct, predictions, corrections = sampling.moves(
        predictor, corrector, n_steps_each, snr, corrector_norm
    )
    x = sde.prior_sampling(noise(0))
    if official:
        if not isinstance(known, Masked):
            raise ValueError("the official start is defined for masks: in-painting, colourisation")
        x = known.impose(jnp.zeros_like(x), known.values) + x * (1.0 - known.mask)

    def renewed(x: Array, t: Array, z: Array) -> Array:
        if official and isinstance(known, Masked) and known.basis is not None:
            z = z @ known.basis.T
        return noised(sde, known, x, t, z)

    def step(x: Array, x_mean: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        time, draw = at
        t = jnp.full(x.shape[0], time)
        if corrections:
            zs = jax.lax.map(noise, draw + jnp.arange(corrections))
            x, _ = correct(sde, score_fn, x, t, zs, snr, corrector_norm)
        draw += corrections
        x = renewed(x, t, noise(draw))
        z = noise(draw + 1) if predictions and not probability_flow else jnp.zeros_like(x)
        x, x_mean = predict(sde, score_fn, x, t, z, probability_flow)
        x = renewed(x, t, noise(draw + 1 + predictions))
        if official:
            x_mean = known.impose(x, sde.marginal_prob(known.values, t)[0])
        return x, x_mean

    times = sampling.sampling_times(sde, sde.sampling_eps if eps is None else eps)
    draws = 1 + (corrections + predictions + 2) * jnp.arange(sde.N)
    x, x_mean, _ = drive(step, x, x, (jnp.asarray(times), draws))
    if denoise:
        x = x_mean if official else known.impose(x_mean, known.values)
    return Samples(x, sde.N * (corrections + predictions), all_finite(x))


def travel(num_steps: int, jump: int, repeats: int) -> np.ndarray:
    """The indices of a time grid in the order of their visits, when time is travelled back.

    Stretches of `jump` steps from `num_steps` + 1 times are each walked `repeats` times before the
    next; (3, 2, 2) gives 0 1 2 0 1 2 3 2 3.

    Raises:
      ValueError: a number below 1.
    """
    if min(num_steps, jump, repeats) < 1:
        raise ValueError(
            f"{num_steps} steps, jump {jump}, repeats {repeats}: all must be 1 or more"
        )
    visits = [0]
    for start in range(0, num_steps, jump):
        stretch = list(range(start + 1, min(start + jump, num_steps) + 1))
        visits += stretch + (repeats - 1) * [start, *stretch]
    return np.array(visits)


def repaint(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    known: Known,
    *,
    jump: int = 1,
    repeats: int = 1,
) -> Samples:
    """In-filling with resampling (RePaint, Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1).

    Ancestral steps on the grid `times`, for every SDE, with the known part noised anew after each.
    After every `jump` steps x is noised back over them and they are taken again, until it was done
    `repeats` times: the filled part can then adapt to the known one, which never listens. The noise
    of several forward steps is drawn at once. The result is E[x_0 | x] with the known values in
    place, for one evaluation more. Draws: the prior's, then two for each move.

    Args:
      times: decreasing, [M + 1]; see `grids.time_grid`.

    Raises:
      ValueError: jump or repeats below 1.
    """
    visits = np.asarray(times)[travel(len(times) - 1, jump, repeats)]
    moves = (visits[:-1], visits[1:], visits[1:] > visits[:-1])

    def step(x: Array, memory: None, at: Any) -> tuple[Array, None]:
        start, end, back, draw = at
        t, s = jnp.full(x.shape[0], start), jnp.full(x.shape[0], end)
        z = noise(draw)

        def again(x: Array) -> Array:
            a, variance = sde.transition(s, t)
            return batch_mul(a, x) + batch_mul(jnp.sqrt(variance), z)

        def onward(x: Array) -> Array:
            mean, std = sde.posterior(x, score_fn(x, t), t, s)
            return noised(sde, known, mean + batch_mul(std, z), s, noise(draw + 1))

        return jax.lax.cond(back, again, onward, x), None

    draws = 1 + 2 * jnp.arange(len(visits) - 1)
    x = sde.prior_sampling(noise(0))
    inputs = (*(jnp.asarray(v, x.dtype) for v in moves[:2]), jnp.asarray(moves[2]), draws)
    x, _, _ = drive(step, x, None, inputs)
    x = known.impose(denoised(sde, score_fn, x, times[-1]), known.values)
    return Samples(x, int(np.sum(~moves[2])) + 1, all_finite(x))
