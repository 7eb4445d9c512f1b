"""Inverse problems y = A(x_0) + noise: linear operators, their algebra, guidance by moments, DPS.

A is a function of images [B, H, W, C] that acts on each alone. The adjoint A' of a linear one is
that of `jax.linear_transpose`; guidance linearises others (`nonlinear_operators`). Times t are [B].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples, denoised, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn, Times, batch_mul

Operator = Callable[[Array], Array]  # [B, H, W, C] -> [B, ...]
Shape = tuple[int, ...]

TOLERANCE = 1e-6  # of the conjugate gradients: residual over right-hand side
MAX_ITERATIONS = 100


# Operators.


def identity(x: Images) -> Images:
    """The operator of denoising, y = x_0."""
    return x


def masking(mask: Array) -> Operator:
    """The operator of in-painting, y = mask x_0: known where the mask is 1."""
    return lambda x: mask * x


def average_pool(factor: int) -> Operator:
    """The mean of each `factor` x `factor` block of pixels: super-resolution.

    Of a series [B, L, C] it is the mean of `factor` neighbours.

    Raises:
      ValueError: images whose sides are not multiples of a factor of 1 or more.
    """

    def pool(x: Array) -> Array:
        sides = x.shape[1:-1]
        if not sides or factor < 1 or any(side % factor for side in sides):
            size = "x".join(map(str, sides or x.shape[1:]))
            raise ValueError(f"factor {factor} does not divide images of {size} pixels")
        blocks = [n for side in sides for n in (side // factor, factor)]
        means = tuple(range(2, 2 * len(sides) + 1, 2))
        return jnp.mean(x.reshape(len(x), *blocks, x.shape[-1]), means)

    return pool


def gaussian_blur(std: float) -> Operator:
    """Convolution with a Gaussian of `std` pixels, its weights at the edges divided by their sum.

    Raises:
      ValueError: std not positive.
    """
    if not std > 0:
        raise ValueError(f"the blur's standard deviation must be positive, not {std:g}")

    def weights(side: int) -> np.ndarray:
        offsets = np.arange(side)[:, None] - np.arange(side)
        kernel = np.exp(-0.5 * np.square(offsets / std))
        return np.asarray(kernel / kernel.sum(1, keepdims=True), np.float32)

    def blur(x: Array) -> Array:
        return jnp.einsum("ij,bjkc,lk->bilc", weights(x.shape[1]), x, weights(x.shape[2]))

    return blur


def random_measurements(count: int, shape: Shape, seed: int = 0) -> Operator:
    """`count` random orthonormal functionals of an image of `shape`: compressed sensing.

    Raises:
      ValueError: count not between 1 and the number of entries.
    """
    size = math.prod(shape)
    if not 1 <= count <= size:
        raise ValueError(
            f"an image has {size} entries; {count} measurements of it are not possible"
        )
    draws = np.random.RandomState(seed).standard_normal((size, count))
    functionals = np.linalg.qr(draws)[0].astype(np.float32)
    return lambda x: x.reshape(len(x), size) @ functionals


def adjoint(operator: Operator, shape: Shape) -> Operator:
    """A', with <A x, y> = <x, A' y>, for images of `shape` (H, W, C)."""

    def transposed(y: Array) -> Array:
        x = jax.ShapeDtypeStruct((len(y), *shape), y.dtype)
        (back,) = jax.linear_transpose(operator, x)(y)
        return jnp.asarray(back)

    return transposed


def check_adjoint(operator: Operator, shape: Shape, transposed: Operator | None = None) -> None:
    """Refuses an operator that is not linear, or whose adjoint is another's.

    Compares <A x, y> with <x, A' y> on random x and y, relative to |A x| |y|.

    Args:
      transposed: A'; by default that of `adjoint`.

    Raises:
      ValueError: says by how much they differ.
    """
    rng = np.random.RandomState(0)
    x = rng.standard_normal((4, *shape)).astype(np.float32)
    measured = np.asarray(operator(jnp.asarray(x)), np.float64)
    y = rng.standard_normal(measured.shape).astype(np.float32)
    try:
        back = np.asarray(jax.jit(transposed or adjoint(operator, shape))(y), np.float64)
    except (NotImplementedError, AssertionError, TypeError) as error:
        raise ValueError("the operator has no adjoint: it is not linear") from error
    if back.shape != x.shape:
        raise ValueError(f"the adjoint gives {back.shape[1:]}, not images of {tuple(shape)}")
    difference = np.abs(np.vdot(measured, y) - np.vdot(x, back))
    share = float(difference / (np.linalg.norm(measured) * np.linalg.norm(y)))
    if not share < 1e-4:
        raise ValueError(
            f"the operator's adjoint does not match: <A x, y> and <x, A' y> differ by {share:.2g} "
            "of |A x| |y|; A must be linear, without a constant"
        )


def linearised(operator: Operator, x: Images) -> tuple[Array, Operator, Operator]:
    """A(x), and with the Jacobian J of A at x the maps v -> J v and w -> J' w.

    J is A itself where A is linear.
    """
    value, push = jax.linearize(operator, x)
    back = jax.linear_transpose(push, x)
    return value, push, lambda w: back(w)[0]


def conjugate_gradients(
    normal: Operator, y: Array, iterations: int = MAX_ITERATIONS, smallest: Array | float = 0.0
) -> Array:
    """The solution w [B, ...] of normal(w) = y, each image's own, from w = 0.

    `normal` is symmetric, has no eigenvalue below `smallest` (a number, or one for each image), and
    acts on each image alone. An image is finished when its residual is `TOLERANCE` of y, or when a
    direction turns up in which `normal` is not above `smallest` after all, as happens with the
    Jacobian of a network.
    """

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, tuple(range(1, y.ndim)))

    goal = TOLERANCE**2 * dot(y, y)

    def unfinished(state: tuple[Array, ...]) -> Array:
        return (state[0] < iterations) & jnp.any(state[-1])

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        i, w, residual, direction, active = state
        image, size = normal(direction), dot(residual, residual)
        curvature = dot(direction, image)
        active &= curvature > smallest * dot(direction, direction)
        length = jnp.where(active, size / jnp.where(active, curvature, 1.0), 0.0)
        w += batch_mul(length, direction)
        residual -= batch_mul(length, image)
        left = dot(residual, residual)
        turn = left / jnp.where(size > 0, size, 1.0)
        return i + 1, w, residual, residual + batch_mul(turn, direction), active & (left > goal)

    zero = jnp.zeros((), jnp.int32)
    state: tuple[Array, ...] = (zero, jnp.zeros_like(y), y, y, dot(y, y) > 0)
    return jax.lax.while_loop(unfinished, step, state)[1]


# Measurements without noise.


@dataclasses.dataclass(frozen=True)
class MeasurementConstraint:
    """Images of which A x_0 = y is known exactly: a `controllable.Constraint` with P = A^+ A.

    A^+ = A' (A A')^-1 by conjugate gradients: A A' must be well-conditioned, as that of masks,
    pooling and orthonormal functionals is; a blur's is not.

    Attributes:
      operator: A.
      values: A^+ y [B, ...], the smallest images that were measured as y; see `constraint_of`.
    """

    operator: Operator
    values: Images

    def impose(self, x: Images, values: Images) -> Images:
        """x + A^+ A (values - x)."""
        return x + pseudo_inverse(self.operator, x.shape[1:], self.operator(values - x))


def pseudo_inverse(operator: Operator, shape: Shape, y: Array) -> Array:
    """A^+ y = A' (A A')^-1 y [B, ...]: the smallest images of `shape` with A x = y."""
    transposed = adjoint(operator, shape)
    return transposed(conjugate_gradients(lambda v: operator(transposed(v)), y))


def constraint_of(operator: Operator, y: Array, shape: Shape) -> MeasurementConstraint:
    """The constraint of images of `shape` whose measurement is y, without noise."""
    return MeasurementConstraint(operator, pseudo_inverse(operator, shape, y))


# Measurements with noise.


def posterior_guided(
    sde: SDE,
    score_fn: ScoreFn,
    operator: Operator,
    y: Array,
    *,
    noise_std: float,
    iterations: int = 3,
    damping: Array | float = 0.0,
    scale: float = 1.0,
) -> ScoreFn:
    """score + scale grad_x log N(y; A x0(x, t), A V A' + noise_std^2 I), x0 = E[x_0 | x_t = x].

    p_t(x_0 | x) is taken for a Gaussian with its true mean and covariance, which by Tweedie's
    formulas are x0 and

        V = (sigma^2 / alpha) d x0 / dx,

    held fixed in the gradient: moment matching (Boys et al. 2023, "Tweedie moment projected
    diffusions for inverse problems", arXiv:2310.06721; Rozet et al. 2024, arXiv:2405.13712, solve
    for (A V A' + noise_std^2 I)^-1 (y - A x0) by a few conjugate gradients, as here). It is exact
    for Gaussian data, if the iterations suffice. An operator that is not linear is linearised at
    x0.

    Args:
      y: [B, ...] as the operator gives it.
      noise_std: standard deviation of the measurement's noise, in the range of the images.
      iterations: of the conjugate gradients, each a product with d x0 / dx (one backward pass). Few
        keep a network's errors in the small directions of V out.
      damping: the variance of the noise is raised by damping sigma^2 / alpha^2, the error of V for
        a relative error `damping` of the network's Jacobian; without it that error may pull x out
        of the network's reach. 0 is exact for an exact score.

    Raises:
      ValueError: a negative noise_std, or no iteration.
    """
    if noise_std < 0 or iterations < 1:
        raise ValueError(
            f"noise_std={noise_std:g} must be 0 or more, and iterations={iterations} 1 or more"
        )

    def conditional(x: Images, t: Times) -> Images:
        score, x0, pull = denoised_with_pullback(sde, score_fn, x, t)
        value, push, back = linearised(operator, x0)
        variance = jnp.square(sde.sigma(t))
        spread = variance / sde.alpha(t)
        noise = noise_std**2 + damping * variance / jnp.square(sde.alpha(t))

        def normal(v: Array) -> Array:
            return push(batch_mul(spread, pull(back(v)))) + batch_mul(noise, v)

        weights = conjugate_gradients(normal, y - value, iterations, noise)
        return score + scale * pull(back(weights))

    return conditional


def denoised_with_pullback(
    sde: SDE, score_fn: ScoreFn, x: Images, t: Times
) -> tuple[Images, Images, Callable[[Array], Array]]:
    """The score, x0 = E[x_0 | x_t = x], and v -> (d x0 / dx)' v, all [B, ...]."""

    def estimate(x: Images) -> tuple[Images, Images]:
        score = score_fn(x, t)
        return convert(sde, x, t, score, "score", "x0"), score

    x0, pull, score = jax.vjp(estimate, x, has_aux=True)
    return score, x0, lambda v: pull(v)[0]


def dps(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    operator: Operator,
    y: Array,
    *,
    scale: float = 1.0,
) -> Samples:
    """Diffusion posterior sampling (Chung et al. 2022, arXiv:2209.14687, algorithm 1).

    Ancestral steps on the grid `times`, each followed by one down the gradient of the residual,

        x_s <- x_s - scale grad_x |y - A x0(x, t)|^2 / |y - A x0(x, t)|,

    whose length does not depend on the grid: it is no likelihood, and the result no draw of the
    posterior even for Gaussian data. The step is taken in x / sqrt(alpha^2 + sigma^2), VP's own
    variable, in which its length means the same for every SDE. One evaluation and one gradient a
    step; the result is E[x_0 | x], for one evaluation more. Draws: the prior's, then one a step.

    Args:
      times: decreasing, [M + 1]; see `grids.time_grid`.
      y: [B, ...] as the operator gives it.

    Raises:
      ValueError: scale not positive.
    """
    if not scale > 0:
        raise ValueError(f"the scale of DPS must be positive, not {scale:g}")

    def step(x: Images, memory: None, at: tuple[Array, ...]) -> tuple[Images, None]:
        start, end, draw = at
        t, s = jnp.full(x.shape[0], start), jnp.full(x.shape[0], end)
        score, x0, pull = denoised_with_pullback(sde, score_fn, x, t)
        value, _, back = linearised(operator, x0)
        residual = y - value
        mean, std = sde.posterior(x, score, t, s)
        axes = tuple(range(1, residual.ndim))
        length = jnp.sqrt(jnp.sum(jnp.square(residual), axes))
        norms = jnp.hypot(sde.alpha(t), sde.sigma(t)) * jnp.hypot(sde.alpha(s), sde.sigma(s))
        size = 2.0 * scale * norms / jnp.maximum(length, 1e-12)
        down = batch_mul(size, pull(back(residual)))
        return mean + batch_mul(std, noise(draw)) + down, None

    steps = len(times) - 1
    x = sde.prior_sampling(noise(0))
    inputs = (*(jnp.asarray(v, x.dtype) for v in (times[:-1], times[1:])), 1 + jnp.arange(steps))
    x, _, _ = drive(step, x, None, inputs)
    return samples_ending_on(denoised(sde, score_fn, x, times[-1]), steps + 1, None)
