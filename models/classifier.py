"""A classifier of noisy images, whose gradient guides class-conditional sampling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import label_features, noise_embedding
from models.layers import (
    ACTIVATIONS,
    GroupNorm,
    ResnetBlockBigGANpp,
    check_choices,
    check_resolution,
    downsample,
    per_block_keys,
)
from models.ops.conv import Conv

BASE_WIDTH = 16  # of a residual network that is not widened
CHOICES: dict[str, Iterable[str]] = {
    "nonlinearity": ACTIVATIONS,
    "embedding_type": ["fourier", "positional"],
}


class NoisyClassifier(nn.Module):
    """A wide residual network, conditioned on the noise level: the logits of p_t(y | x).

    The default is the WRN-28-10 of Zagoruyko & Komodakis 2016 (arXiv:1605.07146), conditioned on
    the noise as Song et al. 2021 do for class-conditional sampling: three groups of residual
    blocks of widths 16 k, 32 k and 64 k (k = `widen_factor`), each group after the first at half
    the resolution, then the mean over space and a dense layer. The blocks are those of NCSN++,
    which have the same order of norm, activation, convolution and dropout, and take the embedding.

    Norms are group norms, not batch norms: noise levels differ from image to image, so averages
    over a batch would mix them, and an image's logits would depend on its neighbours; a group norm
    has no running statistics to carry either. Each image is first standardised, with variance
    1 / (H W C) added, because the size of x grows with the noise of VE. With the smooth "swish",
    log p_t(y | x) has derivatives of every order in x; "relu" and "lrelu" have no second one.

    Attributes:
      num_classes: the number K of classes.
      widen_factor: k, the width in units of the plain residual network.
      blocks_per_group: residual blocks in each group; n of them make 6 n + 4 layers.
      dropout: rate inside the blocks.
      nonlinearity: one of `models.layers.ACTIVATIONS`.
      embedding_type: "fourier" for labels that are noise levels (VE), "positional" for times.
      fourier_scale: standard deviation of the random frequencies of log sigma.
      dtype: of the computation; parameters, norms and the logits stay float32.

    Raises:
      ValueError: an unknown choice, fewer than two classes, or sides that are not multiples of 4.
    """

    num_classes: int = 10
    widen_factor: int = 10
    blocks_per_group: int = 4
    dropout: float = 0.0
    nonlinearity: str = "swish"
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    dtype: Any = None

    def __post_init__(self) -> None:
        check_choices(self, CHOICES, "classifier")
        if self.num_classes < 2:
            raise ValueError(f"classifier.num_classes is {self.num_classes}; it must be 2 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, K] of images x [B, H, W, C]; `labels [B]` as `models.continuous_labels`.

        `dropout_keys [B]`, one key per image, switch dropout on.
        """
        h = noisy_features(
            x,
            labels,
            dropout_keys,
            widen_factor=self.widen_factor,
            blocks_per_group=self.blocks_per_group,
            dropout=self.dropout,
            nonlinearity=self.nonlinearity,
            embedding_type=self.embedding_type,
            fourier_scale=self.fourier_scale,
            dtype=self.dtype,
        )
        return nn.Dense(self.num_classes)(h)


def noisy_features(
    x: jax.Array,
    labels: jax.Array,
    dropout_keys: jax.Array | None,
    *,
    widen_factor: int,
    blocks_per_group: int,
    dropout: float,
    nonlinearity: str,
    embedding_type: str,
    fourier_scale: float,
    dtype: Any,
) -> jax.Array:
    """Features [B, 64 widen_factor] of noisy images, the last before a classifier's logits.

    The layers belong to the calling module. The arguments are the classifier's attributes.
    """
    groups = (1, 2, 4)
    check_resolution(x, len(groups))
    act, width = ACTIVATIONS[nonlinearity], BASE_WIDTH * widen_factor
    features = label_features(labels, width, embedding_type, fourier_scale)
    temb = noise_embedding(features, width, act)
    keys = per_block_keys(dropout_keys)

    centred = x - jnp.mean(x, (1, 2, 3), keepdims=True)
    variance = jnp.mean(jnp.square(centred), (1, 2, 3), keepdims=True)
    h = centred * jax.lax.rsqrt(variance + 1.0 / x[0].size)
    h = Conv(BASE_WIDTH, dtype=dtype)(h)
    for group, multiple in enumerate(groups):
        for i in range(blocks_per_group):
            block = ResnetBlockBigGANpp(
                multiple * width,
                act,
                dropout=dropout,
                resample=_halve if group > 0 and i == 0 else None,
                dtype=dtype,
            )
            h = block(h, temb, next(keys))
    return jnp.mean(GroupNorm(act=act)(h), (1, 2))


def _halve(x: jax.Array) -> jax.Array:
    return downsample(x, None)
