"""NCSN++ and DDPM++: the networks of Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations", section 4.4 and appendix H, as one family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import (
    augmentation_embedding,
    class_embedding,
    label_features,
    noise_embedding,
    noise_levels,
)
from models.layers import (
    ACTIVATIONS,
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

Block = Callable[..., jax.Array]  # (h, features=None, resample=None, first_groups=0) -> h

RESBLOCKS = {"biggan": ResnetBlockBigGANpp, "ddpm": ResnetBlockDDPMpp}
CHOICES: dict[str, Iterable[str]] = {
    "nonlinearity": ACTIVATIONS,
    "resblock_type": RESBLOCKS,
    "embedding_type": ["fourier", "positional", "log_positional"],
    "class_embedding": ["output", "input"],
    "progressive": ["none", "output_skip", "residual"],
    "progressive_input": ["none", "input_skip", "residual"],
    "progressive_combine": ["sum", "cat"],
}


class NCSNpp(nn.Module):
    """The U-Net of NCSN++ and DDPM++ (Song et al. 2021).

    It goes from (x [B, H, W, C], labels [B]) to [B, H, W, C].

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
      embedding_type: "fourier" or "log_positional" for labels that are noise levels, "positional"
        for times and indices; unused if not `conditional`.
      scale_by_sigma: divide the output by the noise level, see `noise_levels`.
      centered: x is in [-1, 1]; else it is in [0, 1] and rescaled here.
      num_labels: number of classes that may condition the network; 0 for none.
      class_embedding: whether vectors of classes are added to the "output" of the layers that embed
        the noise level, or to their "input", as in EDM.
      augment_dim: how many numbers tell the network how an image was augmented; 0 for none. They
        are zero for an image as it is (Karras et al. 2022, appendix F.2).
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
    class_embedding: str = "output"
    augment_dim: int = 0

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
        augment: jax.Array | None = None,
    ) -> jax.Array:
        """`dropout_keys [B]` switch dropout on; `y [B]` are classes, None for the null class;
        `augment [B, augment_dim]` tells of augmentation, None of none."""
        check_resolution(x, len(self.ch_mult))
        temb = self.embed(labels, y, augment)
        block = functools.partial(self.block, temb, per_block_keys(dropout_keys))
        x = x if self.centered else 2.0 * x - 1.0
        skips = self.down_path(x, block)
        h = block(self.attention(block(skips[-1])))
        out = self.up_path(h, skips, x.shape[-1], block).astype(jnp.float32)
        if self.scale_by_sigma:
            sigmas = noise_levels(labels, self.sigma_min, self.sigma_max, self.num_scales)
            out = out / sigmas[:, None, None, None]
        return out

    def embed(
        self, labels: jax.Array, y: jax.Array | None, augment: jax.Array | None
    ) -> jax.Array | None:
        """The embedding of noise level, class and augmentation in every residual block,
        [B, 4 nf] or None."""
        act = ACTIVATIONS[self.nonlinearity]
        features = label_features(labels, self.nf, self.embedding_type, self.fourier_scale)
        if self.augment_dim:
            features = augmentation_embedding(features, augment, self.augment_dim)
        if self.num_labels and self.class_embedding == "input":
            width = features.shape[-1]
            features = class_embedding(features, y, len(labels), self.num_labels, width)
        temb = noise_embedding(features, self.nf, act) if self.conditional else None
        if self.num_labels and self.class_embedding == "output":
            temb = class_embedding(temb, y, len(labels), self.num_labels, 4 * self.nf)
        return temb

    def down_path(self, x: jax.Array, block: Block) -> list[jax.Array]:
        """Features after every step of the way down, at full resolution first."""
        pyramid = x
        skips = [Conv(self.nf, dtype=self.dtype)(x)]
        for level, width in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = block(skips[-1], self.nf * width)
                if h.shape[1] in self.attn_resolutions:
                    h = self.attention(h, self.attn_num_groups)
                skips.append(h)
            if level < len(self.ch_mult) - 1:
                pyramid, h = self.join_input_pyramid(pyramid, self.down(skips[-1], block))
                skips.append(h)
        return skips

    def up_path(
        self, h: jax.Array, skips: list[jax.Array], channels: int, block: Block
    ) -> jax.Array:
        """The output [B, H, W, channels] from the coarsest features `h`; consumes `skips`."""
        pyramid: jax.Array | None = None
        for level, width in reversed(list(enumerate(self.ch_mult))):
            attended = h.shape[1] in self.attn_resolutions
            first_groups = self.attn_num_groups if attended else 0
            for _ in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, self.nf * width, first_groups=first_groups)
            if attended:
                h = self.attention(h, self.attn_num_groups)
            pyramid, h = self.grow_output_pyramid(pyramid, h, channels)
            if level > 0:
                h = self.up(h, block)
        if self.progressive == "output_skip":
            assert pyramid is not None
            return pyramid
        return self.head(h, channels)

    def join_input_pyramid(self, pyramid: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input pyramid at the resolution of `h`, and the features that it joins."""
        if self.progressive_input == "input_skip":
            pyramid = Downsample(False, self.fir_kernel)(pyramid)
            h = Combine(self.progressive_combine, self.dtype)(pyramid, h)
        elif self.progressive_input == "residual":
            pyramid = Downsample(True, self.fir_kernel, h.shape[-1], self.dtype)(pyramid)
            h = pyramid = residual(pyramid, h, self.skip_rescale)
        return pyramid, h

    def grow_output_pyramid(
        self, pyramid: jax.Array | None, h: jax.Array, channels: int
    ) -> tuple[jax.Array | None, jax.Array]:
        """The output pyramid at the resolution of `h`, None before it begins, and the features
        that go on."""
        if self.progressive == "none":
            return None, h
        if self.progressive == "output_skip":
            below = 0.0 if pyramid is None else Upsample(False, self.fir_kernel)(pyramid)
            return below + self.head(h, channels).astype(jnp.float32), h
        if pyramid is None:
            return self.head(h, h.shape[-1], init_scale=1.0), h
        pyramid = Upsample(True, self.fir_kernel, h.shape[-1], self.dtype)(pyramid)
        h = residual(pyramid, h, self.skip_rescale)
        return h, h

    def block(
        self,
        temb: jax.Array | None,
        keys: Iterator[jax.Array | None],
        h: jax.Array,
        features: int | None = None,
        resample: Callable[[jax.Array], jax.Array] | None = None,
        first_groups: int = 0,
    ) -> jax.Array:
        """The next residual block, with the next of the dropout `keys`; keeps the width of `h`
        unless `features` says another."""
        module = RESBLOCKS[self.resblock_type](
            features or h.shape[-1],
            ACTIVATIONS[self.nonlinearity],
            dropout=self.dropout,
            init_scale=self.init_scale,
            skip_rescale=self.skip_rescale,
            first_groups=first_groups or None,
            resample=resample,
            dtype=self.dtype,
        )
        return apply_block(module, self.remat, h, temb, next(keys))

    def attention(self, h: jax.Array, num_groups: int = 0) -> jax.Array:
        """The next attention block; `num_groups` of its norm, 0 for as many as in the others."""
        module = AttnBlockpp(
            num_groups=num_groups or None,
            init_scale=self.init_scale,
            skip_rescale=self.skip_rescale,
            dtype=self.dtype,
        )
        return apply_block(module, self.remat, h)

    def down(self, h: jax.Array, block: Block) -> jax.Array:
        """Half the resolution, inside a "biggan" block or as a step of its own."""
        if self.resblock_type == "biggan":
            return block(h, resample=functools.partial(downsample, fir_kernel=self.fir_kernel))
        return Downsample(self.resamp_with_conv, self.fir_kernel, dtype=self.dtype)(h)

    def up(self, h: jax.Array, block: Block) -> jax.Array:
        """Twice the resolution, inside a "biggan" block or as a step of its own."""
        if self.resblock_type == "biggan":
            return block(h, resample=functools.partial(upsample, fir_kernel=self.fir_kernel))
        return Upsample(self.resamp_with_conv, self.fir_kernel, dtype=self.dtype)(h)

    def head(self, h: jax.Array, features: int, init_scale: float | None = None) -> jax.Array:
        """Norm, activation and a convolution that begins at `init_scale`, by default the field."""
        scale = self.init_scale if init_scale is None else init_scale
        h = GroupNorm(act=ACTIVATIONS[self.nonlinearity], dtype=self.dtype)(h)
        return Conv(features, kernel_init=default_init(scale), dtype=self.dtype)(h)
