"""Contenders of the row "step": a training step of a network, in each project's own way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks import network
from benchmarks.today.worker import Job, Loaded


def load(job: Job) -> Loaded:
    """The call "step" of one of `network.CASES`."""
    case = network.CASES[job.case]
    if job.contender in ("ours", "ours_xla"):
        return of_network(network.ours(case, ["step"]))
    if job.contender in ("score_sde_torch", "score_sde_jax"):
        return of_network(network.official(job.checkout, case))
    return of_torch(job, case)


def of_network(loaded: network.Loaded) -> Loaded:
    """What `benchmarks/network.py` times, but the step alone; and its matrix product, with ours."""
    calls = {name: call for name, call in loaded.calls.items() if name in ("step", "matmul")}
    return Loaded(calls, {"parameters": loaded.parameters, "flops": loaded.work.get("step")})


def of_torch(job: Job, case: network.Case) -> Loaded:
    """EDM's step or diffusers', eager or compiled."""
    from benchmarks import torch_peers

    config = network.read_config(case)
    size = config.data.image_size
    images = np.random.default_rng(0).integers(0, 256, (case.batch, size, size, 3), np.uint8)
    name, _, compiled = job.contender.partition("_")
    step: Callable[[], None]
    if name == "edm":
        module = torch_peers.edm(job.checkout, config)
        called = torch_peers.compiled(module) if compiled else module
        step = torch_peers.edm_step(job.checkout, module, called, images)
    else:
        module = torch_peers.diffusers(config)
        called = torch_peers.compiled(module) if compiled else module
        step = torch_peers.diffusers_step(module, called, images)
    return Loaded({"step": (step, 1)}, {"parameters": torch_peers.parameters(module)})
