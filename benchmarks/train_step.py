"""Training steps per call: time, temporary memory and compilation, for 1, 5 and 25 steps in a scan.

    python benchmarks/train_step.py [--benchmark_config=configs/quickstart.py]

Ratios are to one step per call in the same run; calls take turns, and medians are compared, so a
drift of the machine's speed cancels.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from runtime import backend  # isort: skip

backend.prepare()  # before JAX is imported

import jax
import numpy as np
from absl import app
from ml_collections import config_flags

import data
from runtime import devices, experiment, figures, groups
from training import layout, optimizers
from training.objective import objective_from_config
from training.state import new_state
from training.step import step_from_config

COUNTS = (1, 5, 25)
ROUNDS = 4
CONFIG = config_flags.DEFINE_config_file("benchmark_config", "configs/quickstart.py")


def run(argv: list[str]) -> None:
    """Compiles the pmapped step for each number of steps per call, and times them in turns."""
    del argv
    config = CONFIG.value
    dataset = data.from_config(config, "train")
    parts = experiment.build(config)
    objective = objective_from_config(config, parts, dataset)
    optimizer = optimizers.from_config(config)
    step = step_from_config(config, objective, optimizer)
    fresh = functools.partial(new_state, parts.module, optimizer, 0, parts.image_shape)
    host_state = groups.evaluate(fresh)
    place = layout.from_config(config, host_state).place
    compiled, batches, states, memory, seconds = {}, {}, {}, {}, {}
    for n in COUNTS:
        stream = data.Batches(dataset, config.training.batch_size, 0, num_steps=n)
        batches[n] = devices.lay_out(next(stream))
        stream.close()
        states[n] = place(host_state)
        began = time.monotonic()
        mapped = jax.pmap(step, axis_name=devices.AXIS, donate_argnums=0)
        compiled[n] = mapped.lower(states[n], batches[n]).compile()
        seconds[n] = time.monotonic() - began
        memory[n] = compiled[n].memory_analysis().temp_size_in_bytes
        states[n], _ = jax.block_until_ready(compiled[n](states[n], batches[n]))

    times: dict[int, list[float]] = {n: [] for n in COUNTS}
    for _ in range(ROUNDS):
        for n in COUNTS:
            calls = max(COUNTS) // n
            began = time.monotonic()
            for _ in range(calls):
                states[n], metrics = compiled[n](states[n], batches[n])
                jax.block_until_ready(metrics)
            times[n].append((time.monotonic() - began) / (calls * n))

    median = {n: float(np.median(times[n])) for n in COUNTS}
    rows = [
        (
            n,
            1e3 * median[n],
            median[n] / median[1],
            memory[n] / 2**20,
            memory[n] / memory[1],
            seconds[n],
            config.training.batch_size / median[n],
        )
        for n in COUNTS
    ]
    header = ["steps/call", "ms/step", "ratio", "temp MiB", "ratio", "compile s", "images/s"]
    print(figures.table(rows, header))


if __name__ == "__main__":
    app.run(run)
