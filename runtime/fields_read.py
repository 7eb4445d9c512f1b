"""The fields of a config that a network or an SDE is built from, found by building it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import ml_collections

import models
import sde_lib

Config: TypeAlias = ml_collections.ConfigDict


class Reads:
    """A config that notes the fields of it that are read."""

    def __init__(self, config: Config, names: set[str], prefix: str = "") -> None:
        self.config, self.names, self.prefix = config, names, prefix

    def __getattr__(self, name: str) -> Any:
        value = self.config[name]
        if isinstance(value, ml_collections.ConfigDict):
            return Reads(value, self.names, f"{self.prefix}{name}.")
        self.names.add(f"{self.prefix}{name}")
        return value

    __getitem__ = __getattr__


def network_reads(config: Config) -> set[str]:
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


def network_has(name: str) -> Callable[[Config, str], bool]:
    """The condition that the field is one of those that the network is built from."""
    return lambda config, mode: name in network_reads(config)


def sde_reads(name: str) -> Callable[[Config, str], bool]:
    """The condition that the SDE reads the field of section `model`, or the network does."""

    def acts(config: Config, mode: str) -> bool:
        sde = sde_lib.SDES[config.training.sde.lower()]
        read = {f"model.{field.name}" for field in dataclasses.fields(sde)}
        return name in read or (models.has_samples(config) and name in network_reads(config))

    return acts
