"""Control: guidance maps score functions to score functions; in-filling keeps a known part.

Equation numbers are those of Song et al. 2021 (arXiv:2011.13456). Images are x [B, ...], times
t [B]. A guided or in-filled score is a score function like any other, so every predictor,
corrector, few-step solver and ODE serves it. Conditions (classes, known values) have the batch axis
of x; adaptive solvers ask for one image at a time, so there each image is sampled on its own, with
a batch of one under `vmap`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, Unpack, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

import sampling
from diffusion import grids
from diffusion.guidance import LogLikelihood as LogLikelihood
from diffusion.guidance import Scale as Scale
from diffusion.guidance import classifier_free as classifier_free
from diffusion.guidance import guided as guided
from diffusion.guidance import of_class as of_class
from diffusion.guidance import times_of_noise as times_of_noise
from diffusion.guidance import within as within
from diffusion.noise import Noise
from diffusion.trajectory import Samples, denoised, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn, Times, batch_mul

# The known part of an image: its component in a linear subspace.


@runtime_checkable
class Constraint(Protocol):
    """The orthogonal projection P x_0 = P `values` of images is known.

    Attributes:
      values: [B, ...], of which only the known component matters.
    """

    @property
    def values(self) -> Array: ...

    def impose(self, x: Images, values: Images) -> Images:
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
class MaskConstraint:
    """Entries are known where a mask is 1, in the pixel basis or in a rotated one.

    Attributes:
      values: [B, H, W, C] in the pixel basis.
      mask: 1 where known, 0 elsewhere; broadcasts to `values`, and refers to the rotated basis.
      basis: orthogonal matrix [C, C] whose columns are the new channels; None: the pixels' own.
    """

    values: Images
    mask: Array
    basis: Array | None = None

    def impose(self, x: Images, values: Images) -> Images:
        """x with the known entries of `values`, exactly those in the pixel basis."""
        if self.basis is None:
            return jnp.where(self.mask > 0, values, x)
        return jnp.where(self.mask > 0, values @ self.basis, x @ self.basis) @ self.basis.T


def in_painting(images: Array, mask: ArrayLike) -> MaskConstraint:
    """The constraint of `images` [B, H, W, C] that are known where `mask` is 1 (appendix I.2).

    Raises:
      ValueError: a mask that does not broadcast to the images.
    """
    check_mask_shape(mask, images.shape)
    return MaskConstraint(images, jnp.asarray(mask))


def colourisation(grey: Array) -> MaskConstraint:
    """The constraint of images whose grey part is that of `grey` [B, H, W, 1 or 3] (appendix I.3).

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
    return MaskConstraint(values, mask, jnp.asarray(GREY_AND_COLOURS, values.dtype))


def check_mask_shape(mask: ArrayLike, shape: tuple[int, ...]) -> None:
    """Refuses a mask that does not broadcast to images of this shape."""
    try:
        fits = np.broadcast_shapes(np.shape(mask), shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"the mask is {np.shape(mask)}, which does not fit images of {shape}")


