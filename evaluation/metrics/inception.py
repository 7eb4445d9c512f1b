r"""The Inception network of 2015, whose features FID, Inception Score, KID and the others compare.

It is the network of the TensorFlow graph `inception-2015-12-05` (Szegedy et al., arXiv:1512.00567),
not that of later Inception v3 releases: 1008 classes, average pooling that does not count the
padding, and maximum pooling in the last block. Its layers have the names of the conversion for
pytorch-fid, whose weights `inception_weights` reads.

Three outputs are in use:

* `pool`, 2048 features after the last average pooling: FID, KID, precision, recall and the like;
* `logits`, 1008 class logits without their bias, as the Inception Score has always been computed
  (Salimans et al., arXiv:1606.03498, whose code multiplies by the weights alone);
* `spatial`, 17 x 17 x 7 features: the first 7 channels of `mixed_6/conv` of the TensorFlow graph
  (`Mixed_6d.branch1x1` here), with which guided-diffusion computes sFID (Dhariwal and Nichol,
  arXiv:2105.05233, after Nash et al., arXiv:2103.03841).

Images are resized to 299 x 299 first, and the two ways in use give other numbers (`RESIZES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs.names import lookup
from models.ops.conv import conv

NAME = "inception-2015-12-05"
SIZE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7

Params = Mapping[str, Any]


class Outputs(NamedTuple):
    """`pool [B, 2048]`, `logits [B, 1008]` without bias and `spatial [B, 2023]` of B images."""

    pool: jax.Array
    logits: jax.Array
    spatial: jax.Array


class Conv(nn.Module):
    """relu(conv(x) + bias), normalisation included."""

    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return nn.relu(conv(x, kernel, self.stride, self.padding) + bias)


def average_pool(x: jax.Array) -> jax.Array:
    """Means over 3 x 3 pixels, of those that exist: at the edges, of fewer."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    """Maxima over 3 x 3 pixels: every second one without padding, or every one with it."""
    return nn.max_pool(x, (3, 3), (stride, stride), "VALID" if stride == 2 else "SAME")


def chain(x: jax.Array, name: str, *layers: tuple[Any, ...]) -> jax.Array:
    """Convolutions `name`_1, `name`_2, ... (or just `name`) with these arguments of `Conv`."""
    for i, layer in enumerate(layers, start=1):
        x = Conv(*layer, name=f"{name}_{i}" if len(layers) > 1 else name)(x)
    return x


def join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """35 x 35 pixels: 1x1, 5x5, two 3x3, and pooling."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return join(
            chain(x, "branch1x1", (64,)),
            chain(x, "branch5x5", (48,), (64, (5, 5))),
            chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
            chain(average_pool(x), "branch_pool", (self.pooled,)),
        )


class BlockB(nn.Module):
    """35 x 35 pixels to 17 x 17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return join(
            chain(x, "branch3x3", (384, (3, 3), 2, "VALID")),
            chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2, "VALID")),
            max_pool(x),
        )


class BlockC(nn.Module):
    """17 x 17 pixels: 1x1, 7x7 and twice 7x7 as rows and columns, and pooling.

    Returns the block's output and that of its first branch.
    """

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        c, row, column = self.inner, (1, 7), (7, 1)
        first = chain(x, "branch1x1", (192,))
        y = join(
            first,
            chain(x, "branch7x7", (c,), (c, row), (192, column)),
            chain(x, "branch7x7dbl", (c,), (c, column), (c, row), (c, column), (192, row)),
            chain(average_pool(x), "branch_pool", (192,)),
        )
        return y, first


class BlockD(nn.Module):
    """17 x 17 pixels to 8 x 8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last = (192, (3, 3), 2, "VALID")
        return join(
            chain(x, "branch3x3", (192,), (320, (3, 3), 2, "VALID")),
            chain(x, "branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), last),
            max_pool(x),
        )


class BlockE(nn.Module):
    """8 x 8 pixels: 1x1, 3x3 and twice 3x3, each ending in a row beside a column, and pooling."""

    maximum: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def split(x: jax.Array, name: str) -> jax.Array:
            row, column = (384, (1, 3)), (384, (3, 1))
            return join(chain(x, f"{name}a", row), chain(x, f"{name}b", column))

        single = Conv(384, name="branch3x3_1")(x)
        double = Conv(384, (3, 3), name="branch3x3dbl_2")(Conv(448, name="branch3x3dbl_1")(x))
        pooled = max_pool(x, 1) if self.maximum else average_pool(x)
        return join(
            chain(x, "branch1x1", (320,)),
            split(single, "branch3x3_2"),
            split(double, "branch3x3dbl_3"),
            chain(pooled, "branch_pool", (192,)),
        )


class Network(nn.Module):
    """Images [B, 299, 299, 3] in [-1, 1] to `Outputs`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Outputs:
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = max_pool(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Conv(80, name="Conv2d_3b_1x1")(x)
        x = max_pool(Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
            x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        firsts = {}
        for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x, firsts[letter] = BlockC(inner, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(maximum=False, name="Mixed_7b")(x)
        x = BlockE(maximum=True, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))
        logits = nn.Dense(NUM_CLASSES, use_bias=False, name="fc")(pool)
        spatial = firsts["d"][..., :SPATIAL_CHANNELS]
        return Outputs(pool, logits, spatial.reshape(len(spatial), -1))


def tensorflow_positions(size: int) -> np.ndarray:
    """Places of the 299 pixels in an image of `size`: i size / 299, in TensorFlow 1's float32.

    (`tf.image.resize_bilinear` with align_corners=False; its pixels have no half-pixel centres.)
    """
    return np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)


def pytorch_positions(size: int) -> np.ndarray:
    """Places of the 299 pixels in an image of `size`: (i + 1/2) size / 299 - 1/2, from 0 on.

    (`F.interpolate` with align_corners=False, as in pytorch-fid.)
    """
    positions = (np.arange(SIZE) + 0.5) * (size / SIZE) - 0.5
    return np.maximum(positions, 0.0).astype(np.float32)


def _tensorflow_range(x: jax.Array) -> jax.Array:
    return (x - 128.0) / 128.0


def _pytorch_range(x: jax.Array) -> jax.Array:
    return x / 127.5 - 1.0


# Each with the places of its pixels and the map from 0..255 to the network's range.
RESIZES = {
    "tensorflow": (tensorflow_positions, _tensorflow_range),
    "pytorch": (pytorch_positions, _pytorch_range),
}


def check_resize(resize: str) -> None:
    """Raises ValueError unless there is such a resize."""
    lookup(RESIZES, resize, "eval.resize")


def resized(images: jax.Array, resize: str) -> jax.Array:
    """Pixels 0..255, [B, H, W, 3], to float32 [B, 299, 299, 3] as the network sees them."""
    positions, to_range = RESIZES[resize]
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        places = positions(x.shape[axis])
        low = places.astype(np.int32)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = (places - low).reshape([-1 if i == axis else 1 for i in range(4)])
        below, above = jnp.take(x, low, axis), jnp.take(x, high, axis)
        x = below + (above - below) * weight
    return to_range(x)


def apply(params: Params, images: jax.Array, resize: str) -> Outputs:
    """Colour images uint8 [B, H, W, 3] of any size to features, in full float32 everywhere.

    Raises:
      ValueError: images that have no three channels.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Inception sees colour images [B, H, W, 3], not {images.shape}")
    with jax.default_matmul_precision("highest"):  # accelerators would round the factors
        return Network().apply({"params": params}, resized(images, resize))  # type: ignore
