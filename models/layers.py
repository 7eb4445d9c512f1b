"""The blocks that NCSN++ and DDPM are built from.

Class names are parts of parameter names (`ResnetBlockBigGANpp_0/Conv_0/kernel`), and so is the
order in which a block calls its layers; both are those of the published checkpoints. Images are
[B, H, W, C]; `temb [B, E]` embeds what the network is conditioned on, or is None.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs.names import lookup
from models.ops.conv import Conv, default_init, dense
from models.ops.group_norm import group_norm
from models.ops.materialise import materialise, materialise_cotangent
from models.resample import (
    Conv2d,
    downsample_2d,
    naive_downsample_2d,
    naive_upsample_2d,
    upsample_2d,
)

Activation = Callable[[jax.Array], jax.Array]
FirKernel = Sequence[float] | None  # None: nearest neighbours up, averages down

ACTIVATIONS: dict[str, Activation] = {
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": functools.partial(nn.leaky_relu, negative_slope=0.2),
    "swish": nn.swish,
}


class GroupNorm(nn.Module):
    """Normalises each image over space and within groups of channels, then applies `act`, if any.

    `num_groups=None` means groups of four channels, but at most 32 groups. Everything up to the
    result is in float32 (`models/ops/group_norm.py`).

    Raises:
      ValueError: the channels do not divide into the groups.
    """

    num_groups: int | None = None
    act: Activation | None = None
    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        groups = min(channels // 4, 32) if self.num_groups is None else self.num_groups
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        swish = self.act is nn.swish
        y = group_norm(x.astype(jnp.float32), scale, bias, groups, self.epsilon, swish)
        y = y.astype(self.dtype or jnp.float32)
        return y if swish or self.act is None else self.act(y)


class NIN(nn.Module):
    """A dense layer over channels ("network in network"): [..., C] to [..., features]."""

    features: int
    init_scale: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.param("W", default_init(self.init_scale), (x.shape[-1], self.features))
        b = self.param("b", nn.initializers.zeros, (self.features,))
        x, w, b = nn.dtypes.promote_dtype(x, w, b, dtype=self.dtype)
        return materialise_cotangent(dense(x, w) + b)


def check_choices(
    module: nn.Module, choices: Mapping[str, Iterable[str]], section: str = "model"
) -> None:
    """Raises ValueError if an attribute of `module`, which `section` of the config describes, is
    not among its `choices`."""
    for name, valid in choices.items():
        lookup(dict.fromkeys(valid), getattr(module, name), f"{section}.{name}")


def check_resolution(x: jax.Array, levels: int) -> None:
    """Raises ValueError if the images `x [B, H, W, C]` cannot be halved levels - 1 times."""
    factor = 2 ** (levels - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"images of {x.shape[1]} x {x.shape[2]} cannot be halved {levels - 1} times, once per "
            f"level of model.ch_mult after the first; sides must be multiples of {factor}"
        )


def residual(x: jax.Array, h: jax.Array, rescale: bool) -> jax.Array:
    """x + h, divided by sqrt(2) where `rescale` asks to preserve the variance."""
    return materialise((x + h) / math.sqrt(2.0) if rescale else x + h)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Inverted dropout (Srivastava et al. 2014) with one key per image; none without `keys [B]`.

    Each element is kept if its 16 random bits are below (1 - rate) 2^16, rounded: the low halves
    of an image's words serve the first half of its elements, the high halves the other. What is
    kept in memory between are two bits for each word, not the words.
    """
    if keys is None or rate == 0.0:
        return x
    kept, size = round((1.0 - rate) * 2**16), math.prod(x.shape[1:])
    rows, *rest = x.shape[1:] if x.shape[1] % 2 == 0 else (size + size % 2,)
    words = jax.vmap(lambda key: jax.random.bits(key, (rows // 2, *rest)))(keys)
    low, high = ((half < kept).astype(jnp.uint8) for half in (words & 0xFFFF, words >> 16))
    both = jax.lax.optimization_barrier(low + 2 * high)
    mask = jnp.concatenate([both & 1, both >> 1], axis=1).astype(bool)
    mask = mask.reshape(len(x), -1)[:, :size].reshape(x.shape)
    return jnp.where(mask, x * (2**16 / kept), 0)


def per_block_keys(keys: jax.Array | None) -> Iterator[jax.Array | None]:
    """The dropout keys [B] of block 0, 1, ...: block i's fold i into each image's key."""
    for i in itertools.count():
        yield None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, i)


def apply_block(block: nn.Module, remat: bool, *inputs: Any) -> jax.Array:
    """`block(*inputs)`; with `remat`, the backward pass recomputes what is inside the block."""
    run = type(block).__call__
    return (nn.remat(run) if remat else run)(block, *inputs)


class AttnBlockpp(nn.Module):
    """Self-attention of one head over the pixels of each image (Ho et al. 2020, appendix B)."""

    num_groups: int | None = None
    init_scale: float = 0.0
    skip_rescale: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        pixels = GroupNorm(self.num_groups, dtype=self.dtype)(x).reshape(len(x), -1, channels)
        query, key, value = (NIN(channels, dtype=self.dtype)(pixels) for _ in range(3))
        logits = jnp.einsum("bqc,bkc->bqk", query / math.sqrt(channels), key)
        weights = jax.nn.softmax(logits, axis=-1)
        attended = jnp.einsum("bqk,bkc->bqc", weights, value)
        h = NIN(channels, init_scale=self.init_scale, dtype=self.dtype)(attended)
        return residual(x, h.reshape(x.shape), self.skip_rescale)


class AttnBlock(AttnBlockpp):
    """The attention block of DDPM."""

    num_groups: int | None = 32


class Combine(nn.Module):
    """Joins the image pyramid with the features `h`, by "sum" or by "cat"."""

    method: str
    dtype: Any = None

    @nn.compact
    def __call__(self, pyramid: jax.Array, h: jax.Array) -> jax.Array:
        pyramid = Conv(h.shape[-1], 1, dtype=self.dtype)(pyramid)
        return pyramid + h if self.method == "sum" else jnp.concatenate([pyramid, h], axis=-1)


def upsample(x: jax.Array, fir_kernel: FirKernel) -> jax.Array:
    """Twice the resolution: nearest neighbours, or filtered by `fir_kernel`."""
    return naive_upsample_2d(x) if fir_kernel is None else upsample_2d(x, fir_kernel)


def downsample(x: jax.Array, fir_kernel: FirKernel) -> jax.Array:
    """Half the resolution: averages, or filtered by `fir_kernel`."""
    return naive_downsample_2d(x) if fir_kernel is None else downsample_2d(x, fir_kernel)


class Upsample(nn.Module):
    """Twice the resolution, optionally with a 3x3 convolution to `features` (None: as many)."""

    with_conv: bool
    fir_kernel: FirKernel = None
    features: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.features or x.shape[-1]
        if not self.with_conv:
            return upsample(x, self.fir_kernel)
        if self.fir_kernel is None:
            return Conv(features, dtype=self.dtype)(upsample(x, None))
        return Conv2d(features, up=True, resample_kernel=self.fir_kernel, dtype=self.dtype)(x)


class Downsample(nn.Module):
    """Half the resolution, optionally with a 3x3 convolution to `features` (None: as many)."""

    with_conv: bool
    fir_kernel: FirKernel = None
    features: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.features or x.shape[-1]
        if not self.with_conv:
            return downsample(x, self.fir_kernel)
        if self.fir_kernel is None:
            return Conv(features, stride=2, dtype=self.dtype)(x)
        return Conv2d(features, down=True, resample_kernel=self.fir_kernel, dtype=self.dtype)(x)


class ResnetBlockBigGANpp(nn.Module):
    """Two 3x3 convolutions and a shortcut around them; may `resample` (Brock et al. 2019).

    `dropout_keys [B]` switch dropout on. `first_groups`, if not None, are the groups of the first
    norm instead of `num_groups`. `nin_shortcut` replaces the 1x1 convolution of the
    shortcut by a NIN, the same map under another name.
    """

    features: int
    act: Activation
    dropout: float = 0.0
    init_scale: float = 0.0
    skip_rescale: bool = False
    num_groups: int | None = None
    first_groups: int | None = None
    nin_shortcut: bool = False
    resample: Callable[[jax.Array], jax.Array] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array | None, dropout_keys: jax.Array | None
    ) -> jax.Array:
        first_groups = self.first_groups or self.num_groups
        last_init = default_init(self.init_scale)

        h = GroupNorm(first_groups, self.act, dtype=self.dtype)(x)
        changed = x.shape[-1] != self.features or self.resample is not None
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = Conv(self.features, dtype=self.dtype)(h)
        if temb is not None:
            dense = nn.Dense(self.features, kernel_init=default_init(), dtype=self.dtype)
            h += dense(self.act(temb))[:, None, None]
        h = GroupNorm(self.num_groups, self.act, dtype=self.dtype)(h)
        h = dropout(h, self.dropout, dropout_keys)
        h = Conv(self.features, kernel_init=last_init, dtype=self.dtype)(h)
        if changed and self.nin_shortcut:
            x = NIN(self.features, dtype=self.dtype)(x)
        elif changed:
            x = Conv(self.features, 1, dtype=self.dtype)(x)
        return residual(x, h, self.skip_rescale)


class ResnetBlockDDPMpp(ResnetBlockBigGANpp):
    """The residual block of DDPM with NCSN++'s number of groups."""

    nin_shortcut: bool = True


class ResnetBlockDDPM(ResnetBlockDDPMpp):
    """The residual block of DDPM (Ho et al. 2020, appendix B)."""

    num_groups: int | None = 32
