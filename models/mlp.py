"""A residual network of dense layers for points: vectors that come as images of one pixel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.embeddings import condition_embedding, over_noise_level
from models.layers import ACTIVATIONS, check_choices, dropout, per_block_keys
from models.ops.conv import default_init

CHOICES: dict[str, Iterable[str]] = {
    "nonlinearity": ACTIVATIONS,
    "embedding_type": ["fourier", "positional"],
}


class MLP(nn.Module):
    """Residual blocks of two dense layers, from (x [B, ...], labels [B]) to [B, ...] or [B, K].

    A block is `h + Dense(act(Dense(act(h)) + Dense(act(temb))))`, with temb the embedding of noise
    level and class, as wide as the rest; the last layer begins at zero. With a smooth nonlinearity
    such as swish the network has as many derivatives as an objective wants.

    Attributes:
      nf: width, a multiple of 4.
      num_res_blocks: number of blocks.
      conditional: the noise level is an input.
      embedding_type: "fourier" for labels that are noise levels, "positional" for times and
        indices; unused if not `conditional`.
      fourier_scale: of the random frequencies of log sigma.
      scale_by_sigma: divide the output by the noise level, see `noise_levels`.
      num_labels: number of classes that may condition the network; 0 for none.
      num_outputs: K, for a classifier's logits; 0 for an output like x.
      dtype: of the computation; parameters and the output stay float32.

    Raises:
      ValueError: an unknown choice, or a width that is no multiple of 4.
    """

    nf: int = 128
    num_res_blocks: int = 3
    dropout: float = 0.0
    nonlinearity: str = "swish"
    conditional: bool = True
    embedding_type: str = "positional"
    fourier_scale: float = 1.0
    scale_by_sigma: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    num_labels: int = 0
    num_outputs: int = 0
    dtype: Any = None

    def __post_init__(self) -> None:
        check_choices(self, CHOICES)
        if self.nf % 4:
            raise ValueError(f"model.nf is {self.nf}; it must be a multiple of 4 for an MLP")
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
        act = ACTIVATIONS[self.nonlinearity]
        size = math.prod(x.shape[1:])
        temb = condition_embedding(self, labels, y, self.nf // 4)
        keys = per_block_keys(dropout_keys)
        h = nn.Dense(self.nf, dtype=self.dtype)(x.reshape(len(x), size))
        for _ in range(self.num_res_blocks):
            inner = nn.Dense(self.nf, dtype=self.dtype)(act(h))
            if temb is not None:
                inner += nn.Dense(self.nf, dtype=self.dtype)(act(temb))
            inner = dropout(act(inner), self.dropout, next(keys))
            h += nn.Dense(self.nf, dtype=self.dtype)(inner)
        size = self.num_outputs or size
        out = nn.Dense(size, kernel_init=default_init(0.0), dtype=self.dtype)(act(h))
        out = out.astype(jnp.float32)
        if self.num_outputs:
            return out
        out = out.reshape(x.shape)
        return over_noise_level(self, out, labels)
