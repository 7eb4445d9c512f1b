"""ADM: the network of Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis",
section 3, whose blocks scale and shift their norms by the embedding (Nichol and Dhariwal 2021)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import (
    augmentation_embedding,
    class_embedding,
    noise_embedding,
    positional_embedding,
)
from models.layers import (
    NIN,
    GroupNorm,
    apply_block,
    check_choices,
    check_resolution,
    downsample,
    dropout,
    per_block_keys,
    upsample,
)
from models.ops.conv import Conv, default_init

EPSILON = 1e-5
CHOICES = {
    "embedding_type": ["positional", "log_positional"],
    "attention_order": ["legacy", "new"],
}
Resample = Callable[[jax.Array], jax.Array] | None
Block = Callable[..., jax.Array]  # (h, features, resample=None, attends=False) -> h


class ADM(nn.Module):
    """ADM's U-Net (Dhariwal and Nichol 2021).

    It goes from (x [B, H, W, C], labels [B]) to [B, H, W, C].

    The attributes mean what they mean in `NCSNpp`; else:

    Attributes:
      head_channels: of a head of attention; a level that is narrower than that has none.
      num_heads: heads of attention at every level, instead of `head_channels`; 0: by these.
      num_groups: groups of the norms; 0: of four channels each, but at most 32.
      embedding_type: "positional" for times and indices, "log_positional" for noise levels.
      learned_variance: the last layer predicts the variance of a step, too (Nichol and Dhariwal
        2021, arXiv:2102.09672, section 3.1).
      attention_order: "legacy" or "new", the layout of q, k and v in guided-diffusion's files, for
        their reader; here they are apart.

    Raises:
      ValueError: an unknown choice, or a resolution that cannot be halved often enough.
    """

    nf: int = 192
    ch_mult: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attn_resolutions: Sequence[int] = (32, 16, 8)
    dropout: float = 0.1
    head_channels: int = 64
    num_heads: int = 0
    num_groups: int = 0
    embedding_type: str = "log_positional"
    learned_variance: bool = False
    attention_order: str = "legacy"
    num_labels: int = 0
    augment_dim: int = 0
    centered: bool = True
    dtype: Any = None
    remat: bool = False

    def __post_init__(self) -> None:
        check_choices(self, CHOICES)
        super().__post_init__()

    @property
    def outputs(self) -> int:
        """How many times the channels of an image the last layer has."""
        return 2 if self.learned_variance else 1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        dropout_keys: jax.Array | None = None,
        y: jax.Array | None = None,
        augment: jax.Array | None = None,
        variance: bool = False,
    ) -> jax.Array:
        """`dropout_keys [B]` switch dropout on; `y [B]` are classes, None for the null class;
        `augment [B, augment_dim]` tells of augmentation, None of none. With `variance` the output
        is [B, H, W, 2 C]: behind the usual one is what `learned_variance` predicts."""
        check_resolution(x, len(self.ch_mult))
        temb, channels = self.embed(labels, y, augment), x.shape[-1]
        block = blocks(self, temb, dropout_keys)
        skips = down_path(self, x if self.centered else 2.0 * x - 1.0, block)
        h = block(skips[-1], skips[-1].shape[-1], attends=True)
        h = self.up_path(block(h, h.shape[-1]), skips, block)
        h = GroupNorm(self.num_groups or None, nn.swish, EPSILON, self.dtype)(h)
        features = self.outputs * channels
        out = Conv(features, kernel_init=default_init(0.0), dtype=self.dtype)(h)
        return (out if variance else out[..., :channels]).astype(jnp.float32)

    def embed(self, labels: jax.Array, y: jax.Array | None, augment: jax.Array | None) -> jax.Array:
        """The embedding of noise level, class and augmentation in every block, [B, 4 nf]."""
        if self.embedding_type == "log_positional":
            labels = jnp.log(labels) / 4
        features = positional_embedding(labels, self.nf, endpoint=False)
        if self.augment_dim:
            features = augmentation_embedding(features, augment, self.augment_dim)
        temb = noise_embedding(features, self.nf, nn.swish)
        if self.num_labels:
            temb = class_embedding(temb, y, len(labels), self.num_labels, 4 * self.nf)
        return temb

    def up_path(self, h: jax.Array, skips: list[jax.Array], block: Block) -> jax.Array:
        """The features at full resolution from the coarsest ones; consumes `skips`."""
        for level, width in reversed(list(enumerate(self.ch_mult))):
            attends = h.shape[1] in self.attn_resolutions
            for _ in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, self.nf * width, attends=attends)
            if level > 0:
                h = block(h, h.shape[-1], functools.partial(upsample, fir_kernel=None))
        return h


class Encoder(Protocol):
    """What the way down reads of a network; see `ADM`."""

    nf: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    dropout: float
    head_channels: int
    num_heads: int
    num_groups: int
    dtype: Any
    remat: bool


def blocks(network: Encoder, temb: jax.Array, dropout_keys: jax.Array | None) -> Block:
    """The blocks of the calling module, which is the `network`, one at each call."""
    keys = per_block_keys(dropout_keys)

    def block(
        h: jax.Array, features: int, resample: Resample = None, attends: bool = False
    ) -> jax.Array:
        heads = network.num_heads or features // network.head_channels
        module = ADMBlock(
            features,
            heads=heads if attends else 0,
            dropout=network.dropout,
            num_groups=network.num_groups or None,
            resample=resample,
            dtype=network.dtype,
        )
        return apply_block(module, network.remat, h, temb, next(keys))

    return block


def down_path(network: Encoder, x: jax.Array, block: Block) -> list[jax.Array]:
    """Features after every step of the way down, at full resolution first."""
    features = [Conv(network.nf * network.ch_mult[0], dtype=network.dtype)(x)]
    for level, width in enumerate(network.ch_mult):
        if level > 0:
            down = functools.partial(downsample, fir_kernel=None)
            features.append(block(features[-1], features[-1].shape[-1], resample=down))
        attends = features[-1].shape[1] in network.attn_resolutions
        for _ in range(network.num_res_blocks):
            features.append(block(features[-1], network.nf * width, attends=attends))
    return features


class ADMBlock(nn.Module):
    """Two 3x3 convolutions, the second after a norm that the embedding scales and shifts, and a
    shortcut around them; may `resample`, and attention of so many `heads` may follow."""

    features: int
    heads: int = 0
    dropout: float = 0.0
    num_groups: int | None = None
    resample: Resample = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        norm = functools.partial(GroupNorm, self.num_groups, epsilon=EPSILON, dtype=self.dtype)
        h = norm(act=nn.swish)(x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = Conv(self.features, dtype=self.dtype)(h)
        dense = nn.Dense(2 * self.features, kernel_init=default_init(), dtype=self.dtype)
        scale, shift = jnp.split(dense(nn.swish(temb))[:, None, None], 2, axis=-1)
        h = nn.swish(norm()(h) * (scale + 1) + shift)
        h = dropout(h, self.dropout, dropout_keys)
        h = Conv(self.features, kernel_init=default_init(0.0), dtype=self.dtype)(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype)(x)
        x = x + h
        return Heads(self.heads, self.num_groups, self.dtype)(x) if self.heads else x


class Heads(nn.Module):
    """Self-attention of several heads over the pixels of each image, and its input."""

    heads: int
    num_groups: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, channels = len(x), x.shape[-1]
        norm = GroupNorm(self.num_groups, epsilon=EPSILON, dtype=self.dtype)
        pixels = norm(x).reshape(b, -1, channels)
        query, key, value = (NIN(channels, dtype=self.dtype)(pixels) for _ in range(3))
        attended = attention(query, key, value, self.heads)
        return x + NIN(channels, init_scale=0.0, dtype=self.dtype)(attended).reshape(x.shape)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, heads: int) -> jax.Array:
    """Attention of queries [B, Q, C] over keys and values [B, K, C], C shared by `heads`."""
    channels = query.shape[-1] // heads
    query, key, value = (
        array.reshape(*array.shape[:2], heads, channels) for array in (query, key, value)
    )
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key * (1 / math.sqrt(channels)))
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(value.dtype)
    attended = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
    return attended.reshape(*attended.shape[:2], -1)
