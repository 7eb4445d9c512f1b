"""The network of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B."""

from __future__ import annotations

from collections.abc import Sequence
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


class DDPM(nn.Module):
    """A U-Net from (x [B, H, W, C], labels [B]) to [B, H, W, C].

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
        nf, levels, channels, dtype = self.nf, len(self.ch_mult), x.shape[-1], self.dtype
        check_resolution(x, levels)
        act = ACTIVATIONS[self.nonlinearity]
        keys = per_block_keys(dropout_keys)

        temb = None
        if self.conditional:
            temb = noise_embedding(positional_embedding(labels, nf), nf, act)
        if self.num_labels:
            temb = class_embedding(temb, y, len(x), self.num_labels, nf)

        def block(h: jax.Array, features: int) -> jax.Array:
            module = ResnetBlockDDPM(features, act, dropout=self.dropout, dtype=dtype)
            return apply_block(module, self.remat, h, temb, next(keys))

        def attention(h: jax.Array) -> jax.Array:
            return apply_block(AttnBlock(dtype=dtype), self.remat, h)

        x = x if self.centered else 2.0 * x - 1.0
        skips = [Conv(nf, dtype=dtype)(x)]
        for level, width in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = block(skips[-1], nf * width)
                if h.shape[1] in self.attn_resolutions:
                    h = attention(h)
                skips.append(h)
            if level < levels - 1:
                skips.append(Downsample(self.resamp_with_conv, dtype=dtype)(skips[-1]))

        width = skips[-1].shape[-1]
        h = block(attention(block(skips[-1], width)), width)

        for level, width in reversed(list(enumerate(self.ch_mult))):
            for last in [False] * self.num_res_blocks + [True]:
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), nf * width)
                if h.shape[1] in self.attn_resolutions and (last or self.attn_each_up_block):
                    h = attention(h)
            if level > 0:
                h = Upsample(self.resamp_with_conv, dtype=dtype)(h)

        h = GroupNorm(32, act, dtype=dtype)(h)
        h = Conv(channels, kernel_init=default_init(0.0), dtype=dtype)(h).astype(jnp.float32)
        if self.scale_by_sigma:
            sigmas = noise_levels(labels, self.sigma_min, self.sigma_max, self.num_scales)
            h = h / sigmas[:, None, None, None]
        return h
