"""The noisy classifier of Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis"
(arXiv:2105.05233), section 4 and appendix H: the way down of their U-Net, and attention over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.adm import EPSILON, attention, blocks, down_path
from models.embeddings import noise_embedding, positional_embedding
from models.layers import NIN, GroupNorm, check_resolution


class ADMClassifier(nn.Module):
    """The logits of p_t(y | x), from (x [B, H, W, C], labels [B]) to [B, num_classes].

    The attributes mean what they mean in `ADM`; labels are times, 0 to 999.

    Attributes:
      num_classes: the number of classes.

    Raises:
      ValueError: fewer than two classes, heads that do not share the last features, or a resolution
        that cannot be halved often enough.
    """

    num_classes: int = 1000
    nf: int = 128
    ch_mult: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 4
    attn_resolutions: Sequence[int] = (32, 16, 8)
    dropout: float = 0.0
    head_channels: int = 64
    num_heads: int = 0
    num_groups: int = 32
    centered: bool = True
    dtype: Any = None
    remat: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"classifier.num_classes is {self.num_classes}; it must be 2 or more")
        width = self.nf * self.ch_mult[-1]
        if width % self.head_channels:
            raise ValueError(
                f"classifier.head_channels is {self.head_channels}; it must divide the last "
                f"features, of which there are {width}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """`dropout_keys [B]`, one key per image, switch dropout on."""
        check_resolution(x, len(self.ch_mult))
        features = positional_embedding(labels, self.nf, endpoint=False)
        block = blocks(self, noise_embedding(features, self.nf, nn.swish), dropout_keys)
        h = down_path(self, x if self.centered else 2.0 * x - 1.0, block)[-1]
        width = h.shape[-1]
        h = block(block(h, width, attends=True), width)
        h = GroupNorm(self.num_groups or None, nn.swish, EPSILON)(h)
        return AttentionPool(self.num_classes, width // self.head_channels)(h)


class AttentionPool(nn.Module):
    """What the mean of all pixels [B, H, W, C] attends to among them: [B, features].

    From CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4); learnt vectors tell the places
    apart.
    """

    features: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        pixels = x.reshape(len(x), -1, channels)
        tokens = jnp.concatenate([jnp.mean(pixels, 1, keepdims=True), pixels], axis=1)
        init = nn.initializers.normal(1 / math.sqrt(channels))
        tokens += self.param("positional_embedding", init, tokens.shape[1:])
        query, key, value = (NIN(channels)(t) for t in (tokens[:, :1], tokens, tokens))
        attended = attention(query, key, value, self.heads)
        return NIN(self.features)(attended[:, 0])
