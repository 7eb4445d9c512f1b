r"""Pixels as the model sees them, on the device: pure functions that can be jitted.

A stored pixel is an integer level k in 0..L-1 (L = `levels`; 256, or 17 for the digits). The model
sees y in [0, 1] or, when `centered`, s = 2y - 1 in [-1, 1], made in one of two ways:

* `scale`: y = k / (L - 1), the levels themselves, as when the original code trains (x / 255);
* `uniform_dequantize`: y = (k + u) / L with u ~ U[0, 1), continuous, as for every likelihood.

**Bits per dimension.** Uniform dequantisation bounds the probability of the levels by the density
of y (Theis et al., arXiv:1511.01844): P(k) = \int_{[0,1)^D} p_{k+u}(k + u) du, and the map
y = (k + u) / L multiplies volumes by L^{-D}, so that

    -log2 P(k) / D  <=  E_u[-log2 p_y(y)] / D + log2 L.

In the centred range ds = 2 dy, hence p_s = 2^{-D} p_y and the offset (which
`likelihood.bits_per_dim` adds) is log2 L - 1 = log2(L / 2):

    levels   y in [0, 1]    s in [-1, 1]
    256      8              7
    17       4.087          3.087

Images that were resized and not rounded to levels (CelebA, LSUN at 128 pixels) have fractions of
levels, float32 in [0, L - 1], and are treated alike: the official code adds its noise to them, too,
and cuts them off to whole levels before they are compared by features.

Real numbers have no levels (L = 0) and cannot be dequantised: the model sees points of the plane as
they are, and other examples standardised, see
`data.standardisation`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from data.standardisation import AS_IT_IS, Standard

Pixels = jax.Array | np.ndarray

_NOISE_BITS = 15  # k + u stays exact in float32 for up to 2^8 levels


def scale(x: Pixels, levels: int, centered: bool, standard: Standard = AS_IT_IS) -> jax.Array:
    """Levels 0..L-1 to float32 y = k / (L - 1) in [0, 1], or 2y - 1 in [-1, 1]; any shape."""
    if not levels:
        return standard.to_model(x)
    y = jnp.asarray(x, jnp.float32) / (levels - 1)
    return 2.0 * y - 1.0 if centered else y


def uniform_dequantize(
    x: Pixels, keys: jax.Array, levels: int, centered: bool = False
) -> jax.Array:
    """Levels [B, ...] to float32 y = (k + u) / L in (0, 1), or 2y - 1; noise from `keys` [B].

    u is uniform on the 2^15 midpoints (j + 1/2) / 2^15: k + u is then exact in float32, which
    U[0, 1) in float32 is not (255 + u may round to 256). So floor(L y) = k, always.

    Raises:
      ValueError: points, which are continuous already.
    """
    if not levels:
        raise ValueError("points have no grey levels, which dequantisation could blur")
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(keys)
    u = ((bits >> (16 - _NOISE_BITS)).astype(jnp.float32) + 0.5) / 2**_NOISE_BITS
    y = (jnp.asarray(x, jnp.float32) + u) / levels
    return 2.0 * y - 1.0 if centered else y


def inverse_scale(
    x: Pixels,
    levels: int,
    centered: bool,
    dequantized: bool = False,
    standard: Standard = AS_IT_IS,
) -> jax.Array:
    """Model range back to levels uint8 0..L-1, out-of-range values clipped; any shape.

    It inverts what the model was trained on: the nearest level of `scale`, k = round((L-1) y), or,
    with `dequantized`, the bin of `uniform_dequantize`, k = floor(L y). (The original code
    truncates, floor(255 y), after training on k / 255: half a level darker on average.) Real
    numbers come back in their own units, float32.
    """
    if not levels:
        return standard.to_data(x)
    y = (x + 1.0) / 2.0 if centered else x
    k = jnp.floor(levels * y) if dequantized else jnp.round((levels - 1) * y)
    return jnp.clip(k, 0, levels - 1).astype(jnp.uint8)


def inverse_scale_of_grey(
    x: Pixels, levels: int, centered: bool, dequantized: bool = False
) -> jax.Array:
    """`inverse_scale` for colour images [..., 3] that keeps R + G + B of x, rounded once.

    `inverse_scale` rounds and clips the colours one by one, which moves their mean by a third of a
    level, or by much where a colour is out of range. Here a pixel with a colour out of range first
    moves towards its own grey g = (R + G + B) / 3 as far as it must, g + lambda (x - g), which
    keeps its hue; then all are rounded down, and the levels that are missing from the sum go to the
    largest remainders, one each. Grey that is out of range itself is clipped.
    """
    y = (jnp.asarray(x) + 1.0) / 2.0 if centered else jnp.asarray(x)
    k = levels * y - 0.5 if dequantized else (levels - 1) * y
    grey = jnp.clip(jnp.mean(k, -1, keepdims=True), 0.0, levels - 1.0)
    colour = k - jnp.mean(k, -1, keepdims=True)
    room = jnp.where(colour > 0.0, levels - 1.0 - grey, grey)
    share = jnp.min(room / jnp.maximum(jnp.abs(colour), 1e-6), -1, keepdims=True)
    # A colour on the border may be off it by a rounding, and rounding down -1e-7 would make -1.
    k = jnp.clip(grey + jnp.minimum(share, 1.0) * colour, 0.0, levels - 1.0)
    # Next to a level it is that level: XLA may compute k twice, rounded to both sides of it.
    level = jnp.round(k)
    k = jnp.where(jnp.abs(k - level) < 1e-3, level, k)
    whole = jnp.floor(k)
    missing = jnp.round(3.0 * grey) - jnp.sum(whole, -1, keepdims=True)
    rank = jnp.argsort(jnp.argsort(whole - k, -1), -1)  # 0: the largest remainder
    return jnp.clip(whole + (rank < missing), 0, levels - 1).astype(jnp.uint8)


def to_display(x: Pixels, levels: int) -> jax.Array:
    """Levels 0..L-1 to the 0..255 of picture files, uint8, rounded; any shape.

    Fractions of levels are cut off first, `whole_levels`.
    """
    whole = whole_levels(x, levels)
    return jnp.round(jnp.asarray(whole, jnp.float32) * (255.0 / (levels - 1))).astype(jnp.uint8)


def whole_levels(x: Pixels, levels: int) -> Pixels:
    """Levels uint8 as they are, fractions of levels cut off: floor(x), in 0..L-1; any shape."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    array = jnp if isinstance(x, jax.Array) else np
    return array.clip(x, 0, levels - 1).astype(np.uint8)


def random_flip(x: Pixels, keys: jax.Array) -> jax.Array:
    """Images [B, H, W, C], each mirrored left to right with probability 1/2 by its own key [B]."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1, :], x)
