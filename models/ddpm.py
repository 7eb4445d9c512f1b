"""The network of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import (
    class_embedding,
    noise_embedding,
    noise_levels,
    positional_embedding,
)
from models.layers import (
    ACTIVATIONS,
    AttnBlock,
    Downsample,
    GroupNorm,
    ResnetBlockDDPM,
    Upsample,
    apply_block,
    check_choices,
    check_resolution,
    per_block_keys,
)
from models.ops.conv import Conv, default_init

Block = Callable[..., jax.Array]  # (h, features) -> h


class DDPM(nn.Module):
    """DDPM's U-Net (Ho et al. 2020).

    It goes from (x [B, H, W, C], labels [B]) to [B, H, W, C].

    The attributes mean what they mean in `NCSNpp`. Every norm has 32 groups, so `nf` must be a
    multiple of 32; the last layer of each block and of the network begins at nearly zero. With
    `attn_each_up_block` attention follows every block of the way up, as in diffusers and in the
    authors' own code, and not only the last one of a level.

    Raises:
      ValueError: an unknown nonlinearity, a width that 32 does not divide, or a resolution that
        cannot be halved often enough.
    """

    nf: int = 128
    ch_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    nonlinearity: str = "swish"
    resamp_with_conv: bool = True
    conditional: bool = True
    scale_by_sigma: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    centered: bool = True
    num_labels: int = 0
    dtype: Any = None
    remat: bool = False
    attn_each_up_block: bool = False

    def __post_init__(self) -> None:
        check_choices(self, {"nonlinearity": ACTIVATIONS})
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
        block = functools.partial(self.block, self.embed(labels, y), per_block_keys(dropout_keys))
        skips = self.down_path(x if self.centered else 2.0 * x - 1.0, block)
        width = skips[-1].shape[-1]
        h = block(self.attention(block(skips[-1], width)), width)
        h = self.up_path(h, skips, block)

        h = GroupNorm(32, ACTIVATIONS[self.nonlinearity], dtype=self.dtype)(h)
        h = Conv(x.shape[-1], kernel_init=default_init(0.0), dtype=self.dtype)(h)
        h = h.astype(jnp.float32)
        if self.scale_by_sigma:
            sigmas = noise_levels(labels, self.sigma_min, self.sigma_max, self.num_scales)
            h = h / sigmas[:, None, None, None]
        return h

    def embed(self, labels: jax.Array, y: jax.Array | None) -> jax.Array | None:
        """The embedding of time and class in every residual block, [B, 4 nf] or None."""
        temb = None
        if self.conditional:
            act = ACTIVATIONS[self.nonlinearity]
            temb = noise_embedding(positional_embedding(labels, self.nf), self.nf, act)
        if self.num_labels:
            temb = class_embedding(temb, y, len(labels), self.num_labels, 4 * self.nf)
        return temb

    def down_path(self, x: jax.Array, block: Block) -> list[jax.Array]:
        """Features after every step of the way down, at full resolution first."""
        skips = [Conv(self.nf, dtype=self.dtype)(x)]
        for level, width in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = block(skips[-1], self.nf * width)
                if h.shape[1] in self.attn_resolutions:
                    h = self.attention(h)
                skips.append(h)
            if level < len(self.ch_mult) - 1:
                skips.append(Downsample(self.resamp_with_conv, dtype=self.dtype)(skips[-1]))
        return skips

    def up_path(self, h: jax.Array, skips: list[jax.Array], block: Block) -> jax.Array:
        """Features at full resolution from the coarsest ones `h`; consumes `skips`."""
        for level, width in reversed(list(enumerate(self.ch_mult))):
            for last in [False] * self.num_res_blocks + [True]:
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.nf * width)
                if h.shape[1] in self.attn_resolutions and (last or self.attn_each_up_block):
                    h = self.attention(h)
            if level > 0:
                h = Upsample(self.resamp_with_conv, dtype=self.dtype)(h)
        return h

    def block(
        self,
        temb: jax.Array | None,
        keys: Iterator[jax.Array | None],
        h: jax.Array,
        features: int,
    ) -> jax.Array:
        """The next residual block, with the next of the dropout `keys`."""
        act = ACTIVATIONS[self.nonlinearity]
        module = ResnetBlockDDPM(features, act, dropout=self.dropout, dtype=self.dtype)
        return apply_block(module, self.remat, h, temb, next(keys))

    def attention(self, h: jax.Array) -> jax.Array:
        """The next attention block."""
        return apply_block(AttnBlock(dtype=self.dtype), self.remat, h)
