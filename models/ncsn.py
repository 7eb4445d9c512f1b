"""NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020): RefineNets that estimate scores.

A residual network makes features at ever lower resolutions (then, instead of resolution, dilation
grows); refinement blocks merge them again, from the coarsest to the finest. NCSN tells every block
the noise level, through the norms; NCSNv2 has no such input and divides its output by sigma.

Class names, and the order in which a block calls its layers, are parts of the parameter names of
the published checkpoints. Images are [B, H, W, C]; `labels [B]` are integers i that stand for the
i-th noise level, counted from sigma_max (i = 0) down to sigma_min.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.embeddings import noise_levels
from models.layers import ACTIVATIONS, Activation, apply_block, check_choices
from models.ops.conv import Conv, Initializer
from models.resample import naive_downsample_2d

INTERPOLATIONS = {"bilinear": "bilinear", "nearest_neighbor": "nearest", "nearest": "nearest"}


class Architecture(NamedTuple):
    """Per stage: features (in units of nf) and dilation; per refinement: features."""

    widths: tuple[int, ...]
    dilations: tuple[int, ...]
    refined: tuple[int, ...]


ARCHITECTURES = {
    "64": Architecture((1, 2, 2, 2), (1, 1, 2, 4), (2, 2, 2, 1)),
    "128": Architecture((1, 2, 2, 4, 4), (1, 1, 1, 2, 4), (4, 2, 2, 1, 1)),
    "256": Architecture((1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4), (4, 2, 2, 2, 1, 1)),
}


class Style(NamedTuple):
    """What all blocks of a network have in common.

    `num_classes` of the norms is 0 where they are not conditional; `dtype` is that of the
    computation, None for float32; `pytorch` is explained at `NCSNv2`.
    """

    act: Activation
    interpolation: str = "bilinear"
    num_classes: int = 0
    dtype: Any = None
    pytorch: bool = False


def _near_one(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return 1.0 + nn.initializers.normal(0.02)(key, shape, dtype)


def _scale_and_shift(
    key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
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


def _norm(x: jax.Array, labels: jax.Array, style: Style) -> jax.Array:
    if style.num_classes:
        return ConditionalInstanceNorm2dPlus(style)(x, labels)
    return InstanceNorm2dPlus(style)(x)


def _norm_if_conditional(x: jax.Array, labels: jax.Array, style: Style) -> jax.Array:
    return _norm(x, labels, style) if style.num_classes else x


def _conv(
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
    """Chained residual pooling: adds what 5x5 pooling and convolution make of x, twice."""

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        x = path = self.style.act(x)
        for _ in range(2):
            if self.style.num_classes:
                path = _mean_pool(_norm(path, labels, self.style))
            else:
                path = _max_pool(path)
            path = _conv(path, self.features, self.style, use_bias=False)
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
                h = _conv(h, x.shape[-1], self.style, use_bias=False)
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
            h = _conv(h, self.features, self.style)
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
        h = style.act(_norm(x, labels, style))
        h = _conv(h, x.shape[-1], style, dilation=dilation)
        h = style.act(_norm(h, labels, style))
        if self.features is None:
            return _conv(h, x.shape[-1], style, dilation=dilation) + x
        if dilation == 1:
            h = ConvMeanPool(self.features, style)(h)
            return h + ConvMeanPool(self.features, style, kernel_size=1)(x)
        h = _conv(h, self.features, style, dilation=dilation)
        return h + _conv(x, self.features, style, dilation=dilation)


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


class NCSNv2(nn.Module):
    """The unconditional network of Song & Ermon (2020).

    Attributes:
      nf: features at full resolution.
      architecture: "64", "128" or "256", the side of the images that it was designed for
        (images of 32 pixels use "64"); halves the resolution once, twice or three times.
      nonlinearity: one of `models.layers.ACTIVATIONS`.
      interpolation: how feature maps grow, "bilinear" or "nearest_neighbor".
      scale_by_sigma: divide the output by the noise level (technique 3), see `noise_levels`.
      sigma_min, sigma_max, num_scales: the noise levels, a geometric sequence.
      centered: x is in [-1, 1]; else it is in [0, 1] and rescaled here.
      dtype: of the computation; parameters, norms and the output stay float32.
      remat: recompute residual and refinement blocks in the backward pass, to save memory.
      pytorch: as the authors' PyTorch version: Bessel's correction in the variance of the means
        of InstanceNorm++, bilinear interpolation with aligned corners, and nf features, not 2 nf,
        in the third refinement of "64".

    Raises:
      ValueError: an unknown choice, or sides that cannot be halved often enough.
    """

    nf: int = 128
    architecture: str = "64"
    nonlinearity: str = "elu"
    interpolation: str = "bilinear"
    scale_by_sigma: bool = True
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 232
    centered: bool = False
    dtype: Any = None
    remat: bool = False
    pytorch: bool = False

    conditional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        choices: dict[str, Iterable[str]] = {
            "architecture": ARCHITECTURES,
            "nonlinearity": ACTIVATIONS,
            "interpolation": INTERPOLATIONS,
        }
        check_choices(self, choices)
        if self.pytorch and self.interpolation != "bilinear":
            raise ValueError(
                f"model.interpolation is {self.interpolation!r}; with model.pytorch=True it must "
                "be bilinear"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """The score [B, H, W, C]. The network has no dropout: `dropout_keys` change nothing."""
        del dropout_keys
        widths, dilations, refined = ARCHITECTURES[self.architecture]
        if self.pytorch and self.architecture == "64":
            refined = (2, 2, 1, 1)
        factor = 2 ** (dilations.count(1) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"images of {x.shape[1]} x {x.shape[2]} do not fit the NCSN architecture "
                f"{self.architecture}; sides must be multiples of {factor}"
            )
        style = Style(
            ACTIVATIONS[self.nonlinearity],
            INTERPOLATIONS[self.interpolation],
            self.num_classes if self.conditional else 0,
            self.dtype,
            self.pytorch,
        )
        residual, refine = PARTS[self.conditional][:2]

        h = _conv(x if self.centered else 2 * x - 1, self.nf, style)
        stages: list[jax.Array] = []
        for width, dilation in zip(widths, dilations, strict=True):
            features = width * self.nf if stages else None
            h = apply_block(residual(style, features, dilation), self.remat, h, labels)
            h = apply_block(residual(style, None, dilation), self.remat, h, labels)
            stages.append(h)

        xs: list[jax.Array] = []
        for width in refined:
            block = refine(width * self.nf, style, last=len(stages) == 1)
            xs = [apply_block(block, self.remat, [stages.pop(), *xs], labels)]

        h = style.act(_norm(xs[0], labels, style))
        h = _conv(h, x.shape[-1], style).astype(jnp.float32)
        if self.scale_by_sigma:
            sigmas = noise_levels(labels, self.sigma_min, self.sigma_max, self.num_scales)
            h = h / sigmas[:, None, None, None]
        return h


class NCSN(NCSNv2):
    """The network of Song & Ermon (2019): NCSNv2 (64) with norms that know the noise level.

    `num_classes` is the number of noise levels that the norms tell apart.

    Raises:
      ValueError: labels are not integers.
    """

    scale_by_sigma: bool = False
    num_scales: int = 10
    sigma_max: float = 1.0
    num_classes: int = 10

    conditional: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """The score [B, H, W, C]; see `NCSNv2`."""
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"NCSN knows {self.num_classes} noise levels by number: labels must be integers, "
                f"not {labels.dtype} (set training.continuous=False)"
            )
        return super().__call__(x, labels, dropout_keys)
