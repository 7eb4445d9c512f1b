"""NCSN++ and DDPM++: the networks of Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations", section 4.1 and appendix H, as one family."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import (
    GaussianFourierProjection,
    class_embedding,
    noise_embedding,
    noise_levels,
    positional_embedding,
)
from models.layers import (
    ACTIVATIONS,
    Activation,
    AttnBlockpp,
    Combine,
    Downsample,
    FirKernel,
    GroupNorm,
    ResnetBlockBigGANpp,
    ResnetBlockDDPMpp,
    Upsample,
    apply_block,
    check_choices,
    check_resolution,
    downsample,
    per_block_keys,
    residual,
    upsample,
)
from models.ops.conv import Conv, default_init

RESBLOCKS = {"biggan": ResnetBlockBigGANpp, "ddpm": ResnetBlockDDPMpp}
CHOICES: dict[str, Iterable[str]] = {
    "nonlinearity": ACTIVATIONS,
    "resblock_type": RESBLOCKS,
    "embedding_type": ["fourier", "positional"],
    "progressive": ["none", "output_skip", "residual"],
    "progressive_input": ["none", "input_skip", "residual"],
    "progressive_combine": ["sum", "cat"],
}


class NCSNpp(nn.Module):
    """A U-Net from (x [B, H, W, C], labels [B]) to [B, H, W, C].

    Attributes:
      nf: width of the first level; level l has `nf * ch_mult[l]` channels and 1 / 2^l of the
        resolution, and `num_res_blocks` residual blocks on the way down.
      attn_resolutions: heights of the images at which attention follows.
      attn_num_groups: at these heights, the groups of attention's norm and of the first norm of
        the blocks on the way up, as in diffusers; 0 for as many as in the other norms.
      resblock_type: "biggan" blocks resample inside; after "ddpm" blocks resampling is a step of
        its own, with a convolution if `resamp_with_conv`.
      fir_kernel: the anti-aliasing filter of all resampling; None for nearest and average.
      skip_rescale: divide sums of two branches by sqrt(2).
      progressive: how the output is made: from the last level ("none"), as a sum over levels of
        upsampled images ("output_skip"), or from a residual pyramid of features ("residual").
      progressive_input: whether the downsampled input is fed to each level, and how:
        `progressive_combine` "sum" or "cat" of a 1x1 convolution of it ("input_skip"), or as the
        main branch of a residual sum ("residual").
      embedding_type: "fourier" for labels that are noise levels, "positional" for times and
        indices; unused if not `conditional`.
      scale_by_sigma: divide the output by the noise level, see `noise_levels`.
      centered: x is in [-1, 1]; else it is in [0, 1] and rescaled here.
      num_labels: number of classes that the network may be told; 0 for none.
      dtype: of the computation; parameters, norms and the output stay float32.
      remat: recompute residual and attention blocks in the backward pass, to save memory.

    Raises:
      ValueError: an unknown choice, or a resolution that cannot be halved often enough.
    """

    nf: int = 128
    ch_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    nonlinearity: str = "swish"
    resblock_type: str = "biggan"
    resamp_with_conv: bool = True
    fir_kernel: FirKernel = (1, 3, 3, 1)
    skip_rescale: bool = True
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    conditional: bool = True
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    init_scale: float = 0.0
    scale_by_sigma: bool = True
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    centered: bool = False
    num_labels: int = 0
    dtype: Any = None
    remat: bool = False
    attn_num_groups: int = 0

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
        nf, levels, channels = self.nf, len(self.ch_mult), x.shape[-1]
        check_resolution(x, levels)
        act = ACTIVATIONS[self.nonlinearity]
        fir, dtype, last_init = self.fir_kernel, self.dtype, default_init(self.init_scale)
        temb = self.embed(labels, y, act)
        keys = per_block_keys(dropout_keys)

        def block(
            h: jax.Array,
            features: int | None = None,
            resampling: Any = None,
            first_groups: int | None = None,
        ) -> jax.Array:
            module = RESBLOCKS[self.resblock_type](
                features or h.shape[-1],
                act,
                dropout=self.dropout,
                init_scale=self.init_scale,
                skip_rescale=self.skip_rescale,
                first_groups=first_groups,
                resample=resampling,
                dtype=dtype,
            )
            return apply_block(module, self.remat, h, temb, next(keys))

        def attention(h: jax.Array, num_groups: int | None = None) -> jax.Array:
            module = AttnBlockpp(
                num_groups=num_groups,
                init_scale=self.init_scale,
                skip_rescale=self.skip_rescale,
                dtype=dtype,
            )
            return apply_block(module, self.remat, h)

        def head(h: jax.Array, features: int, kernel_init: Any = last_init) -> jax.Array:
            h = GroupNorm(act=act, dtype=dtype)(h)
            return Conv(features, kernel_init=kernel_init, dtype=dtype)(h)

        def down(h: jax.Array) -> jax.Array:
            if self.resblock_type == "biggan":
                return block(h, resampling=functools.partial(downsample, fir_kernel=fir))
            return Downsample(self.resamp_with_conv, fir, dtype=dtype)(h)

        def up(h: jax.Array) -> jax.Array:
            if self.resblock_type == "biggan":
                return block(h, resampling=functools.partial(upsample, fir_kernel=fir))
            return Upsample(self.resamp_with_conv, fir, dtype=dtype)(h)

        level_groups = self.attn_num_groups or None
        x = x if self.centered else 2.0 * x - 1.0
        pyramid = x  # the input pyramid
        skips = [Conv(nf, dtype=dtype)(x)]
        for level, width in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = block(skips[-1], nf * width)
                if h.shape[1] in self.attn_resolutions:
                    h = attention(h, level_groups)
                skips.append(h)
            if level < levels - 1:
                h = down(skips[-1])
                if self.progressive_input == "input_skip":
                    pyramid = Downsample(False, fir)(pyramid)
                    h = Combine(self.progressive_combine, dtype)(pyramid, h)
                elif self.progressive_input == "residual":
                    pyramid = Downsample(True, fir, h.shape[-1], dtype)(pyramid)
                    h = pyramid = residual(pyramid, h, self.skip_rescale)
                skips.append(h)

        h = block(attention(block(skips[-1])))

        grown: Any = None  # the output pyramid
        for level, width in reversed(list(enumerate(self.ch_mult))):
            first_groups = level_groups if h.shape[1] in self.attn_resolutions else None
            for _ in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, nf * width, first_groups=first_groups)
            if h.shape[1] in self.attn_resolutions:
                h = attention(h, level_groups)
            if self.progressive == "output_skip":
                below = 0.0 if grown is None else Upsample(False, fir)(grown)
                grown = below + head(h, channels).astype(jnp.float32)
            elif self.progressive == "residual" and grown is None:
                grown = head(h, h.shape[-1], default_init())
            elif self.progressive == "residual":
                grown = Upsample(True, fir, h.shape[-1], dtype)(grown)
                h = grown = residual(grown, h, self.skip_rescale)
            if level > 0:
                h = up(h)

        out = grown if self.progressive == "output_skip" else head(h, channels)
        out = out.astype(jnp.float32)
        if self.scale_by_sigma:
            sigmas = noise_levels(labels, self.sigma_min, self.sigma_max, self.num_scales)
            out = out / sigmas[:, None, None, None]
        return out

    def embed(self, labels: jax.Array, y: jax.Array | None, act: Activation) -> jax.Array | None:
        """What the residual blocks are conditioned on, [B, 4 nf] or None."""
        if self.embedding_type == "fourier":
            features = GaussianFourierProjection(self.nf, self.fourier_scale)(jnp.log(labels))
        else:
            features = positional_embedding(labels, self.nf)
        temb = noise_embedding(features, self.nf, act) if self.conditional else None
        if self.num_labels:
            temb = class_embedding(temb, y, len(labels), self.num_labels, self.nf)
        return temb
