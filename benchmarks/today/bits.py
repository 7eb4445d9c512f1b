"""Contenders of the row "bits": bits/dim of digits, one network and one probe, by the probability
flow at rtol = atol = 1e-5.

The weights are those of `--source=digits`, which the row's folder has as a run. The torchdiffeq
version is ours, over the official PyTorch network.
"""

from __future__ import annotations

import argparse
import pathlib
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import checkouts, peers
from benchmarks import likelihood as both
from benchmarks.today.worker import Job, Loaded

TOLERANCE = 1e-5
LOOSE = 10.0  # the tolerance at which a peer compiles
CASES = {"1": 1, "8": 8, "32": 32}  # images


def load(job: Job) -> Loaded:
    """The call "likelihood", whose facts "nfe" and "bits" are of the last one made."""
    run = pathlib.Path(job.folder) / "digits"
    case = both.make_case(
        argparse.Namespace(
            config=run / "config.py",
            workdir=run,
            batch=CASES[job.case],
            peer=pathlib.Path(job.checkout),
            tolerance=1e-2 if job.quick else TOLERANCE,
        )
    )
    probe = both.official_probe(case)
    facts: dict[str, Any] = {}
    if job.contender in ("ours", "ours_xla"):
        call = both.ours(case, probe, case.config.eval.bpd_solver)
    elif job.contender == "torchdiffeq":
        call = torchdiffeq(case, probe)
    else:
        call = compiled(both.jax_peer(case)[0], peers.load(case.path))

    def measure() -> None:
        bits, nfe = call()
        facts.update(nfe=int(nfe), bits=float(bits.mean()))

    return Loaded({"likelihood": (measure, 1)}, facts)


def compiled(call: both.Call, peer: peers.Official) -> both.Call:
    """A peer's call, of which the first compiles, with a loose tolerance: few steps."""
    tolerances = [LOOSE]

    def changed() -> tuple[Any, int]:
        if not tolerances:
            return call()
        with tolerance(peer.likelihood, tolerances.pop()):
            return call()

    return changed


@contextmanager
def tolerance(module: types.ModuleType, value: float) -> Iterator[None]:
    """The module's calls of SciPy's `solve_ivp` have these tolerances, for a while."""
    before = module.integrate

    def loose(*args: Any, **kwargs: Any) -> Any:
        return before.solve_ivp(*args, **{**kwargs, "rtol": value, "atol": value})

    module.integrate = types.SimpleNamespace(solve_ivp=loose)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.integrate = before  # type: ignore[attr-defined]


def torchdiffeq(case: both.Case, probe: Any) -> both.Call:
    """Bits/dim by torchdiffeq's dopri5: drift and divergence in one state (eq. 39 and 40)."""
    for package in ("torch", "torchdiffeq"):
        checkouts.require(package)
    import numpy as np
    import torch
    from torchdiffeq import odeint

    peer, shape = peers.load(case.path), case.parts.image_shape
    network = peers.network(case.path, case.config)
    peers.torch_weights(network, case.parts.module, case.params, shape)
    network.requires_grad_(False)
    sde = peers.sde(peer, case.parts.sde)
    score = peer.mutils.get_score_fn(sde, network, train=False, continuous=True)
    drift = sde.reverse(score, probability_flow=True).sde

    def channels_first(array: Any) -> Any:
        return torch.from_numpy(np.moveaxis(np.asarray(array, np.float32), -1, 1).copy())

    images, probes = channels_first(case.x), channels_first(probe)
    evaluations = [0]

    def field(t: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        evaluations[0] += 1
        with torch.enable_grad():
            x = state[0].detach().requires_grad_(True)
            value = drift(x, t.expand(len(x)))[0]
            (product,) = torch.autograd.grad((value * probes).sum(), x)
        return value.detach(), (product * probes).flatten(1).sum(1)

    def call() -> tuple[Any, int]:
        evaluations[0] = 0
        times = torch.tensor([1e-5, float(sde.T)])
        start = images, torch.zeros(len(images))
        options = {"rtol": case.tolerance, "atol": case.tolerance, "method": "dopri5"}
        last = {"step_t": times[1:]}  # beyond T there is no network
        with torch.no_grad():
            z, change = odeint(field, start, times, options=last, **options)
        logp = sde.prior_logp(z[-1]) + change[-1]
        dims = np.prod(shape)
        bits = -logp.numpy() / np.log(2.0) / dims + 8.0 - np.log2(case.scale)
        return bits, evaluations[0]

    return call