def check_mask(mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuses a mask (on the host) that does not fit, or holds anything but 0 and 1, or one only.

    Raises:
      ValueError: says which shape or values, or that nothing is unknown, or known.
    """
    check_mask_shape(mask, shape)
    strange = np.setdiff1d(mask, [0, 1])
    if len(strange):
        raise ValueError(
            "a mask is 0 (unknown; in a picture black or transparent) or 1 (known; white) "
            f"everywhere; it has {strange[0]:.4g} (in a picture {255 * strange[0]:.0f} of 255)"
        )
    if np.all(mask):
        raise ValueError("the mask knows every pixel: there is nothing to paint")
    if not np.any(mask):
        raise ValueError("the mask knows no pixel: that is plain sampling, --mode=sample")


# In-filling as a score function.


def infilled(sde: SDE, score_fn: ScoreFn, constraint: Constraint) -> ScoreFn:
    """The score of p_t(x | known part): exact in the known component, the network's in the other.

    The known component of x_t is N(alpha P values, sigma^2) whatever the other is, so its score is

        P (alpha values - x) / sigma^2,

    and a sampler carries it from noise to `values` itself. The other component gets
    (I - P) score(x, t), the score of p_t(unknown | known component of x_t): the approximation of
    appendix I.2, with the noised known part that the sampler itself carries. It says less than
    p_t(unknown | values) while there is noise; `repaint` and `inverse.posterior_guided` do better.
    A solver that ends on E[x_0 | x] ends on `values` up to rounding; others leave the noise of the
    last time on them, and `constraint.impose` takes it off. The score of the known component is as
    sharp as that of one data point: `sampling.pc_sampler` needs steps below sigma^2 / g^2 at the
    last time for it, of which there are hundreds; `pc_infill` does not.
    """

    def conditional(x: Images, t: Times) -> Images:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        toward = batch_mul(1.0 / jnp.square(sigma), batch_mul(alpha, constraint.values) - x)
        return constraint.impose(score_fn(x, t), toward)

    return conditional


# In-filling by replacement after each step.


def noised(sde: SDE, constraint: Constraint, x: Images, t: Times, z: Images) -> Images:
    """x with its known component replaced by a draw from p(x_t | values), with noise z."""
    mean, std = sde.marginal_prob(constraint.values, t)
    return constraint.impose(x, mean + batch_mul(std, z))


def pc_infill(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    constraint: Constraint,
    *,
    denoise: bool = True,
    eps: float | None = None,
    official: bool = False,
    **options: Unpack[sampling.PCOptions],
) -> Samples:
    """Predictor-corrector sampling that noises the known part anew after every update (appendix I).

    Draws of `noise`: the prior's; then at each time `n_steps_each` for the corrector, one for the
    known part, one for the predictor, one for the known part ('none' takes none of its own).

    Args:
      denoise: return the predictor's last mean, with the known values as they are.
      eps: last time; `sde.sampling_eps` if None.
      official: as the original code, which begins with known values that are not noised (and with
        a prior masked before it is rotated), takes the noise of the known part in the basis of the
        mask, and denoises the known part only, not the part that it fills in.
      options: see `sampling.pc_sampler`.

    Raises:
      ValueError: unknown name, nothing to do, a number out of range, or `official` without a mask.
    """
    eps = sde.sampling_eps if eps is None else eps
    if official:
        if not isinstance(constraint, MaskConstraint):
            raise ValueError("the official start is defined for masks: in-painting, colourisation")
        return _official_pc_infill(sde, score_fn, noise, constraint, denoise, eps, options)

    def renewed(x: Images, t: Times, z: Images) -> Images:
        return noised(sde, constraint, x, t, z)

    samples = sampling.pc_sampler(
        sde, score_fn, noise, denoise=denoise, eps=eps, after_update=renewed, **options
    )
    if not denoise:
        return samples
    x = constraint.impose(samples.x, constraint.values)
    return samples_ending_on(x, samples.nfe, None)


def _official_pc_infill(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    constraint: MaskConstraint,
    denoise: bool,
    eps: float,
    options: sampling.PCOptions,
) -> Samples:
    prior = sde.prior_sampling(noise(0))
    start = constraint.impose(jnp.zeros_like(prior), constraint.values)
    start += prior * (1.0 - constraint.mask)

    def renewed(x: Images, t: Times, z: Images) -> Images:
        z = z if constraint.basis is None else z @ constraint.basis.T
        return noised(sde, constraint, x, t, z)

    samples = sampling.pc_sampler(
        sde, score_fn, noise, denoise=False, eps=eps, start=start, after_update=renewed, **options
    )
    if not denoise:
        return samples
    t = jnp.full(len(samples.x), grids.sampling_times(sde, eps)[-1])
    mean, _ = sde.marginal_prob(constraint.values, t)
    return samples_ending_on(constraint.impose(samples.x, mean), samples.nfe, None)


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
    constraint: Constraint,
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
    backwards = visits[1:] > visits[:-1]

    def step(x: Images, memory: None, at: tuple[Array, ...]) -> tuple[Images, None]:
        start, end, back, draw = at
        t, s = jnp.full(x.shape[0], start), jnp.full(x.shape[0], end)
        z = noise(draw)

        def again(x: Images) -> Images:
            a, variance = sde.transition(s, t)
            return batch_mul(a, x) + batch_mul(jnp.sqrt(variance), z)

        def onward(x: Images) -> Images:
            mean, std = sde.posterior(x, score_fn(x, t), t, s)
            return noised(sde, constraint, mean + batch_mul(std, z), s, noise(draw + 1))

        return jax.lax.cond(back, again, onward, x), None

    draws = 1 + 2 * jnp.arange(len(backwards))
    x = sde.prior_sampling(noise(0))
    ends = (jnp.asarray(v, x.dtype) for v in (visits[:-1], visits[1:]))
    x, _, _ = drive(step, x, None, (*ends, jnp.asarray(backwards), draws))
    x = constraint.impose(denoised(sde, score_fn, x, times[-1]), constraint.values)
    return samples_ending_on(x, int(np.sum(~backwards)) + 1, None)
