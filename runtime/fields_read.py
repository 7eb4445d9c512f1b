"""The fields of a config from which its network is built."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

import models


class Reads:
    """A config that notes the fields of it that are read."""

    def __init__(self, config: ConfigDict, names: set[str], prefix: str = "") -> None:
        self.config, self.names, self.prefix = config, names, prefix

    def __getattr__(self, name: str) -> Any:
        value = self.config[name]
        if isinstance(value, ConfigDict):
            return Reads(value, self.names, f"{self.prefix}{name}.")
        self.names.add(f"{self.prefix}{name}")
        return value

    __getitem__ = __getattr__


def network_reads(config: ConfigDict) -> set[str]:
    """The fields of section `model` that the network of a score is built from.

    Raises:
      ValueError: a network that cannot be built.
    """
    names: set[str] = set()
    models.from_config(Reads(config, names))
    sigmas = {"model.sigma_min", "model.sigma_max"}  # taken along, and read for discrete levels
    if not config.model.scale_by_sigma or config.training.continuous:
        names -= sigmas
    return names
