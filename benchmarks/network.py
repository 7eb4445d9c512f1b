"""Networks and training steps: images/s, GFLOP/s, and shares of this machine's matrix product.

    python benchmarks/network.py [--peer PATH]... [--rounds 7] [--only vp_32,ve_fir_32,vp_128]

Forward is one evaluation of the network; gradient adds the backward pass of the training loss;
step is a whole training step (Adam and the moving average too), with us one of the
`training.n_jitted_steps` that the config trains for in one call. Every `--peer`, a checkout of the
official PyTorch or JAX code, runs the same configurations. Each contender is a process of its own;
they take turns, each turn after a rest in which idle threads fall asleep, and medians are
compared. GFLOP/s count the work that XLA's cost analysis finds in our own program, lowered for an
accelerator (it sees nothing of the CPU's native functions).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import multiprocessing
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from tqdm import tqdm


class Case(NamedTuple):
    """An official config, with a width, a depth and a batch that a CPU can bear."""

    config: str
    nf: int
    num_res_blocks: int
    batch: int


CASES = {
    "vp_32": Case("configs.vp.cifar10_ddpmpp_continuous", 32, 2, 16),
    "ve_fir_32": Case("configs.ve.cifar10_ncsnpp_continuous", 32, 2, 16),
    "vp_128": Case("configs.vp.cifar10_ddpmpp_continuous", 128, 4, 4),
}
QUANTITIES = ("forward", "gradient", "step")
MATMUL = 2048
Calls = dict[
    str, tuple[Callable[[], Any], int]
]  # a call by quantity, and the number of times that it does it


def read_config(case: Case) -> Any:
    config = importlib.import_module(case.config).get_config()
    config.model.nf, config.model.num_res_blocks = case.nf, case.num_res_blocks
    config.training.batch_size = case.batch
    return config


class Loaded(NamedTuple):
    """What a contender does.

    Attributes:
      calls: each compiles when it is first made, or is compiled already.
      work: floating-point operations of some of them.
      parameters: of its network.
    """

    calls: Calls
    work: dict[str, float]
    parameters: int


def ours(case: Case, quantities: Sequence[str] = QUANTITIES) -> Loaded:
    """This project's calls of these quantities, compiled, and a matrix product."""
    from runtime import backend  # isort: skip

    backend.prepare()  # before JAX is imported
    import jax
    import jax.numpy as jnp

    from runtime import ema, experiment
    from training import optimizers
    from training.objective import objective_from_config
    from training.state import new_state
    from training.step import make_train_step

    config = read_config(case)
    parts = experiment.build(config)
    module, shape = parts.module, parts.image_shape
    objective = objective_from_config(config, parts)
    optimizer = optimizers.from_config(config)
    fresh = functools.partial(new_state, module, optimizer, 0, shape)
    state = jax.jit(fresh)()
    params = jax.tree.map(jnp.copy, state.params)
    steps = config.training.n_jitted_steps
    images = np.random.default_rng(0).integers(0, 256, (steps, case.batch, *shape), np.uint8)
    classes, numbers = jnp.zeros((steps, case.batch), jnp.int32), jnp.arange(case.batch)
    batches = {"image": images, "label": classes}
    x, labels = jnp.zeros((case.batch, *shape)), jnp.full(case.batch, 0.5)

    def loss(params: Any, images: Any) -> Any:
        batch = images, classes[0], jax.random.key(1), numbers, case.batch
        return jnp.mean(objective(params, *batch, train=True, flip=True)[0])

    one_step = make_train_step(objective, optimizer, ema.from_config(config), True, None)
    traces: dict[str, Callable[[], Any]] = {
        "forward": lambda: jax.jit(lambda p, x: module.apply({"params": p}, x, labels)).trace(
            params, x
        ),
        "gradient": lambda: jax.jit(jax.value_and_grad(loss)).trace(params, images[0]),
        "step": lambda: jax.jit(one_step, donate_argnums=0).trace(state, batches),
    }
    traced = {name: traces[name]() for name in quantities}
    compiled = {name: trace.lower().compile() for name, trace in traced.items()}
    held = [state]

    def run_steps() -> Any:
        held[0], metrics = compiled["step"](held[0], batches)
        return jax.block_until_ready(metrics)

    possible: Calls = {
        "forward": (lambda: jax.block_until_ready(compiled["forward"](params, x)), 1),
        "gradient": (lambda: jax.block_until_ready(compiled["gradient"](params, images[0])), 1),
        "step": (run_steps, steps),
    }
    calls = {name: possible[name] for name in quantities} | {"matmul": (matrix_product(), 1)}
    work = {name: operations(trace) for name, trace in traced.items()}
    return Loaded(calls, work, sum(leaf.size for leaf in jax.tree.leaves(params)))


def operations(traced: Any) -> float:
    """Floating-point operations of a traced program, as it is lowered for an accelerator."""
    cost: Any = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    return float(cost["flops"])


def matrix_product() -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    a = jnp.ones((MATMUL, MATMUL))
    product = jax.jit(lambda a: a @ a)
    return lambda: jax.block_until_ready(product(a))


def official(path: str, case: Case) -> Loaded:
    """The calls of the official code at `path`."""
    import sde_lib
    from benchmarks import peers

    config = read_config(case)
    peer, module = peers.load(path), peers.network(path, config)
    config = peers.official_config(config)
    sde = peers.sde(peer, sde_lib.from_config(config))
    run = official_torch if peer.kind == "torch" else official_jax
    return run(peer, module, sde, config, case.batch)


