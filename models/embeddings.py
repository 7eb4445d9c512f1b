"""Embeddings of a network's other inputs: the noise level or time, and the class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.layers import ACTIVATIONS
from models.ops.conv import default_init

Activation = Callable[[jax.Array], jax.Array]


def positional_embedding(
    labels: jax.Array, size: int, max_period: float = 10000.0, endpoint: bool = True
) -> jax.Array:
    """Sinusoids of `labels [B]` at frequencies f_k = max_period^(-k / (size // 2 - 1)): [B, size].

    Of several numbers for each image, `labels [B, K]`, they stand side by side: [B, K size].
    The first half holds the sines, the second the cosines; an odd size ends with a zero
    (Vaswani et al. 2017, section 3.5, in the arrangement of Ho et al. 2020). Without `endpoint`
    f_k = max_period^(-k / (size // 2)), of which none is 1 / max_period.
    """
    half = size // 2
    rate = math.log(max_period) / max(half - endpoint, 1)
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * -rate)
    phase = labels.astype(jnp.float32)[..., None] * frequencies
    embedding = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
    padding = [(0, 0)] * labels.ndim + [(0, size % 2)]
    return jnp.pad(embedding, padding).reshape(len(labels), -1)


class GaussianFourierProjection(nn.Module):
    """Random features [sin 2 pi W u, cos 2 pi W u] of u = log sigma: [B] to [B, 2 * size].

    W ~ N(0, scale^2) keeps its initial value (Tancik et al. 2020; Song et al. 2021, appendix C.2):
    a parameter, for the sake of checkpoints, but one without a gradient.
    """

    size: int
    scale: float

    @nn.compact
    def __call__(self, u: jax.Array) -> jax.Array:
        w = self.param("W", nn.initializers.normal(self.scale), (self.size,))
        phase = u[:, None] * jax.lax.stop_gradient(w) * 2 * jnp.pi
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)


def label_features(
    labels: jax.Array, size: int, embedding_type: str, fourier_scale: float
) -> jax.Array:
    """`labels [B]` as `embedding_type` says: [B, 2 size] by random Fourier features of their
    logarithms ("fourier", for noise levels; a layer of the calling module), or [B, size] by
    sinusoids of themselves ("positional", for times and indices) or of a quarter of their
    logarithms ("log_positional", for noise levels: Karras et al. 2022, table 1)."""
    if embedding_type == "fourier":
        return GaussianFourierProjection(size, fourier_scale)(jnp.log(labels))
    if embedding_type == "log_positional":
        return positional_embedding(jnp.log(labels) / 4, size)
    return positional_embedding(labels, size)


def augmentation_embedding(features: jax.Array, augment: jax.Array | None, size: int) -> jax.Array:
    """`features [B, width]` plus a dense layer of what `augment [B, size]` tells of an image's
    augmentation, `AugmentDense_0` of the calling module; None tells that there was none."""
    batch, width = features.shape
    if augment is None:
        augment = jnp.zeros((batch, size))
    return features + nn.Dense(width, use_bias=False, name="AugmentDense_0")(augment)


def noise_embedding(features: jax.Array, nf: int, act: Activation) -> jax.Array:
    """Two dense layers `Dense_0`, `Dense_1` of the calling module: [B, size] to [B, 4 nf]."""
    hidden = nn.Dense(4 * nf, kernel_init=default_init())(features)
    return nn.Dense(4 * nf, kernel_init=default_init())(act(hidden))


def noise_levels(
    labels: jax.Array, sigma_min: float, sigma_max: float, num_scales: int
) -> jax.Array:
    """sigma [B] of `labels [B]`: real labels are noise levels; integers i = 0 .. num_scales - 1
    index the geometric sequence from sigma_max down to sigma_min."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return labels
    sigmas = np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_scales))
    return jnp.asarray(sigmas, jnp.float32)[labels]


def class_embedding(
    temb: jax.Array | None, y: jax.Array | None, batch: int, num_labels: int, width: int
) -> jax.Array:
    """`temb [B, width]` plus learnt vectors of the classes `y [B]` in 0 .. num_labels.

    Class `num_labels` is the null class, which classifier-free guidance (Ho & Salimans 2021)
    trains on images whose class is withheld; `y=None` means it.
    """
    if y is None:
        y = jnp.full((batch,), num_labels)
    classes = nn.Embed(num_labels + 1, width, name="ClassEmbed_0")(y)
    return classes if temb is None else temb + classes


def condition_embedding(
    network: Any, labels: jax.Array, y: jax.Array | None, width: int
) -> jax.Array | None:
    """The embedding [B, 4 width] of noise level and class in every block of a network, or None.

    Args:
      network: the calling module, with the fields nf, nonlinearity, conditional, embedding_type,
        fourier_scale and num_labels of `models.mlp.MLP`.
      labels: [B].
      y: [B], classes; None for the null class.
    """
    features = label_features(labels, network.nf, network.embedding_type, network.fourier_scale)
    act = ACTIVATIONS[network.nonlinearity]
    temb = noise_embedding(features, width, act) if network.conditional else None
    if network.num_labels:
        temb = class_embedding(temb, y, len(labels), network.num_labels, 4 * width)
    return temb


def over_noise_level(network: Any, out: jax.Array, labels: jax.Array) -> jax.Array:
    """`out [B, ...]` divided by the noise levels of `labels [B]` if `network.scale_by_sigma`."""
    if not network.scale_by_sigma:
        return out
    sigmas = noise_levels(labels, network.sigma_min, network.sigma_max, network.num_scales)
    return out / sigmas.reshape(-1, *[1] * (out.ndim - 1))
