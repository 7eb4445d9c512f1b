"""Training on 1, 2 and 4 hosts of this machine: efficiency, and the bytes that a step sends.

    python benchmarks/hosts.py [--benchmark_config=configs/quickstart.py] [--hosts=1,2,4]

A host is a process in a network namespace, with an address of its own, as in `tests/network.py`. It
is bound to one core; hosts that are more than cores share them. The efficiency is the images per
second over those of one host times the cores in use, in the same run: 1 means that working together
costs nothing; a host's own CPU time for a step says what of it was work, and not waiting for others
or for a core. The bytes are what the network's own counters saw leave a host, without headers, a
step; those expected are 2 (n - 1) / n times the gradients, what one all-reduce of them sends.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
import time
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime import backend  # isort: skip

backend.prepare()  # before JAX is imported

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

import data
from planning import hlo
from runtime import cluster, devices, experiment, figures, groups
from tests import network
from training import layout, optimizers
from training.objective import objective_from_config
from training.state import state_from_config
from training.step import step_from_config

ROUNDS = 12
STEPS = 5  # of a round, in one call
CONFIG = config_flags.DEFINE_config_file("benchmark_config", "configs/quickstart.py")
HOSTS = flags.DEFINE_list("hosts", ["1", "2", "4"], "Numbers of hosts.")
FOLDER = flags.DEFINE_string("folder", None, "Of a host: where it meets the one that measures.")
FLAGS = flags.FLAGS


def run(argv: list[str]) -> None:
    """Is a host, with --folder; or else starts them and prints the table."""
    if FOLDER.value is not None:
        folder = pathlib.Path(FOLDER.value)
        try:
            take_steps(folder)
        except BaseException:
            write(folder / "failed", traceback.format_exc())
            raise
        return
    if not network.possible():
        sys.exit("this machine lets nobody make networks")
    counts = [int(count) for count in HOSTS.value]
    results = {}
    for count in counts:
        results[count] = measure(count, argv[1:])
        print(f"{count} hosts: {json.dumps(results[count])}", file=sys.stderr, flush=True)
    cores = os.cpu_count() or 1
    alone = results[counts[0]]["images_per_second"] / min(counts[0], cores)
    rows = []
    for count, result in results.items():
        expected = 2 * (count - 1) / count * result["gradients"]
        rows.append(
            (
                *(count, min(count, cores), result["images_per_second"]),
                result["images_per_second"] / alone / min(count, cores),
                result["cpu_ms"],
                *(result["all_reduces"], result["sent"] / 1e6, expected / 1e6),
                result["sent"] / expected if expected else "",
            )
        )
    header = [
        *("hosts", "cores", "images/s", "efficiency", "CPU ms/step", "all-reduces"),
        *("MB sent/step", "expected", "ratio"),
    ]
    print(figures.table(rows, header))


def measure(count: int, more: list[str]) -> dict[str, Any]:
    """The rate of so many hosts, and the mean bytes that one sends in a step."""
    with network.Network(count) as net, tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = FLAGS["benchmark_config"].config_filename  # type: ignore[attr-defined]
        options = [f"--benchmark_config={config}", f"--folder={folder}", *more]
        for host in range(count):
            place = "10.9.0.1:7000", str(count), str(host)
            environment = dict(zip(cluster.VARIABLES, place, strict=True))
            environment |= {"JAX_PLATFORMS": "cpu", "NPROC": "2"}
            command = [sys.executable, str(pathlib.Path(__file__).resolve()), *options]
            output = str(folder / f"{host}.txt")
            net.ask(start=command, host=host, environment=environment, output=output)

        def sent() -> int:
            return sum(net.ask(bytes=host) for host in range(count))

        await_all(folder, "ready", count)
        before = sent()
        (folder / "go").touch()
        await_all(folder, "done", count)
        total = sent() - before
        (folder / "end").touch()
        result: dict[str, Any] = json.loads((folder / "done0").read_text())
    return {**result, "sent": total / (count * ROUNDS * STEPS)}


def await_all(folder: pathlib.Path, name: str, count: int) -> None:
    """Waits until all hosts have written a file of that name."""
    deadline = time.monotonic() + 1800
    while not all((folder / f"{name}{host}").exists() for host in range(count)):
        if (folder / "failed").exists() or time.monotonic() > deadline:
            sys.exit("\n".join(path.read_text() for path in folder.glob("*") if path.is_file()))
        time.sleep(0.05)


def await_file(path: pathlib.Path) -> None:
    """Waits until the one that measures has made a file."""
    while not path.exists():
        time.sleep(0.02)


def bind(host: int) -> None:
    """Binds all threads of this process to the host's core."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {cores[host % len(cores)]})


def take_steps(folder: pathlib.Path) -> None:
    """Trains as one of the hosts, when it is told to; process 0 writes the rate."""
    index = int(os.environ[cluster.VARIABLES[2]])
    cluster.join(True, {})
    config = CONFIG.value
    step, state, batches = prepared(config)
    compiled = step.lower(state, batches).compile()
    cluster.await_others()
    bind(index)
    state, _ = jax.block_until_ready(step(state, batches))
    write(folder / f"ready{index}", "")
    await_file(folder / "go")
    times, used = [], time.process_time()
    for _ in range(ROUNDS):
        began = time.monotonic()
        state, _ = jax.block_until_ready(step(state, batches))
        times.append((time.monotonic() - began) / STEPS)
    used = (time.process_time() - used) / (ROUNDS * STEPS)
    reduces = hlo.collectives(compiled.as_text()).get("all-reduce", {"count": 0})
    result = {
        "images_per_second": config.training.batch_size / float(np.median(times)),
        "cpu_ms": 1000 * used,
        "gradients": sum(leaf[0].nbytes for leaf in jax.tree.leaves(state.params)),
        "all_reduces": reduces["count"],
    }
    write(folder / f"done{index}", json.dumps(result))
    await_file(folder / "end")
    cluster.leave(0)


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears whole."""
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


def prepared(config: Any) -> tuple[Any, Any, Any]:
    """The step, the state and batches on this host's devices."""
    dataset = data.from_config(config, "train")
    parts = experiment.build(config)
    optimizer = optimizers.from_config(config)
    objective = objective_from_config(config, parts, dataset)
    step = jax.pmap(
        step_from_config(config, objective, optimizer), axis_name=devices.AXIS, donate_argnums=0
    )
    fresh = groups.evaluate(lambda: state_from_config(config, parts, optimizer))
    state = layout.from_config(config, fresh).place(fresh)
    stream = data.Batches(
        *(dataset, config.training.batch_size, 0),
        num_steps=STEPS,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    batches = devices.lay_out(next(stream))
    stream.close()
    return step, state, batches


if __name__ == "__main__":
    app.run(run)
