"""Bits/dim of a batch beside the official `likelihood_fn`: same network, images, probe, tolerances.

    python benchmarks/likelihood.py --peer=PATH [--config=configs/quickstart.py] [--workdir=RUN]
        [--batch=8] [--tolerance=1e-5]

PATH is a checkout of the official PyTorch or JAX code, or of score_flow. RUN is a trained run of
that config, on its test images; without it the images are noise and the weights initial ones, with
a last layer that is not zero. Bits/dim count 256 levels, as the official code always does. The peer
solves by SciPy on the host, with one step size for the batch; its evaluations count for all images,
ours for the slowest. Compilation is not in the seconds; CPU time depends little on what else the
machine does.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# This file has the name of the module that it measures, whose folder must come first.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from runtime import backend  # isort: skip

backend.prepare()  # before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np

import configs
import data
import likelihood
import models
from benchmarks import checkouts, peers
from data import transforms
from runtime import devices, experiment, figures
from runtime.workdir import restore

LAST_LAYER = 0.1  # scale of its initial weights


class Run(NamedTuple):
    """Bits/dim [B] of the images, the evaluations, and the wall and CPU time in seconds."""

    bits: np.ndarray
    nfe: int
    seconds: float
    cpu: float


Call = Callable[[], tuple[Any, int]]  # bits/dim [B] and the evaluations


def measure(call: Call, compiles: bool) -> Run:
    """The second run of a call if the first compiles, else the first."""
    if compiles:
        call()
    began, busy = time.perf_counter(), time.process_time()
    bits, nfe = call()
    bits = np.asarray(bits).reshape(-1)
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    return Run(bits, int(nfe), seconds, cpu)


class Case(NamedTuple):
    """The network's parameters, the images and the tolerances, the same for both sides."""

    config: Any
    parts: experiment.Parts
    params: Any
    x: jax.Array
    path: pathlib.Path
    tolerance: float

    @property
    def scale(self) -> float:
        return 2.0 if self.config.data.centered else 1.0

    def unscaled(self, x: Any) -> Any:
        """The official inverse of the data's scaling."""
        return (x + 1.0) / 2.0 if self.config.data.centered else x


def ours(case: Case, probe: np.ndarray, solver: str) -> Call:
    """Our likelihood, with the peer's probe."""

    @jax.jit
    def run(params: Any, x: jax.Array, probes: jax.Array) -> likelihood.Likelihood:
        score_fn = case.parts.score(params)
        return likelihood.log_likelihood(
            case.parts.sde,
            score_fn,
            x,
            probes,
            rtol=case.tolerance,
            atol=case.tolerance,
            eps=1e-5,
            solver=solver,
        )

    def call() -> tuple[Any, int]:
        solution = jax.block_until_ready(run(case.params, case.x, jnp.asarray(probe)[None]))
        if not solution.ok.all():
            raise ValueError("the solver gave up")
        bits = likelihood.bits_per_dim(solution.logp, case.parts.image_shape, 256, case.scale)
        return bits, solution.nfe.max()

    return call


def torch_peer(case: Case) -> tuple[Call, np.ndarray]:
    """The official PyTorch function, and the probe that it draws."""
    import torch

    peer = peers.load(case.path)
    network = peers.network(case.path, case.config)
    peers.torch_weights(network, case.parts.module, case.params, case.parts.image_shape)
    images = torch.from_numpy(np.moveaxis(np.asarray(case.x), -1, 1).copy())
    sde = peers.sde(peer, case.parts.sde)
    official = peer.likelihood.get_likelihood_fn(
        sde, case.unscaled, rtol=case.tolerance, atol=case.tolerance
    )

    def call() -> tuple[Any, int]:
        torch.manual_seed(0)
        bits, _, nfe = official(network, images)
        return bits, nfe

    torch.manual_seed(0)
    probe = torch.randint_like(images, low=0, high=2) * 2.0 - 1.0
    return call, np.moveaxis(probe.numpy(), 1, -1)


class PeerState(NamedTuple):
    params_ema: Any
    model_state: Any


def jax_peer(case: Case) -> tuple[Call, np.ndarray]:
    """The official JAX function, or score_flow's, on one device, and the probe that it draws."""
    peer = peers.load(case.path)
    network = peers.network(case.path, case.config)
    params = peers.jax_weights(network, case.params, case.parts.image_shape)
    state = jax.tree.map(lambda leaf: leaf[None], PeerState(params, {}))
    images, keys = case.x[None], jax.random.PRNGKey(0)[None]
    sde = peers.sde(peer, case.parts.sde)
    official = peer.likelihood.get_likelihood_fn(
        sde, network, case.unscaled, rtol=case.tolerance, atol=case.tolerance
    )

    def call() -> tuple[Any, int]:
        bits, _, *rest = official(keys, state, images)
        return bits, rest[0] if len(rest) == 1 else rest[1]  # score_flow's time stands before

    return call, official_probe(case)


def official_probe(case: Case) -> np.ndarray:
    """The probe that the official JAX code and score_flow draw from key 0."""
    key = jax.random.split(jax.random.PRNGKey(0))[1]
    bits = jax.random.randint(key, (1, *case.x.shape), 0, 2)
    return np.asarray(bits[0]) * 2.0 - 1.0


def make_case(args: argparse.Namespace) -> Case:
    """The case that the command line describes."""
    config = configs.from_file(args.config)
    if not args.workdir:
        config.model.init_scale = LAST_LAYER
    parts = experiment.build(config)
    if args.workdir:
        params = devices.fetch(restore(config, parts, args.workdir).params)
    else:
        params = models.init(parts.module, jax.random.key(0), parts.image_shape)
    if args.workdir:
        levels = parts.levels
        images, _ = data.from_config(config, "test").take(np.arange(args.batch))
    else:
        levels, shape = 256, (args.batch, *parts.image_shape)
        images = np.random.default_rng(0).integers(0, levels, shape)
    keys = devices.image_keys(jax.random.key(2), jnp.arange(args.batch))
    x = transforms.uniform_dequantize(images, keys, levels, config.data.centered)
    return Case(config, parts, params, x, args.peer, args.tolerance)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=pathlib.Path, required=True)
    parser.add_argument("--config", type=pathlib.Path, default="configs/quickstart.py")
    parser.add_argument("--workdir", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    case = make_case(parser.parse_args())
    kind = checkouts.kind(case.path)
    call, probe = (torch_peer if kind == "torch" else jax_peer)(case)
    official = measure(call, compiles=kind != "torch")
    rows = []
    for name, timing in [
        (f"official, {kind}", official),
        ("ours, Dopri5", measure(ours(case, probe, "Dopri5"), compiles=True)),
        ("ours, Tsit5", measure(ours(case, probe, "Tsit5"), compiles=True)),
    ]:
        off = float(np.abs(timing.bits - official.bits).max())
        rows.append(
            (
                name,
                float(timing.bits.mean()),
                off,
                timing.nfe,
                timing.seconds,
                official.seconds / timing.seconds,
                timing.cpu,
                official.cpu / timing.cpu,
                1e3 * timing.cpu / timing.nfe,
            )
        )
    header = ["", "bits/dim", "largest diff.", "NFE"]
    header += ["seconds", "times faster", "CPU s", "times less", "CPU ms/NFE"]
    print(figures.table(rows, header))


if __name__ == "__main__":
    run()
