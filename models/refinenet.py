"""The blocks of RefineNets (Lin et al. 2017) as NCSN and NCSNv2 use them.

A style says what the blocks of one network share; where it has classes, every norm is conditional
on the noise level, and the blocks go by other names. Class names, and the order in which a block
calls its layers, are parts of the parameter names of the published checkpoints. Images are
[B, H, W, C]; `labels [B]` are integers, the numbers of noise levels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.layers import Activation
from models.ops.conv import Conv, Initializer
from models.resample import naive_downsample_2d


class Style(NamedTuple):
    """Properties that all blocks of a network share.

    `num_classes` of the norms is 0 where they are not conditional; `dtype` is that of the
    computation, None for float32; `pytorch` is explained at `NCSNv2`.
    """

    act: Activation
    interpolation: str = "bilinear"
    num_classes: int = 0
    dtype: Any = None
    pytorch: bool = False


def _near_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return 1.0 + nn.initializers.normal(0.02)(key, shape, dtype)


def _scale_and_shift(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    classes, size = shape
    near_one = _near_one(key, (classes, size // 3 * 2), dtype)
    return jnp.concatenate([near_one, jnp.zeros((classes, size // 3), dtype)], axis=1)


def _standardise(x: jax.Array, axes: tuple[int, ...], correction: int = 0) -> jax.Array:
    variance = x.var(axes, keepdims=True, correction=correction)
    return (x - x.mean(axes, keepdims=True)) * lax.rsqrt(variance + 1e-5)


def _instance_norm_plus(
    x: jax.Array, gamma: jax.Array, alpha: jax.Array, beta: jax.Array, style: Style
) -> jax.Array:
    """InstanceNorm++ (Song & Ermon 2019, appendix A): each channel of each image standardised over
    space, plus alpha times its mean standardised over channels; then an affine map. In float32;
    no variance has Bessel's correction, but the means' in the PyTorch version."""
    x = x.astype(jnp.float32)
    means = _standardise(x.mean((1, 2), keepdims=True), (3,), correction=int(style.pytorch))
    normed = gamma * (_standardise(x, (1, 2)) + alpha * means) + beta
    return normed.astype(style.dtype or jnp.float32)


class InstanceNorm2dPlus(nn.Module):
    """InstanceNorm++ with parameters `alpha`, `gamma`, `beta` [1, 1, 1, C]."""

    style: Style

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, 1, x.shape[-1])
        alpha = self.param("alpha", _near_one, shape)
        gamma = self.param("gamma", _near_one, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        return _instance_norm_plus(x, gamma, alpha, beta, self.style)


class ConditionalInstanceNorm2dPlus(nn.Module):
    """InstanceNorm++ whose gamma, alpha and beta are rows of `Embed_0` [classes, 3 C]."""

    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        size = 3 * x.shape[-1]
        embed = nn.Embed(self.style.num_classes, size, embedding_init=_scale_and_shift)
        gamma, alpha, beta = jnp.split(embed(labels)[:, None, None], 3, axis=-1)
        return _instance_norm_plus(x, gamma, alpha, beta, self.style)


def norm(x: jax.Array, labels: jax.Array, style: Style) -> jax.Array:
    """InstanceNorm++, conditional on `labels [B]` where the style has classes."""
    if style.num_classes:
        return ConditionalInstanceNorm2dPlus(style)(x, labels)
    return InstanceNorm2dPlus(style)(x)


def _norm_if_conditional(x: jax.Array, labels: jax.Array, style: Style) -> jax.Array:
    return norm(x, labels, style) if style.num_classes else x


def conv3x3(
    x: jax.Array, features: int, style: Style, use_bias: bool = True, dilation: int = 1
) -> jax.Array:
    """A 3x3 convolution with PyTorch's default initial values: kernel and bias are uniform with
    variance 1 / (3 fan_in)."""
    init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    shape = (3, 3, x.shape[-1], features)
    return Conv(
        features,
        dilation=dilation,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=lambda key, _: init(key, shape)[0, 0, 0],
        dtype=style.dtype,
    )(x)


def _resize(x: jax.Array, size: tuple[int, ...], style: Style) -> jax.Array:
    """The images at another size (height, width), by `style.interpolation`."""
    if not style.pytorch:
        return jax.image.resize(x, (len(x), *size, x.shape[-1]), style.interpolation)
    rows, columns = (
        _aligned_corners(old, new).astype(x.dtype)
        for old, new in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def _aligned_corners(old: int, new: int) -> jax.Array:
    """The matrix [new, old] of linear interpolation that keeps the first and the last pixel."""
    places = jnp.linspace(0.0, old - 1.0, new)[:, None]
    return jnp.maximum(0.0, 1.0 - jnp.abs(places - jnp.arange(old)))


def _max_pool(x: jax.Array) -> jax.Array:
    """The maximum over the 5x5 pixels around each pixel, those outside the image left out."""
    for axis in (1, 2):
        edges = [(0, 0, 0)] * 4
        edges[axis] = (2, 2, 0)
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
        for reach in (1, 2, 1):
            low = lax.slice_in_dim(x, 0, x.shape[axis] - reach, 1, axis)
            x = jnp.maximum(low, lax.slice_in_dim(x, reach, None, 1, axis))
    return x


def _mean_pool(x: jax.Array) -> jax.Array:
    """The mean over the 5x5 pixels around each pixel, those outside the image counted as zero."""
    for axis in (1, 2):
        window, edges = [1] * 4, [(0, 0)] * 4
        window[axis], edges[axis] = 5, (2, 2)
        x = lax.reduce_window(x, 0.0, lax.add, window, (1,) * 4, edges) / 5
    return x


class CRPBlock(nn.Module):
    """Chained residual pooling: x, plus its pooling (5x5) and convolution, plus those of that."""

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        x = path = self.style.act(x)
        for _ in range(2):
            if self.style.num_classes:
                path = _mean_pool(norm(path, labels, self.style))
            else:
                path = _max_pool(path)
            path = conv3x3(path, self.features, self.style, use_bias=False)
            x = path + x
        return x


class RCUBlock(nn.Module):
    """A chain of `num_blocks` residual units of two convolutions each."""

    num_blocks: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        for _ in range(self.num_blocks):
            h = x
            for _ in range(2):
                h = self.style.act(_norm_if_conditional(h, labels, self.style))
                h = conv3x3(h, x.shape[-1], self.style, use_bias=False)
            x = h + x
        return x


class MSFBlock(nn.Module):
    """The sum of feature maps `xs`, each convolved and resized to the size of the first."""

    features: int
    style: Style

    @nn.compact
    def __call__(self, xs: list[jax.Array], labels: jax.Array) -> jax.Array:
        total: Any = 0.0
        for x in xs:
            h = _norm_if_conditional(x, labels, self.style)
            h = conv3x3(h, self.features, self.style)
            total += _resize(h, xs[0].shape[1:3], self.style)
        return total


class ConvMeanPool(nn.Module):
    """A convolution, then the mean of every 2x2 pixels."""

    features: int
    style: Style
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init, dtype = nn.initializers.lecun_normal(), self.style.dtype
        conv = Conv(self.features, self.kernel_size, kernel_init=init, dtype=dtype)
        return naive_downsample_2d(conv(x))


class ResidualBlock(nn.Module):
    """Norm, activation and convolution, twice. With `features` the block changes width and, unless
    it is dilated, halves the resolution."""

    style: Style
    features: int | None = None
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        style, dilation = self.style, self.dilation
        h = style.act(norm(x, labels, style))
        h = conv3x3(h, x.shape[-1], style, dilation=dilation)
        h = style.act(norm(h, labels, style))
        if self.features is None:
            return conv3x3(h, x.shape[-1], style, dilation=dilation) + x
        if dilation == 1:
            h = ConvMeanPool(self.features, style)(h)
            return h + ConvMeanPool(self.features, style, kernel_size=1)(x)
        h = conv3x3(h, self.features, style, dilation=dilation)
        return h + conv3x3(x, self.features, style, dilation=dilation)


class RefineBlock(nn.Module):
    """Adapts every input, fuses them at the resolution of the first, pools, and adapts again."""

    features: int
    style: Style
    last: bool = False

    @nn.compact
    def __call__(self, xs: list[jax.Array], labels: jax.Array) -> jax.Array:
        rcu, crp, msf = PARTS[bool(self.style.num_classes)][2:]
        hs = [rcu(2, self.style)(x, labels) for x in xs]
        h = msf(self.features, self.style)(hs, labels) if len(hs) > 1 else hs[0]
        h = crp(self.features, self.style)(h, labels)
        return rcu(3 if self.last else 1, self.style)(h, labels)


class ConditionalResidualBlock(ResidualBlock):
    """A residual block with conditional norms."""


class CondRefineBlock(RefineBlock):
    """A refinement block of conditional parts."""


class CondRCUBlock(RCUBlock):
    """Residual units with a conditional norm before each activation."""


class CondCRPBlock(CRPBlock):
    """Residual pooling by means, with a conditional norm before each."""


class CondMSFBlock(MSFBlock):
    """Fusion with a conditional norm before each convolution."""


PARTS = {
    False: (ResidualBlock, RefineBlock, RCUBlock, CRPBlock, MSFBlock),
    True: (ConditionalResidualBlock, CondRefineBlock, CondRCUBlock, CondCRPBlock, CondMSFBlock),
}
