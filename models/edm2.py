"""EDM2: the magnitude-preserving U-Net of Karras et al. 2024, "Analyzing and Improving the Training
Dynamics of Diffusion Models", arXiv:2312.02696, configuration G (figure 21).

Every layer keeps the expected magnitude, the root mean square, of its input: there are no norms
with parameters and no biases, and the weights of every output channel count by their direction
alone. `unit_weights` is the other half of it, between the steps of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.adm import attention
from models.layers import (
    apply_block,
    check_choices,
    check_resolution,
    downsample,
    dropout,
    per_block_keys,
    upsample,
)
from models.ops.conv import conv

EPSILON = 1e-4  # added to a root mean square before something is divided by it
SILU_RMS = 0.596  # of silu(z) for z ~ N(0, 1) (eq. 81)
RESIDUAL = 0.3  # share of the new branch in the sum of a residual or an attention block
LARGEST = 256.0  # magnitude at which a block's features are clipped
CHOICES = {"embedding_type": ["fourier", "positional"]}


def unit(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`x` divided by its root mean square over `axes`, which is taken in float32."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axes, keepdims=True)
    rms = jnp.sqrt(jnp.maximum(square, 1e-30))  # whose derivative at 0 is 0
    return x / (EPSILON + rms).astype(x.dtype)


def unit_weights(params: Any) -> Any:
    """Parameters whose kernels have the root mean square 1 for every output channel (eq. 66).

    The network computes nearly the same with them: it divides by that itself. Between steps of
    training it keeps the rate at which Adam turns the weights from falling as they grow.
    """

    def constrained(leaf: jax.Array) -> jax.Array:
        return unit(leaf, range(leaf.ndim - 1)) if leaf.ndim > 1 else leaf

    return jax.tree.map(constrained, params)


def mp_silu(x: jax.Array) -> jax.Array:
    """SiLU that maps N(0, 1) to magnitude 1 (eq. 81)."""
    return nn.silu(x) / SILU_RMS


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2): of magnitude 1 where a and b are, if they do not
    correlate (eq. 88)."""
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: jax.Array, b: jax.Array) -> jax.Array:
    """a and b side by side, scaled so that each adds as much to the whole, which keeps its
    magnitude (eq. 103, t = 1/2)."""
    n, m = a.shape[-1], b.shape[-1]
    factor = math.sqrt((n + m) / 2)
    return jnp.concatenate([a * (factor / math.sqrt(n)), b * (factor / math.sqrt(m))], axis=-1)


class MPFourier(nn.Module):
    """Random features sqrt(2) cos(2 pi (f u + p)) of u [B]: [B, size], f ~ N(0, 1), p ~ U(0, 1)
    (eq. 75). Both are parameters without a gradient, for the sake of checkpoints."""

    size: int

    @nn.compact
    def __call__(self, u: jax.Array) -> jax.Array:
        f = self.param("freqs", nn.initializers.normal(2.0 * math.pi), (self.size,))
        p = self.param("phases", nn.initializers.uniform(2.0 * math.pi), (self.size,))
        f, p = jax.lax.stop_gradient((f, p))
        return math.sqrt(2.0) * jnp.cos(u[:, None].astype(jnp.float32) * f + p)


