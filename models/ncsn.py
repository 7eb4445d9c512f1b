"""NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020): RefineNets that estimate scores.

A residual network makes features at ever lower resolutions (then, instead of resolution, dilation
grows); refinement blocks merge them again, from the coarsest to the finest. NCSN conditions every
block on the noise level, through the norms; NCSNv2 has no such input and divides its output by
sigma.

Images are [B, H, W, C]; `labels [B]` are integers i that stand for the i-th noise level, counted
from sigma_max (i = 0) down to sigma_min.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import noise_levels
from models.layers import ACTIVATIONS, apply_block, check_choices
from models.refinenet import PARTS, Style, conv3x3, norm

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

        h = conv3x3(x if self.centered else 2 * x - 1, self.nf, style)
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

        h = style.act(norm(xs[0], labels, style))
        h = conv3x3(h, x.shape[-1], style).astype(jnp.float32)
        if self.scale_by_sigma:
            sigmas = noise_levels(labels, self.sigma_min, self.sigma_max, self.num_scales)
            h = h / sigmas[:, None, None, None]
        return h


class NCSN(NCSNv2):
    """The network of Song & Ermon (2019): NCSNv2 (64) with norms conditioned on the noise level.

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
