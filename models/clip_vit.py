"""CLIP as it was published: a vision transformer and a text transformer for clean images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.clip import on_sphere

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": functools.partial(nn.gelu, approximate=False),
}


class Layer(nn.Module):
    """`h + attention(norm(h))`, `h + mlp(norm(h))`, with the names of the published weights."""

    width: int
    inner: int
    heads: int
    act: str
    epsilon: float

    def setup(self) -> None:
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(self.epsilon) for _ in range(2))
        self.self_attn = Attention(self.width, self.heads)
        self.mlp = MLP(self.width, self.inner, self.act)

    def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        h += self.self_attn(self.layer_norm1(h), mask)
        return h + self.mlp(self.layer_norm2(h))


class Attention(nn.Module):
    """Self-attention of several heads over tokens [B, L, width]; `mask` [L, L] is true where a row
    attends to a column."""

    width: int
    heads: int

    def setup(self) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Dense(self.width) for _ in range(4)
        )

    def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        size = self.width // self.heads
        q, k, v = (
            layer(h).reshape(*h.shape[:2], self.heads, size)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        logits = jnp.einsum("bqhc,bkhc->bhqk", q / math.sqrt(size), k)
        if mask is not None:
            logits = jnp.where(mask, logits, -jnp.inf)
        attended = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits), v)
        return self.out_proj(attended.reshape(h.shape))


class MLP(nn.Module):
    """Two dense layers, the inner one `inner` wide."""

    width: int
    inner: int
    act: str

    def setup(self) -> None:
        self.fc1, self.fc2 = nn.Dense(self.inner), nn.Dense(self.width)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.act](self.fc1(h)))


class Encoder(nn.Module):
    """A stack of `layers` transformer layers."""

    layers: int
    width: int
    inner: int
    heads: int
    act: str
    epsilon: float

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for i in range(self.layers):
            layer = Layer(
                self.width, self.inner, self.heads, self.act, self.epsilon, name=f"layers_{i}"
            )
            h = layer(h, mask)
        return h


class VisionTransformer(nn.Module):
    """Patches of `patch` x `patch` pixels as tokens, behind one that is learnt and read at the end
    (Dosovitskiy et al. 2020, arXiv:2010.11929)."""

    image_size: int
    patch: int
    encoder_of: functools.partial[Encoder]

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, image_size, image_size, 3] to [B, width]."""
        encoder = self.encoder_of(name="encoder")
        count = (self.image_size // self.patch) ** 2
        patches = Patches(encoder.width, self.patch, count, name="embeddings")
        norm = functools.partial(nn.LayerNorm, encoder.epsilon)
        h = norm(name="pre_layrnorm")(patches(pixels))
        return norm(name="post_layernorm")(encoder(h)[:, 0])


class Patches(nn.Module):
    """Patches as `count` tokens, with embeddings of their places."""

    width: int
    patch: int
    count: int

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        first = self.param("class_embedding", nn.initializers.normal(), (self.width,))
        size = (self.patch, self.patch)
        layer = nn.Conv(self.width, size, size, "VALID", use_bias=False, name="patch_embedding")
        h = layer(pixels).reshape(len(pixels), -1, self.width)
        h = jnp.concatenate([jnp.broadcast_to(first, (len(h), 1, self.width)), h], 1)
        return h + nn.Embed(self.count + 1, self.width, name="position_embedding").embedding


class TextTransformer(nn.Module):
    """Tokens [N, L], seen causally and read at the first `end`, or at the highest one (None)."""

    vocabulary: int
    length: int
    end: int | None
    encoder_of: functools.partial[Encoder]

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        encoder = self.encoder_of(name="encoder")
        h = Words(self.vocabulary, self.length, encoder.width, name="embeddings")(tokens)
        mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        h = nn.LayerNorm(encoder.epsilon, name="final_layer_norm")(encoder(h, mask))
        last = jnp.argmax(tokens if self.end is None else tokens == self.end, axis=1)
        return jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0]


class Words(nn.Module):
    """Embeddings of tokens, with those of their places."""

    vocabulary: int
    length: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        h = nn.Embed(self.vocabulary, self.width, name="token_embedding")(tokens)
        places = nn.Embed(self.length, self.width, name="position_embedding").embedding
        return h + places[: tokens.shape[1]]


class ClipViT(nn.Module):
    """Radford et al. 2021 (arXiv:2103.00020), with the names of the weights that Hugging Face's
    transformers writes.

    Attributes:
      dim: dimension of the sphere's space.
      image_size, patch: side in pixels of the images, and of their patches.
      vocabulary, length, end: of the text tower; see `TextTransformer`.
      vision, text: makers of the towers' encoders.
    """

    dim: int
    image_size: int
    patch: int
    vocabulary: int
    length: int
    end: int | None
    vision: functools.partial[Encoder]
    text: functools.partial[Encoder]

    def setup(self) -> None:
        self.vision_model = VisionTransformer(self.image_size, self.patch, self.vision)
        self.text_model = TextTransformer(self.vocabulary, self.length, self.end, self.text)
        self.visual_projection = nn.Dense(self.dim, use_bias=False)
        self.text_projection = nn.Dense(self.dim, use_bias=False)
        self.logit_scale = self.param("logit_scale", nn.initializers.zeros, ())

    def image(self, pixels: jax.Array) -> jax.Array:
        """Unit vectors [B, dim] of normalised pixels [B, image_size, image_size, 3]."""
        return on_sphere(self.visual_projection(self.vision_model(pixels)))

    def embed_text(self, tokens: jax.Array) -> jax.Array:
        """Unit vectors [N, dim] of tokens int32 [N, L], L up to `length`."""
        return on_sphere(self.text_projection(self.text_model(tokens)))

    def scale(self) -> jax.Array:
        """The factor on cosines."""
        return jnp.exp(self.logit_scale)

    def __call__(self, pixels: jax.Array, tokens: jax.Array) -> tuple[jax.Array, ...]:
        return self.image(pixels), self.embed_text(tokens), self.scale()
