"""Objectives: the cost of each, and the variance of the gradient by how the times are drawn.

    python benchmarks/objectives.py [--config=configs/quickstart.py ...] [--rounds=5] [--draws=48]

For each config (default: points of the plane, then digits) two tables. The first is the variance of
the gradient of the likelihood-weighted loss over batches, summed over the parameters of a network
that predicts the noise, for each way to draw the times; "factor" is that of independent uniform
times divided by it. The second is the time of a gradient step with each objective, also relative to
`dsm`; the steps take turns in one run, and the fastest of each are compared, which a busy machine
disturbs least.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime import backend  # isort: skip

backend.prepare()  # before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np
import optax

import data
import models
from diffusion import times
from interop import convert
from runtime import experiment, figures
from training.objective import objective_from_config

CONFIGS = ("configs/toy/mixture_dsm_vp.py", "configs/quickstart.py")

# Changes to denoising score matching of the noise, field by field.
EDM = {
    "training.weighting": "edm",
    "training.time": "log_normal",
    "model.prediction": "edm",
    "model.scale_by_sigma": False,
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dsm": {},
    "dsm, discrete": {"training.continuous": False, "model.prediction": ""},
    "dsm, one sigma": {"training.time": "fixed", "training.sigma": 0.5},
    "dsm, likelihood weighting": {"training.weighting": "likelihood"},
    "dsm, importance-sampled": {"training.weighting": "likelihood", "training.time": "likelihood"},
    "dsm, edm": EDM,
    "dsm, velocity": {
        "training.weighting": "velocity",
        "model.prediction": "velocity",
        "model.scale_by_sigma": False,
    },
    "dsm, x0": {
        "training.weighting": "x0",
        "model.prediction": "x0",
        "model.scale_by_sigma": False,
    },
    "esm": {"training.objective": "esm", "training.kde_points": 1000},
    "ssm": {"training.objective": "ssm"},
    "ssm_vr": {"training.objective": "ssm_vr"},
    "ism": {"training.objective": "ism"},
}
NOISE = {"model.prediction": "noise", "model.scale_by_sigma": False}  # of the first table
TIMES = [(time, kind) for time in ("uniform", "likelihood") for kind in times.TIME_DRAWS]

Gradient = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


def load_config(path: str, changes: dict[str, Any]) -> Any:
    """The config of a file, with changes by field."""
    config = convert.load_config(ROOT / path)
    config.update_from_flattened_dict(changes)
    return config


def gradient_of(config: Any, dataset: Any, batch: int) -> tuple[Gradient, Any]:
    """The jitted loss and gradient of (params, images, step key), and fresh parameters."""
    parts = experiment.build(config)
    objective = objective_from_config(config, parts, dataset)
    numbers, classes = jnp.arange(batch), jnp.zeros(batch, jnp.int32)

    def mean_loss(params: Any, images: Any, key: jax.Array) -> jax.Array:
        return jnp.mean(
            objective(params, images, classes, key, numbers, batch, train=True, flip=False)[0]
        )

    params = models.init(parts.module, jax.random.key(0), parts.image_shape)
    return jax.jit(jax.value_and_grad(mean_loss)), params


def batch_of(dataset: Any, batch: int, number: int) -> tuple[Any, jax.Array]:
    """Images of batch `number`, and its key."""
    chosen = np.random.default_rng(number).integers(0, len(dataset), batch)
    return dataset.take(chosen)[0], jax.random.key(number)


def trained_params(path: str, dataset: Any, batch: int, steps: int) -> Any:
    """Parameters after some steps, for which the errors at all times are of one order."""
    gradient, params = gradient_of(load_config(path, NOISE), dataset, batch)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for step in range(steps):
        _, grads = gradient(params, *batch_of(dataset, batch, step))
        params, state = update(params, state, grads)
    return params


def variances(path: str, dataset: Any, batch: int, steps: int, draws: int) -> list[tuple]:
    """Mean loss, and the variances of loss and gradient relative to the first of `TIMES`."""
    params = trained_params(path, dataset, batch, steps)
    moments = []
    for time_, kind in TIMES:
        changes = {
            **NOISE,
            "training.weighting": "likelihood",
            "training.time": time_,
            "training.time_draws": kind,
        }
        gradient, _ = gradient_of(load_config(path, changes), dataset, batch)
        values: list[float] = []
        total: Any = 0.0
        squares: Any = 0.0
        for number in range(draws):
            value, grads = gradient(params, *batch_of(dataset, batch, 10_000 + number))
            flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
            values.append(float(value))
            total, squares = total + flat, squares + np.square(flat, dtype=np.float64)
        variance = (squares - np.square(total) / draws) / (draws - 1)
        moments.append((np.mean(values), np.var(values, ddof=1), variance.sum()))
    _, first_loss, first = moments[0]
    return [
        (time_, kind, mean, of_loss / first_loss, of_gradient / first, first / of_gradient)
        for (time_, kind), (mean, of_loss, of_gradient) in zip(TIMES, moments, strict=True)
    ]


def costs(path: str, dataset: Any, batch: int, rounds: int, names: list[str] | None) -> list[tuple]:
    """Microseconds per image of a gradient step with each objective, and relative to `dsm`."""
    images, key = batch_of(dataset, batch, 0)
    calls = {}
    for name in ["dsm", *names] if names else OBJECTIVES:
        gradient, params = gradient_of(load_config(path, OBJECTIVES[name]), dataset, batch)
        jax.block_until_ready(gradient(params, images, key))
        calls[name] = gradient, params
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (gradient, params) in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(gradient(params, images, key))
            seconds[name].append(time.perf_counter() - began)
    fastest = {name: min(taken) for name, taken in seconds.items()}
    return [(name, 1e6 * taken / batch, taken / fastest["dsm"]) for name, taken in fastest.items()]


def run() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="append", help=f"default: {', '.join(CONFIGS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument(
        "--draws", type=int, default=48, help="batches whose gradients are compared"
    )
    parser.add_argument("--steps", type=int, default=100, help="of training before that")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--objective", action="append", help="beside dsm; default: all")
    parser.add_argument("--table", choices=["variance", "cost"], help="only this one")
    args = parser.parse_args()
    for name in args.objective or ():
        if name not in OBJECTIVES:
            parser.error(f"--objective={name}: known are {', '.join(OBJECTIVES)}")
    for path in args.config or CONFIGS:
        dataset = data.from_config(load_config(path, {}), "train")
        if args.table != "cost":
            rows = variances(path, dataset, args.batch, args.steps, args.draws)
            header = ["time", "draws", "loss", "var(loss)", "var(gradient)", "factor"]
            print(f"{path}: variance of the likelihood-weighted loss, batches of {args.batch}")
            print(figures.table(rows, header), flush=True)
        if args.table != "variance":
            rows = costs(path, dataset, args.batch, args.rounds, args.objective)
            print(f"{path}: cost of a gradient step, batches of {args.batch}")
            print(figures.table(rows, ["objective", "us/image", "to dsm"]), flush=True)


if __name__ == "__main__":
    run()
