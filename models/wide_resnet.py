"""The classifier of noisy CIFAR-10 images that Song et al. 2021 guide by (appendix I), as they
publish it: a wide residual network (Zagoruyko and Komodakis 2016, arXiv:1605.07146).

Names of classes and layers are parts of parameter names, and those of the published checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.embeddings import GaussianFourierProjection, noise_embedding
from models.layers import GroupNorm, check_resolution, downsample
from models.ops.conv import Conv

BASE_WIDTH = 16
EMBEDDING = 128  # frequencies of the noise level
EPSILON = 1e-5
# Mean and standard deviation of CIFAR-10's red, green and blue, in [0, 1].
CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)
GROUPS = (1, 2, 4)  # widths, each at half the resolution of the one before

KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
convolution = functools.partial(Conv, use_bias=False, kernel_init=KERNEL_INIT)


class WideResNet(nn.Module):
    """The logits of p_t(y | x), from (x [B, H, W, 3], noise levels [B]) to [B, num_classes].

    Colours are standardised by CIFAR-10's statistics, then each image by its own.

    Attributes:
      num_classes: the number of classes.
      widen_factor: width in units of the plain residual network.
      blocks_per_group: residual blocks in each of the three groups.
      centered: x is in [-1, 1], not in [0, 1].
      dtype: of the computation; parameters, norms and logits stay float32.

    Raises:
      ValueError: fewer than two classes, images that have no three colours, or sides that are not
        multiples of 4.
    """

    num_classes: int = 10
    widen_factor: int = 10
    blocks_per_group: int = 4
    centered: bool = False
    dtype: Any = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"classifier.num_classes is {self.num_classes}; it must be 2 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """`labels [B]` are noise levels of images in [0, 1]; there is no dropout."""
        del dropout_keys
        check_resolution(x, len(GROUPS))
        if x.shape[-1] != len(CIFAR10_MEAN):
            raise ValueError(
                f"classifier.name='wrn_score_sde' is for colours, and the images have "
                f"{x.shape[-1]} channel(s) (data.num_channels)"
            )
        features = GaussianFourierProjection(EMBEDDING, 16.0)(jnp.log(labels))
        temb = noise_embedding(features, EMBEDDING, nn.swish)
        x = (x + 1.0) / 2.0 if self.centered else x
        x = (x - np.array(CIFAR10_MEAN, np.float32)) / np.array(CIFAR10_STD, np.float32)
        h = convolution(BASE_WIDTH, dtype=self.dtype, name="init_conv")(standardised(x))
        for number, width in enumerate(GROUPS):
            channels = BASE_WIDTH * self.widen_factor * width
            group = WideResnetGroup(self.blocks_per_group, channels, number == 0, self.dtype)
            h = group(h, temb)
        h = norm("pre-pool-bn", None)(h)
        return nn.Dense(self.num_classes)(jnp.mean(h, (1, 2)))


class WideResnetGroup(nn.Module):
    """Residual blocks of one width; the `first` group keeps the resolution, others halve it."""

    blocks: int
    features: int
    first: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        for number in range(self.blocks):
            stride = 2 if number == 0 and not self.first else 1
            block = WideResnetBlock(self.features, stride, self.first and number == 0, self.dtype)
            x = block(x, temb)
        return x


class WideResnetBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them, which averages and pads with zeros.

    With `activate_before_residual` the shortcut begins behind the first activation.
    """

    features: int
    stride: int = 1
    activate_before_residual: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        h = norm("init_bn", self.dtype)(x)
        shortcut = h if self.activate_before_residual else x
        h = convolution(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(h)
        h += nn.Dense(self.features, dtype=self.dtype)(nn.swish(temb))[:, None, None]
        h = norm("bn_2", self.dtype)(h)
        h = convolution(self.features, dtype=self.dtype, name="conv2")(h)
        if self.stride > 1:
            shortcut = downsample(shortcut, None)
        padding = self.features - shortcut.shape[-1]
        return h + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, padding)))


def norm(name: str, dtype: Any) -> Callable[[jax.Array], jax.Array]:
    """A norm of groups of four channels, but at most 32 groups, and a rectifier."""
    return GroupNorm(act=nn.relu, epsilon=EPSILON, dtype=dtype, name=name)


def standardised(x: jax.Array) -> jax.Array:
    """Each image with mean 0 and standard deviation 1, unless it is almost constant."""
    centred = x - jnp.mean(x, (1, 2, 3), keepdims=True)
    std = jnp.sqrt(jnp.mean(jnp.square(centred), (1, 2, 3), keepdims=True))
    return centred / jnp.maximum(std, 1.0 / np.sqrt(x[0].size))
