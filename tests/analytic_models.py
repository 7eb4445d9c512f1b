"""The closed-form networks and the SDEs with which golden math/ files were made.

c = mix; shift is a cyclic shift by one pixel along the width of x [B, H, W, C].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import models
from interop import official
from sde_lib import SDE, VESDE, VPSDE, ScoreFn, SubVPSDE
from tests import golden_cases

KINDS: dict[str, type[SDE]] = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}
FIELDS = {"bmin": "beta_min", "bmax": "beta_max", "smin": "sigma_min", "smax": "sigma_max"}


def network(
    kind: str, mix: float | Array, table: np.ndarray | None = None
) -> Callable[[Array, Array], Array]:
    """`vp`, `ve` (labels are sigmas) or `veidx` (labels index the descending `table` of sigmas)."""

    def vp(x: Array, labels: Array) -> Array:
        labels = labels.reshape(-1, 1, 1, 1)
        return x / (1 + labels / 999) + mix * jnp.tanh(jnp.roll(x, 1, axis=-2))

    def ve(x: Array, labels: Array) -> Array:
        s = labels.reshape(-1, 1, 1, 1)
        push = mix * jnp.tanh(jnp.roll(x, 1, axis=-2))
        return -x / (0.25 + s**2) + push / jnp.sqrt(0.25 + s**2)

    if kind == "veidx":
        return lambda x, labels: ve(x, jnp.asarray(table)[labels])
    return {"vp": vp, "ve": ve}[kind]


def score_fn(
    sde: SDE,
    kind: str,
    mix: float | Array,
    continuous: bool = True,
    table: np.ndarray | None = None,
) -> ScoreFn:
    """The analytic network `kind`, wrapped as the original code wraps networks."""
    return models.score_fn(sde, network(kind, mix, table), continuous, official_labels=True)


def sde_of(kind: str, settings: dict[str, Any], tokens: list[str] = []) -> SDE:  # noqa: B006
    """The SDE of a golden case: fields from its meta, then from tokens of its tag (N100, bmax5)."""
    cls = KINDS[kind]
    known = cls.__dataclass_fields__
    fields = {name: settings[name] for name in known if name in settings}
    for token in tokens:
        name, value = re.fullmatch(r"([A-Za-z]+?)([\d.e-]+)", token).groups()  # type: ignore[union-attr]
        if (name := FIELDS.get(name, name)) in known:
            fields[name] = int(value) if name == "N" else float(value)
    return cls(**fields)


def network_score(sde: SDE, weights: str, continuous: bool = True) -> ScoreFn:
    """The score of the network stored in networks/`weights`.npz."""
    stored = golden_cases.load(golden_cases.network_file(weights))
    module = models.from_config(golden_cases.config(stored["config_json"]))
    state = {k.removeprefix("sd/"): v for k, v in stored.items() if k.startswith("sd/")}
    _, channels, height, width = stored["x"].shape
    params = official.params_from_torch(module, state, (height, width, channels))

    def network(x: Array, labels: Array) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, labels))

    return models.score_fn(sde, network, continuous, official_labels=True)
