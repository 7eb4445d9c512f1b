"""A network of two times, of mean velocities: another network that is told both."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

# Names of `model.name` whose networks embed labels by `embeddings.positional_embedding`.
CAN_BE_TOLD = ("adm", "ddpm", "mlp", "ncsnpp", "transformer", "unet1d")


class TwoTimes(nn.Module):
    """A network from (x [B, ...], labels [B], spans [B]) to [B, ...], made of one of labels alone.

    The inner network is told the pairs [B, 2], whose sinusoids stand side by side before its first
    dense layer of the time, see `embeddings.positional_embedding`; nothing else of it changes.

    Attributes:
      network: the inner network.
    """

    network: nn.Module

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        spans: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        y: jax.Array | None = None,
    ) -> jax.Array:
        """`spans` None: of no length; `dropout_keys [B]` switch dropout on; `y [B]` are classes."""
        labels = labels.astype(jnp.float32)
        pairs = jnp.stack([labels, jnp.zeros_like(labels) if spans is None else spans], axis=1)
        told = {} if y is None else {"y": y}
        output: jax.Array = self.network(x, pairs, dropout_keys=dropout_keys, **told)
        return output
