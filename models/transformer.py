"""A transformer of tokens: entries of a vector, or patches of a series, a field or an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import condition_embedding, over_noise_level
from models.layers import ACTIVATIONS, check_choices, dropout, per_block_keys
from models.mlp import CHOICES
from models.ops.conv import default_init


def tokens_of(x: jax.Array, patch: int) -> jax.Array:
    """The tokens [B, T, size] of examples: patches of `patch` places along each axis but the last.

    A vector [B, D] has D tokens of one number each.

    Raises:
      ValueError: an axis that patches do not fill.
    """
    if x.ndim == 2:
        return x[..., None]
    *axes, channels = x.shape[1:]
    _check_patches(axes, patch)
    x = x.reshape(len(x), *[n for axis in axes for n in (axis // patch, patch)], channels)
    count = len(axes)
    order = (0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), 2 * count + 1)
    return x.transpose(order).reshape(len(x), -1, patch**count * channels)


def examples_of(tokens: jax.Array, shape: Sequence[int], patch: int) -> jax.Array:
    """The examples [B, *shape] of tokens, the inverse of `tokens_of`."""
    if len(shape) == 1:
        return tokens[..., 0]
    *axes, channels = shape
    count = len(axes)
    x = tokens.reshape(len(tokens), *[n // patch for n in axes], *[patch] * count, channels)
    order = (0, *[n for i in range(count) for n in (1 + i, 1 + count + i)], 1 + 2 * count)
    return x.transpose(order).reshape(len(tokens), *shape)


def _check_patches(axes: Sequence[int], patch: int) -> None:
    if any(axis % patch for axis in axes):
        raise ValueError(
            f"model.patch_size is {patch}, but examples are {' x '.join(map(str, axes))} places; "
            f"it must divide {math.gcd(*axes)}"
        )


class Block(nn.Module):
    """Self-attention and two dense layers, each of normalised tokens and gated by the condition.

    The condition `temb` gives shift, scale and gate of both branches, whose gates begin at zero
    (adaLN-zero: Peebles and Xie 2022, arXiv:2212.09748); without it the norms are plain.
    """

    heads: int
    act: Any
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, h: jax.Array, temb: jax.Array | None, keys: jax.Array | None = None
    ) -> jax.Array:
        width = h.shape[-1]
        shift = scale = shift_2 = scale_2 = jnp.zeros((), h.dtype)
        gate = gate_2 = jnp.ones((), h.dtype)
        if temb is not None:
            layer = nn.Dense(6 * width, kernel_init=nn.initializers.zeros, dtype=self.dtype)
            parts = jnp.split(layer(self.act(temb))[:, None], 6, axis=-1)
            shift, scale, gate, shift_2, scale_2, gate_2 = parts

        def dense(features: int, init_scale: float = 1.0) -> nn.Dense:
            return nn.Dense(features, kernel_init=default_init(init_scale), dtype=self.dtype)

        u = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h)
        qkv = dense(3 * width)(u * (1.0 + scale) + shift)
        q, k, v = jnp.split(qkv.reshape(*h.shape[:2], self.heads, -1), 3, axis=-1)
        logits = jnp.einsum("bqhc,bkhc->bhqk", q / math.sqrt(q.shape[-1]), k)
        attended = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits), v)
        h = h + gate * dense(width)(attended.reshape(h.shape))
        u = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h)
        inner = self.act(dense(4 * width)(u * (1.0 + scale_2) + shift_2))
        return h + gate_2 * dense(width)(dropout(inner, self.dropout, keys))


class Transformer(nn.Module):
    """A transformer, from (x [B, ...], labels [B]) to [B, ...].

    Each entry of a vector is a token, each patch of a series, a field or an image; a token is a
    dense layer of its numbers and a learnt embedding of its place, which says what entry it is.
    The last layer begins at zero.

    Attributes:
      nf: width of the tokens, a multiple of 4 and of the number of heads.
      num_res_blocks: number of blocks.
      num_heads: heads of attention; 0: as many as have `head_channels` channels.
      patch_size: places along each axis of a patch.
      conditional, embedding_type, fourier_scale, scale_by_sigma: as in `MLP`.
      num_labels: number of classes that may condition the network; 0 for none.
      dtype: of the computation; parameters and the output stay float32.

    Raises:
      ValueError: an unknown choice, or a width that does not divide.
    """

    nf: int = 64
    num_res_blocks: int = 4
    num_heads: int = 0
    head_channels: int = 64
    patch_size: int = 1
    dropout: float = 0.0
    nonlinearity: str = "swish"
    conditional: bool = True
    embedding_type: str = "positional"
    fourier_scale: float = 1.0
    scale_by_sigma: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    num_labels: int = 0
    dtype: Any = None

    def __post_init__(self) -> None:
        check_choices(self, CHOICES)
        if self.nf % 4 or self.nf % self.heads:
            raise ValueError(
                f"model.nf is {self.nf}; it must be a multiple of 4 and of {self.heads} head(s) "
                "for a transformer"
            )
        super().__post_init__()

    @property
    def heads(self) -> int:
        return self.num_heads or max(1, self.nf // self.head_channels)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        dropout_keys: jax.Array | None = None,
        y: jax.Array | None = None,
    ) -> jax.Array:
        """`dropout_keys [B]` switch dropout on; `y [B]` are classes, None for the null class."""
        act, keys = ACTIVATIONS[self.nonlinearity], per_block_keys(dropout_keys)
        temb, tokens = (
            condition_embedding(self, labels, y, self.nf // 4),
            tokens_of(x, self.patch_size),
        )
        h = nn.Dense(self.nf, kernel_init=default_init(), dtype=self.dtype)(tokens)
        place = self.param("place", nn.initializers.normal(), (tokens.shape[1], self.nf))
        h = h + place.astype(h.dtype)
        for _ in range(self.num_res_blocks):
            h = Block(self.heads, act, self.dropout, self.dtype)(h, temb, next(keys))
        h = nn.LayerNorm(dtype=self.dtype)(h)
        if temb is not None:
            shift = nn.Dense(self.nf, kernel_init=nn.initializers.zeros, dtype=self.dtype)
            h = act(h + shift(act(temb))[:, None])
        size = tokens.shape[-1]
        out = nn.Dense(size, kernel_init=default_init(0.0), dtype=self.dtype)(h)
        out = examples_of(out.astype(jnp.float32), x.shape[1:], self.patch_size)
        return over_noise_level(self, out, labels)
