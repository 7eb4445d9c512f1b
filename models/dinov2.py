"""DINOv2's vision transformer, whose features FD-DINOv2 and KD-DINOv2 compare."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.clip_vit import MLP, Attention

CUBIC = -0.75  # the cubic kernel's slope at 1, as PyTorch has it


class Layer(nn.Module):
    """`h + a attention(norm(h))`, `h + b mlp(norm(h))`, with a scale for each channel (LayerScale,
    Touvron et al. 2021, arXiv:2103.17239)."""

    width: int
    inner: int
    heads: int
    act: str
    epsilon: float

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        def scale(name: str) -> jax.Array:
            return self.param(name, nn.initializers.ones, (self.width,))

        attended = Attention(self.width, self.heads, name="attention")(
            nn.LayerNorm(self.epsilon, name="norm1")(h), None
        )
        h += scale("layer_scale1") * attended
        mlp = MLP(self.width, self.inner, self.act, name="mlp")
        return h + scale("layer_scale2") * mlp(nn.LayerNorm(self.epsilon, name="norm2")(h))


class DINOv2(nn.Module):
    """Oquab et al. 2023 (arXiv:2304.07193), with an MLP in its layers.

    Attributes:
      layers, width, inner, heads, act, epsilon: of the transformer.
      image_size, patch: side in pixels of the images that it learnt, and of their patches. Of
        images of another size the places' embeddings are interpolated.
      offset: what is added to the number of patches before that is divided by the learnt number for
        the interpolation's step: 0.1 in the authors' code, 0 in transformers.
    """

    layers: int
    width: int
    inner: int
    heads: int
    act: str
    epsilon: float
    image_size: int
    patch: int
    offset: float = 0.1

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [B, S, S, 3], S a multiple of `patch`, to features [B, width]: those of
        the class token behind the last norm."""
        size = (self.patch, self.patch)
        patches = nn.Conv(self.width, size, size, "VALID", name="patch_embeddings")(pixels)
        side = patches.shape[1]
        normal = nn.initializers.normal(0.02)
        first = self.param("cls_token", normal, (1, 1, self.width))
        learnt = self.image_size // self.patch
        places = self.param("position_embeddings", normal, (1, learnt**2 + 1, self.width))
        h = patches.reshape(len(patches), side**2, self.width)
        h = jnp.concatenate([jnp.broadcast_to(first, (len(h), 1, self.width)), h], axis=1)
        h += self.places(places[0], side)
        for i in range(self.layers):
            h = Layer(
                self.width, self.inner, self.heads, self.act, self.epsilon, name=f"layer_{i}"
            )(h)
        return nn.LayerNorm(self.epsilon, name="layernorm")(h)[:, 0]

    def places(self, learnt: jax.Array, side: int) -> jax.Array:
        """Embeddings [side^2 + 1, width] of the places of `side` x `side` patches."""
        count = self.image_size // self.patch
        if side == count:
            return learnt
        matrix = cubic_interpolation(count, side, (side + self.offset) / count)
        grid = learnt[1:].reshape(count, count, self.width)
        grid = jnp.einsum("ip,jq,pqc->ijc", matrix, matrix, grid)
        return jnp.concatenate([learnt[:1], grid.reshape(side**2, self.width)])


def cubic_interpolation(inputs: int, outputs: int, scale: float) -> np.ndarray:
    """The matrix [outputs, inputs] of PyTorch's bicubic interpolation along one axis.

    Output i lies at (i + 1/2) / scale - 1/2 and is a mean of its four neighbours, by Keys' cubic
    kernel; beyond the ends the last input stands for the others. No input is averaged away, as an
    antialiasing kernel would do.
    """
    places = (np.arange(outputs) + 0.5) / scale - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((outputs, inputs))
    for shift in (-1, 0, 1, 2):
        neighbours = np.clip(first + shift, 0, inputs - 1)
        weights = _keys(np.abs(places - first - shift))
        np.add.at(matrix, (np.arange(outputs), neighbours), weights)
    return matrix.astype(np.float32)


def _keys(d: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel at distances d [n] in [0, 2]."""
    near = ((CUBIC + 2.0) * d - (CUBIC + 3.0)) * d * d + 1.0
    far = CUBIC * (((d - 5.0) * d + 8.0) * d - 4.0)
    return np.where(d <= 1.0, near, far)
