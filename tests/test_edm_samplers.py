"""EDM's samplers through the sampler of a config, against trajectories of EDM's own code."""

from __future__ import annotations

import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import sampling
import sde_lib
from diffusion import grids
from diffusion.noise import recorded_noise
from tests import edm_cases

case = functools.lru_cache(maxsize=1)(edm_cases.case)
VP = grids.VPBetas(0.1, 19.9).noise(np.array([1e-3, 1.0]))  # EDM's own range for its VP grid
RANGES = {"vp": (VP[0], VP[1]), "ve": (0.02, 100), "iddpm": (0.002, 81), "edm": (0.002, 80)}
GRIDS = {"edm": "karras", "ve": "log_snr", "vp": "vp", "iddpm": "iddpm"}


def runs() -> list[Any]:
    """The pickle and the name of every run."""
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in edm_cases.PICKLES
        if not path.stem.endswith("_old")
        for name in edm_cases.runs_of(path)
    ]


def config_of(net: edm_cases.Case, run: dict[str, Any]) -> ConfigDict:
    """The config of a run: noise levels in the units of the network's images."""
    config, kwargs = net.config.copy_and_resolve_references(), dict(run["kwargs"])
    discretization = kwargs.get("discretization", "edm")
    smallest, largest = RANGES[discretization]
    smallest = max(kwargs.get("sigma_min", smallest), float(net.meta["sigma_min"]))
    largest = min(kwargs.get("sigma_max", largest), float(net.meta["sigma_max"]))
    unit = 0.5 if config.training.sde == "vesde" else 1.0
    if config.training.sde == "edm":  # whose process ends where the sampler begins
        config.model.sigma_max = float(largest)
    config.sampling.update(
        {
            "method": kwargs.get("solver", "heun"),
            "num_steps": kwargs["num_steps"],
            "time_grid": GRIDS[discretization],
            "sigma_min": float(smallest * unit),
            "sigma_max": float(largest * unit),
            "rho": float(kwargs.get("rho", 7)),
            "schedule": kwargs.get("schedule", "linear"),
            "scaling": kwargs.get("scaling", "none"),
            "alpha": float(kwargs.get("alpha", 1)),
            "churn": float(kwargs.get("S_churn", 0)),
            "churn_min": kwargs.get("S_min", 0) * unit,
            "churn_max": min(float(kwargs.get("S_max", math.inf)), 1e9) * unit,
            "churn_noise": float(kwargs.get("S_noise", 1)),
        }
    )
    return config


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name"), runs())
def test_runs_are_those_of_edm(path: pathlib.Path, name: str) -> None:
    """Their samples, from the same latents and noise, and how often they ask the network."""
    net, z = case(path), case(path).numbers
    config = config_of(net, net.meta["runs"][name])
    latents = edm_cases.channels_last(z["latents"])
    draws = latents[None]
    if f"{name}/noise" in z.files:
        draws = jnp.concatenate([draws, edm_cases.channels_last(z[f"{name}/noise"])])
    labels = None if net.labels is None else net.labels[: len(latents)]
    sampler = sampling.from_config(config)

    @jax.jit
    def run(params: Any) -> Any:
        return sampler(
            sde_lib.from_config(config), net.score(params, labels), recorded_noise(draws)
        )

    samples = run(net.params)
    made, expected = samples.x, np.moveaxis(z[f"{name}/out"], 1, -1)
    made = 2 * made - 1 if config.training.sde == "vesde" else made
    assert int(samples.nfe) == net.meta["runs"][name]["nfe"]
    assert np.abs(made - expected).max() <= 1e-3 * np.abs(expected).max()
