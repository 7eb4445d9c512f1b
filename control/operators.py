"""Operators of the task "operator": by name, or a function of the user's own in a Python file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.names import lookup
from control import masks
from control.prior import Options, Prior
from diffusion import inverse, nonlinear_operators, twisted
from diffusion.inverse import Operator
from runtime import errors, user_function

ALIKE = 1e-3  # share of itself by which a measurement may change with the batch


class Source(NamedTuple):
    """An operator, and the SHA-256 of the file that it is from, or ""."""

    operator: Operator
    sha256: str = ""


def identity(prior: Prior, options: Options) -> Operator:
    """The image itself, y = x_0 + noise."""
    return inverse.identity


def mask(prior: Prior, options: Options) -> Operator:
    """The pixels that `control.mask` knows; the others are 0."""
    shape = prior.image_shape
    known = masks.make_mask(options.mask, options.mask_share, options.seed, shape)
    return inverse.masking(jnp.asarray(known))


def grey(prior: Prior, options: Options) -> Operator:
    """The mean of the channels of each pixel."""
    return lambda x: jnp.mean(x, -1, keepdims=True)


def average_pool(prior: Prior, options: Options) -> Operator:
    """The means of blocks of `control.factor` pixels a side."""
    return inverse.average_pool(options.factor)


def gaussian_blur(prior: Prior, options: Options) -> Operator:
    """A Gaussian blur of `control.blur_std` pixels."""
    return inverse.gaussian_blur(options.blur_std)


def random_measurements(prior: Prior, options: Options) -> Operator:
    """`control.num_measurements` random functionals; 0: a quarter of the number of entries."""
    count = options.num_measurements or max(1, math.prod(prior.image_shape) // 4)
    return inverse.random_measurements(count, prior.image_shape, options.seed)


def clipping(prior: Prior, options: Options) -> Operator:
    """Values cut at `control.clip_limit` half ranges from mid-grey."""
    return nonlinear_operators.clipping(options.clip_limit, *ends(prior))


def phase_retrieval(prior: Prior, options: Options) -> Operator:
    """The magnitudes of the Fourier coefficients, at twice the sides."""
    return nonlinear_operators.phase_retrieval(ends(prior)[0])


def jpeg(prior: Prior, options: Options) -> Operator:
    """What JPEG of `control.jpeg_quality` leaves, without rounding in the end."""
    return nonlinear_operators.jpeg(options.jpeg_quality, *ends(prior))


OPERATORS: dict[str, Callable[[Prior, Options], Operator]] = {
    "identity": identity,
    "mask": mask,
    "grey": grey,
    "average_pool": average_pool,
    "gaussian_blur": gaussian_blur,
    "random_measurements": random_measurements,
    "clipping": clipping,
    "phase_retrieval": phase_retrieval,
    "jpeg": jpeg,
}


def ends(prior: Prior) -> tuple[float, float]:
    """Black and white, as the network sees them."""
    return (-1.0, 1.0) if prior.pixels.centered else (0.0, 1.0)


def operator_of(prior: Prior, options: Options) -> Source:
    """The operator that `control.operator` names: one of `OPERATORS`, or file.py:function.

    Raises:
      ValueError: an unknown name, what the operator refuses, or a file or function that is none.
    """
    name = options.operator
    if user_function.is_named(name):
        source = Source(*user_function.load(name, "control.operator"))
    else:
        known = "control.operator (or file.py:function)"
        source = Source(lookup(OPERATORS, name, known)(prior, options))
    check_operator(source.operator, prior, name)
    return source


def check_operator(operator: Any, prior: Prior, name: str) -> None:
    """Refuses a function that is no operator on the prior's images.

    Raises:
      ValueError: it raises, gives something else than real numbers [B, ...], numbers that are not
        finite, looks at other images of a batch, or has no derivative to be guided by.
    """
    low, high = ends(prior)
    draws = np.random.RandomState(0).uniform(low, high, (2, *prior.image_shape))
    x = jnp.asarray(draws, jnp.float32)
    try:
        y, first = jax.jit(lambda x: (operator(x), operator(x[:1])))(x)
    except Exception as error:
        words = f"called with images {x.shape} it raised {_said(error)}"
        raise _refusal(name, words) from error
    if not isinstance(y, jax.Array) or y.ndim < 2 or len(y) != 2 or y.dtype != jnp.float32:
        kind = f"{y.dtype} {y.shape}" if isinstance(y, jax.Array | np.ndarray) else type(y).__name__
        raise _refusal(
            name,
            f"of images {x.shape} it makes {kind}; it must make a JAX array of float32 [2, ...], a "
            "row for each image",
        )
    if not bool(jnp.isfinite(y).all()):
        raise _refusal(name, "it makes numbers that are not finite of images in their range")
    size = float(jnp.abs(y[:1]).max()) + 1e-6
    if first.shape != y[:1].shape or float(jnp.abs(first - y[:1]).max()) > ALIKE * size:
        raise _refusal(name, "what it makes of an image depends on the others of the batch")
    if twisted.gain_of(operator, prior.image_shape, 0.5 * (low + high)) <= 1e-6:
        raise _refusal(
            name,
            "its derivative is 0, as that of rounding is, and guidance needs one; write "
            "x + jax.lax.stop_gradient(jnp.round(x) - x) for jnp.round(x)",
        )


def is_linear(operator: Operator, shape: tuple[int, ...]) -> bool:
    """Whether A has an adjoint, and it is that of A: `inverse.check_adjoint` passes."""
    try:
        inverse.check_adjoint(operator, shape)
    except ValueError:
        return False
    return True


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {errors.one_line(error)}"


def _refusal(name: str, words: str) -> ValueError:
    return ValueError(f"control.operator={name!r}: {words}")
