"""A U-Net of series: the residual blocks and the attention of DDPM's, along one axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import condition_embedding, over_noise_level
from models.layers import (
    ACTIVATIONS,
    AttnBlockpp,
    GroupNorm,
    check_choices,
    dropout,
    per_block_keys,
)
from models.mlp import CHOICES
from models.ops.conv import default_init


class Conv1D(nn.Module):
    """A convolution of width 3 along a series: [B, L, C] to [B, L, features], zeros beyond it.

    It is a dense layer of each place and its two neighbours, which every platform computes as one
    product of matrices.
    """

    features: int
    init_scale: float = 1.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        length = x.shape[1]
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        taps = jnp.concatenate([padded[:, i : i + length] for i in range(3)], -1)
        kernel_init = default_init(self.init_scale)
        return nn.Dense(self.features, kernel_init=kernel_init, dtype=self.dtype)(taps)


class ResidualBlock(nn.Module):
    """Two convolutions, each behind a group norm and an activation, and a shortcut around them.

    The embedding `temb [B, E]` of time and class is added between the two (Ho et al. 2020,
    appendix B).
    """

    features: int
    act: Any
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array | None, keys: jax.Array | None = None
    ) -> jax.Array:
        h = GroupNorm(act=self.act, dtype=self.dtype)(x)
        h = Conv1D(self.features, dtype=self.dtype)(h)
        if temb is not None:
            h += nn.Dense(self.features, dtype=self.dtype)(self.act(temb))[:, None]
        h = GroupNorm(act=self.act, dtype=self.dtype)(h)
        h = Conv1D(self.features, 0.0, dtype=self.dtype)(dropout(h, self.dropout, keys))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype)(x)
        return x + h


class UNet1D(nn.Module):
    """A U-Net of series, from (x [B, L, C], labels [B]) to [B, L, C].

    Attributes:
      nf: channels at full resolution, a multiple of 4.
      ch_mult: factors on nf at full, half, ... resolution.
      num_res_blocks: residual blocks at each resolution; one more on the way up.
      attn_resolutions: the lengths at which there is attention; there always is at the bottom.
      conditional, embedding_type, fourier_scale, scale_by_sigma: as in `MLP`.
      num_labels: number of classes that may condition the network; 0 for none.
      dtype: of the computation; parameters and the output stay float32.

    Raises:
      ValueError: an unknown choice, a width that is no multiple of 4, or a length that cannot be
        halved often enough.
    """

    nf: int = 32
    ch_mult: Sequence[int] = (1, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = ()
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
        choices: dict[str, Iterable[str]] = CHOICES
        check_choices(self, choices)
        if self.nf % 4:
            raise ValueError(f"model.nf is {self.nf}; it must be a multiple of 4 for a U-Net")
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
        factor, length = 2 ** (len(self.ch_mult) - 1), x.shape[1]
        if length % factor:
            raise ValueError(
                f"series of length {length} cannot be halved {len(self.ch_mult) - 1} times, once "
                f"per level of model.ch_mult after the first; it must be a multiple of {factor}"
            )
        act, keys = ACTIVATIONS[self.nonlinearity], per_block_keys(dropout_keys)
        temb = condition_embedding(self, labels, y, self.nf)

        def block(h: jax.Array, features: int, attends: bool = False) -> jax.Array:
            h = ResidualBlock(features, act, self.dropout, self.dtype)(h, temb, next(keys))
            attends |= h.shape[1] in self.attn_resolutions
            return AttnBlockpp(dtype=self.dtype)(h) if attends else h

        h = Conv1D(self.nf, dtype=self.dtype)(x)
        skips = [h]
        for level, width in enumerate(self.ch_mult):
            if level:
                h = nn.Dense(h.shape[-1], dtype=self.dtype)(h.reshape(len(h), h.shape[1] // 2, -1))
                skips.append(h)
            for _ in range(self.num_res_blocks):
                h = block(h, self.nf * width)
                skips.append(h)
        h = block(h, h.shape[-1], attends=True)
        h = block(h, h.shape[-1])
        for level, width in reversed(list(enumerate(self.ch_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), self.nf * width)
            if level:
                h = Conv1D(h.shape[-1], dtype=self.dtype)(jnp.repeat(h, 2, axis=1))
        h = GroupNorm(act=act, dtype=self.dtype)(h)
        out = Conv1D(x.shape[-1], 0.0, dtype=self.dtype)(h).astype(jnp.float32)
        return over_noise_level(self, out, labels)
