"""CLIP for noisy images: two towers, of images and of texts, onto one sphere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.classifier import CHOICES as IMAGE_CHOICES
from models.classifier import noisy_features
from models.layers import check_choices

LARGEST_SCALE = 100.0  # of similarities (Radford et al. 2021, section 2.5)
FIRST_SCALE = 1 / 0.07

CHOICES: dict[str, Iterable[str]] = IMAGE_CHOICES


class ImageTower(nn.Module):
    """The network of `NoisyClassifier`, with its attributes, up to the last layer, which here maps
    linearly onto the sphere."""

    embedding_dim: int
    widen_factor: int
    blocks_per_group: int
    dropout: float
    nonlinearity: str
    embedding_type: str
    fourier_scale: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, dropout_keys: jax.Array | None
    ) -> jax.Array:
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
        return on_sphere(nn.Dense(self.embedding_dim, use_bias=False)(h))


class TextTower(nn.Module):
    """A transformer over tokens [N, L], read where the text ends (section 2.4 of CLIP's paper).

    Blocks are `h + attention(norm(h))`, `h + mlp(norm(h))`, the MLP four times as wide. Attention
    is causal: the end sees the whole text, and what stands behind it changes nothing.
    """

    embedding_dim: int
    width: int
    layers: int
    heads: int
    length: int
    vocabulary: int
    end: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        words = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(0.02))
        places = self.param("places", nn.initializers.normal(0.01), (self.length, self.width))
        h = words(tokens) + places
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads)
            h += attention(nn.LayerNorm()(h), mask=mask)
            inner = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(h)))
            h += nn.Dense(self.width)(inner)
        last = jnp.argmax(tokens == self.end, axis=1)
        read = nn.LayerNorm()(jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0])
        return on_sphere(nn.Dense(self.embedding_dim, use_bias=False)(read))


class CLIP(nn.Module):
    """Radford et al. 2021 (arXiv:2103.00020), with an image tower conditioned on the noise level.

    Its similarity is `exp(log_scale) <image, text>` of two unit vectors, with a learnt scale that
    begins at 1 / 0.07 and counts as 100 where it is larger. Attributes that are not listed are
    those of `NoisyClassifier`, for the image tower.

    Attributes:
      embedding_dim: dimension of the sphere's space.
      text_width, text_layers, text_heads, text_length: size of the text tower; length in tokens.
      vocabulary, end: the number of tokens, and the one that ends a text.

    Raises:
      ValueError: an unknown choice, a text width that the heads do not share evenly, or sides that
        are not multiples of 4.
    """

    vocabulary: int
    end: int
    embedding_dim: int = 64
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_length: int = 48
    widen_factor: int = 1
    blocks_per_group: int = 1
    dropout: float = 0.0
    nonlinearity: str = "swish"
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    dtype: Any = None

    def __post_init__(self) -> None:
        check_choices(self, CHOICES, "classifier")
        if self.text_width % self.text_heads:
            raise ValueError(
                f"clip.text_width is {self.text_width}; it must be a multiple of clip.text_heads, "
                f"{self.text_heads}"
            )
        super().__post_init__()

    def setup(self) -> None:
        self.image_tower = ImageTower(
            self.embedding_dim,
            self.widen_factor,
            self.blocks_per_group,
            self.dropout,
            self.nonlinearity,
            self.embedding_type,
            self.fourier_scale,
            self.dtype,
        )
        self.text_tower = TextTower(
            self.embedding_dim,
            self.text_width,
            self.text_layers,
            self.text_heads,
            self.text_length,
            self.vocabulary,
            self.end,
        )
        self.log_scale = self.param(
            "log_scale", nn.initializers.constant(math.log(FIRST_SCALE)), ()
        )

    def image(
        self, x: jax.Array, labels: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Unit vectors [B, E] of images x [B, H, W, C]; labels [B] as `continuous_labels`."""
        return self.image_tower(x, labels, dropout_keys)

    def text(self, tokens: jax.Array) -> jax.Array:
        """Unit vectors [N, E] of tokens int32 [N, text_length]."""
        return self.text_tower(tokens)

    def scale(self) -> jax.Array:
        """The factor on cosines, at most 100."""
        return jnp.exp(jnp.minimum(self.log_scale, math.log(LARGEST_SCALE)))

    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        tokens: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images [B, E], texts [N, E] and the scale; one empty text stands in for no `tokens`."""
        if tokens is None:
            tokens = jnp.full((1, self.text_length), self.end, jnp.int32)
        return self.image(x, labels, dropout_keys), self.text(tokens), self.scale()


def on_sphere(h: jax.Array) -> jax.Array:
    """Rows [n, E] in float32, divided by their norms."""
    h = h.astype(jnp.float32)
    return h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=1, keepdims=True) + 1e-12)