def official_torch(peer: Any, module: Any, sde: Any, config: Any, batch: int) -> Loaded:
    import torch

    size, training = config.data.image_size, config.training
    x = torch.rand(batch, config.data.num_channels, size, size)
    labels = torch.full((batch,), 0.5)
    optimizer = peer.losses.get_optimizer(config, module.parameters())
    average = peer.ema.ExponentialMovingAverage(module.parameters(), decay=config.model.ema_rate)
    state = {"optimizer": optimizer, "model": module, "ema": average, "step": 0}
    options = {
        "reduce_mean": training.reduce_mean,
        "continuous": training.continuous,
        "likelihood_weighting": training.likelihood_weighting,
    }
    step = peer.losses.get_step_fn(
        sde, train=True, optimize_fn=peer.losses.optimization_manager(config), **options
    )
    loss = peer.losses.get_sde_loss_fn(
        sde,
        train=True,
        reduce_mean=training.reduce_mean,
        continuous=True,
        likelihood_weighting=training.likelihood_weighting,
    )

    def forward() -> None:
        module.eval()
        with torch.no_grad():
            module(x, labels)

    def gradient() -> None:
        optimizer.zero_grad()
        loss(module, x).backward()

    calls: Calls = {
        "forward": (forward, 1),
        "gradient": (gradient, 1),
        "step": (lambda: step(state, x), 1),
    }
    return Loaded(calls, {}, sum(leaf.numel() for leaf in module.parameters()))


def official_jax(peer: Any, module: Any, sde: Any, config: Any, batch: int) -> Loaded:
    import jax
    import jax.numpy as jnp

    from benchmarks import peers

    size = config.data.image_size
    shape = (size, size, config.data.num_channels)
    params = peers.init_jax(module, jax.random.key(0), shape)
    x, labels = jnp.full((batch, *shape), 0.5), jnp.full(batch, 0.5)
    official = peers.jax_step(peer, module, sde, config)
    forward = jax.jit(lambda p, x: module.apply({"params": p}, x, labels, train=False))
    gradient = jax.jit(jax.value_and_grad(official.loss))
    step = jax.jit(official.step, donate_argnums=0)
    held = [official.init(jax.tree.map(jnp.copy, params), jax.random.PRNGKey(2))]

    def run_step() -> Any:
        held[0], worth = step(held[0], x)
        return jax.block_until_ready(worth)

    calls: Calls = {
        "forward": (lambda: jax.block_until_ready(forward(params, x)), 1),
        "gradient": (lambda: jax.block_until_ready(gradient(params, jax.random.PRNGKey(3), x)), 1),
        "step": (run_step, 1),
    }
    return Loaded(calls, {}, sum(leaf.size for leaf in jax.tree.leaves(params)))


def serve(pipe: Any, path: str | None) -> None:
    """Answers ("load", case) with the work of each quantity, ("time", name) with seconds."""
    sys.stderr.flush()
    calls: Calls = {}
    while True:
        try:
            order, argument = pipe.recv()
        except EOFError:  # the parent has ended
            return
        try:
            if order == "load":
                loaded = official(path, argument) if path else ours(argument)
                calls = loaded.calls
                for call, _ in calls.values():
                    call()
                pipe.send(loaded.work)
            else:
                call, times = calls[argument]
                began = time.perf_counter()
                call()
                pipe.send((time.perf_counter() - began) / times)
        except Exception as error:
            traceback.print_exc()
            pipe.send(error)


class Contender:
    """A process of its own, so that neither library's threads or flags touch the other's."""

    def __init__(self, name: str, path: str | None) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        context.Process(target=serve, args=(end, path), daemon=True).start()

    def ask(self, order: str, argument: Any) -> Any:
        self.pipe.send((order, argument))
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise SystemExit(f"error: {self.name}: {answer}")
        return answer


def compare(name: str, contenders: list[Contender], rounds: int) -> None:
    """One configuration: every contender loads, then all take turns."""
    from runtime import figures

    case = CASES[name]
    work, *_ = [contender.ask("load", case) for contender in contenders]
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in tqdm(range(rounds), desc=name, leave=False):
        for contender in contenders:
            time.sleep(0.5)
            quantities = [*QUANTITIES, *(["matmul"] if contender is contenders[0] else [])]
            for quantity in quantities:
                spent = contender.ask("time", quantity)
                seconds.setdefault((contender.name, quantity), []).append(spent)
    median = {key: float(np.median(values)) for key, values in seconds.items()}
    peak = 2 * MATMUL**3 / median[contenders[0].name, "matmul"]
    rows = []
    for contender in contenders:
        for quantity in QUANTITIES:
            spent = median[contender.name, quantity]
            rate = work[quantity] / spent
            ratio = spent / median[contenders[0].name, quantity]
            speeds = (1e3 * spent, case.batch / spent, rate / 1e9, rate / peak, ratio)
            rows.append((contender.name, quantity, *speeds))
    print(f"\n{name}: {case}; matrix product {peak / 1e9:.0f} GFLOP/s")
    header = ["", "", "ms", "images/s", "GFLOP/s", "of matmul", "time / ours"]
    print(figures.table(rows, header))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", action="append", default=[], help="checkout of official code")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        raise SystemExit(f"error: --only names unknown {unknown}; known: {', '.join(CASES)}")
    from benchmarks import checkouts

    contenders = [Contender("ours", None)]
    for path in args.peer:
        contenders.append(Contender(f"official {checkouts.kind(path)}", path))
    for name in names:
        compare(name, contenders, args.rounds)


if __name__ == "__main__":
    main()