class MPConv(nn.Module):
    """A convolution without bias, or a dense layer with `kernel_size` 0 (eq. 47).

    The kernel of each output channel is divided by its norm, which makes the magnitude of the
    output that of the input, times `gain`.
    """

    features: int
    kernel_size: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        window = (self.kernel_size,) * 2 if self.kernel_size else ()
        shape = (*window, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        fan_in = math.prod(shape[:-1])
        kernel = unit(kernel, range(kernel.ndim - 1)) * (gain / math.sqrt(fan_in))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return conv(x, kernel) if window else x @ kernel


class EDM2Block(nn.Module):
    """A residual block of the way down or up, and attention of so many `heads` (figure 21).

    Attributes:
      up: it is of the way up: the main branch is not normalised, and its width changes after the
        residual branch has left it.
      resample: a change of the resolution, before all else.
    """

    features: int
    up: bool = False
    resample: Any = None
    heads: int = 0
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        def layer(name: str, size: int, features: int = self.features) -> MPConv:
            return MPConv(features, size, dtype=self.dtype, name=name)

        if self.resample is not None:
            x = self.resample(x, fir_kernel=None)
        changes = x.shape[-1] != self.features
        if not self.up:
            x = layer("conv_skip", 1)(x) if changes else x
            x = unit(x, (-1,))
        y = layer("conv_res0", 3)(mp_silu(x))
        gain = self.param("emb_gain", nn.initializers.zeros, ())
        scale = layer("emb_linear", 0)(temb, gain) + 1.0
        y = mp_silu(y * scale[:, None, None].astype(y.dtype))
        y = layer("conv_res1", 3)(dropout(y, self.dropout, dropout_keys))
        if self.up and changes:
            x = layer("conv_skip", 1)(x)
        x = mp_sum(x, y, RESIDUAL)
        if self.heads:
            qkv = layer("attn_qkv", 1, 3 * self.features)(x)
            qkv = qkv.reshape(len(x), x.shape[1] * x.shape[2], self.heads, -1, 3)
            # Queries and keys of unit magnitude, and so are the values (section B.3).
            parts = jnp.moveaxis(unit(qkv, (3,)), -1, 0).reshape(3, *qkv.shape[:2], -1)
            y = attention(parts[0], parts[1], parts[2], self.heads).reshape(x.shape)
            x = mp_sum(x, layer("attn_proj", 1)(y), RESIDUAL)
        return jnp.clip(x, -LARGEST, LARGEST)


class EDM2(nn.Module):
    """EDM2's magnitude-preserving U-Net (Karras et al. 2024).

    It goes from (x [B, H, W, C], labels [B]) to [B, H, W, C]; the output begins at zero.

    The attributes mean what they mean in `ADM`; else:

    Attributes:
      embedding_type: "fourier": labels are noise levels, told by features of a quarter of their
        logarithms; "positional": they are times 0 .. 999, told by features of a thousandth of them.
      num_labels: number of classes; the null class is a vector of zeros.

    Raises:
      ValueError: an unknown choice, or a resolution that cannot be halved often enough.
    """

    nf: int = 192
    ch_mult: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attn_resolutions: Sequence[int] = (16, 8)
    dropout: float = 0.0
    head_channels: int = 64
    embedding_type: str = "fourier"
    num_labels: int = 0
    centered: bool = True
    dtype: Any = None
    remat: bool = False

    def __post_init__(self) -> None:
        check_choices(self, CHOICES)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        dropout_keys: jax.Array | None = None,
        y: jax.Array | None = None,
    ) -> jax.Array:
        """`dropout_keys [B]` switch dropout on; `y [B]` are classes, None for the null class."""
        check_resolution(x, len(self.ch_mult))
        temb, keys = self.embed(labels, y), per_block_keys(dropout_keys)
        height, channels = x.shape[1], x.shape[-1]

        def block(name: str, h: jax.Array, features: int, attends: bool, **kind: Any) -> jax.Array:
            heads = features // self.head_channels if attends else 0
            module = EDM2Block(
                features, heads=heads, dropout=self.dropout, dtype=self.dtype, name=name, **kind
            )
            return apply_block(module, self.remat, h, temb, next(keys))

        def conv_layer(name: str, features: int) -> MPConv:
            return MPConv(features, 3, dtype=self.dtype, name=name)

        x = x if self.centered else 2.0 * x - 1.0
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        skips = []
        for level, factor in enumerate(self.ch_mult):
            side, width = height >> level, self.nf * factor
            if level == 0:
                h = conv_layer(f"enc_{side}_conv", width)(h)
            else:
                h = block(f"enc_{side}_down", h, h.shape[-1], False, resample=downsample)
            skips.append(h)
            for i in range(self.num_res_blocks):
                attends = side in self.attn_resolutions
                h = block(f"enc_{side}_block{i}", h, width, attends)
                skips.append(h)
        for level, factor in reversed(list(enumerate(self.ch_mult))):
            side, width = height >> level, self.nf * factor
            if level == len(self.ch_mult) - 1:
                h = block(f"dec_{side}_in0", h, width, True, up=True)
                h = block(f"dec_{side}_in1", h, width, False, up=True)
            else:
                h = block(f"dec_{side}_up", h, h.shape[-1], False, up=True, resample=upsample)
            for i in range(self.num_res_blocks + 1):
                attends = side in self.attn_resolutions
                h = mp_cat(h, skips.pop())
                h = block(f"dec_{side}_block{i}", h, width, attends, up=True)
        gain = self.param("out_gain", nn.initializers.zeros, ())
        out = conv_layer("out_conv", channels)
        return out(h, gain).astype(jnp.float32)

    def embed(self, labels: jax.Array, y: jax.Array | None) -> jax.Array:
        """The embedding of noise level and class in every block: [B, nf max(ch_mult)]."""
        u = jnp.log(labels) / 4 if self.embedding_type == "fourier" else labels / 1000.0
        width = self.nf * max(self.ch_mult)
        features = MPFourier(self.nf * self.ch_mult[0], name="emb_fourier")(u)
        temb = MPConv(width, name="emb_noise")(features)
        if self.num_labels:
            classes = jnp.full(labels.shape, self.num_labels) if y is None else y
            hot = jax.nn.one_hot(classes, self.num_labels)  # of the null class zeros
            of_class = MPConv(width, name="emb_label")(hot * math.sqrt(self.num_labels))
            temb = mp_sum(temb, of_class, 0.5)
        return mp_silu(temb)
