"""Commands of the row "start": from the start of a process to its first training step, to its first
images, and what the compilation of CIFAR-10's training step takes.

    python -m benchmarks.today.start CONTENDER CASE FOLDER [CHECKOUT]

prints `cpu` and the seconds of CPU time since the process began (for "compile": since the program
was known). Ours are the commands that a user gives; of the others it is as little as draws the same
number of images, or takes a step of the same batch, with a network of the same size.
"""

from __future__ import annotations

import os
import pathlib
import resource
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

SIGN = "cpu "
QUICKSTART = "configs/quickstart.py"
CIFAR10 = "vp/cifar10_ddpmpp_continuous"
IMAGES, STEPS = 64, 30  # of `--mode=sample` by default, and of the quickstart's sampler


def cpu() -> float:
    """Seconds of CPU time of this process and of those that it awaited."""
    spent = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def finish() -> None:
    """Prints the CPU time and ends the process there and then."""
    print(f"\n{SIGN}{cpu():.3f}", flush=True)
    os._exit(0)


def command(contender: str, case: str, folder: str, checkout: str) -> tuple[list[str], str]:
    """What is run, and the sign before the time that it prints; "": its whole time counts."""
    if contender == "ours" and case == "sample":
        return ["main.py", "--mode=sample", "--source=digits", f"--workdir={folder}"], ""
    sign = "" if case == "sample" else SIGN
    return ["-m", "benchmarks.today.start", contender, case, folder, checkout], sign


def ours(case: str, folder: pathlib.Path) -> None:
    """Our command of training, which ends when the first call has taken all of its steps."""
    if case == "compile":
        compile_ours()
    from training.metric_log import History

    def add(self: Any, first_step: int, metrics: Any) -> None:
        import jax

        jax.block_until_ready(metrics)
        finish()

    History.add = add  # type: ignore[method-assign]
    sys.argv = ["main.py", "--mode=train", f"--config={QUICKSTART}", f"--workdir={folder}"]
    runpy.run_path("main.py", run_name="__main__")


def compile_ours() -> None:
    """Traces, lowers and compiles our step of CIFAR-10, without arrays."""
    from runtime import backend

    backend.prepare()
    import jax

    import configs
    from planning import programs
    from runtime import devices

    config = configs.from_file(f"configs/{CIFAR10}.py")
    step = programs.training(config, config.training.batch_size, 1)
    program = jax.pmap(step.function, axis_name=devices.AXIS, donate_argnums=0)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), step.arguments
    )
    compile_of(lambda: program.lower(*arguments))


def compile_of(lower: Callable[[], Any]) -> None:
    """Prints what it takes to trace, lower and compile, and ends the process."""
    began = time.process_time()
    lower().compile()
    print(f"\n{SIGN}{time.process_time() - began:.3f}", flush=True)
    os._exit(0)


def score_sde_jax(case: str, folder: pathlib.Path, checkout: str) -> None:
    """The official JAX network: its loss with Adam, jitted, or its sampler."""
    import jax
    import jax.numpy as jnp

    import configs
    import sde_lib
    from benchmarks import peers

    config = configs.from_file(f"configs/{CIFAR10}.py" if case == "compile" else QUICKSTART)
    peer, module = peers.load(checkout), peers.network(checkout, config)
    sde = peers.sde(peer, sde_lib.from_config(config))
    size, batch = config.data.image_size, config.training.batch_size
    shape = size, size, config.data.num_channels
    step = peers.jax_step(peer, module, sde, peers.official_config(config))

    def state() -> Any:
        key = jax.random.key(0)
        return step.init(peers.init_jax(module, key, shape), jax.random.PRNGKey(1))

    program = jax.jit(step.step, donate_argnums=0)
    if case == "compile":
        images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
        abstract = jax.eval_shape(state)
        compile_of(lambda: program.lower(abstract, images))
    if case == "step":
        jax.block_until_ready(program(state(), jnp.zeros((batch, *shape))))
        finish()
    sde.N = STEPS
    sampling = peer.sampling
    predictor = sampling.get_predictor("reverse_diffusion")
    sampler = sampling.get_pc_sampler(
        *(sde, module, (IMAGES, *shape), predictor, sampling.get_corrector("none")),
        *(lambda x: (x + 1) / 2, 0.16),
        **{"n_steps": 1, "continuous": True, "denoise": True, "eps": 1e-3},
    )
    params = peers.init_jax(module, jax.random.key(0), shape)
    replicated = jax.tree.map(lambda leaf: leaf[None], State(params, {}))
    images, _ = sampler(jax.random.PRNGKey(2)[None], replicated)
    save(jax.device_get(images[0]), folder)


class State(NamedTuple):
    """The part of the official training state that its sampler reads."""

    params_ema: Any
    model_state: Any


def edm(case: str, folder: pathlib.Path, checkout: str) -> None:
    """EDM's network: its step, or its sampler, eager: there is nothing to compile."""
    import numpy as np

    import configs
    from benchmarks import torch_peers

    config = configs.from_file(QUICKSTART)
    net = torch_peers.edm(checkout, config)
    size, channels = config.data.image_size, config.data.num_channels
    if case == "step":
        images = np.zeros((config.training.batch_size, size, size, channels), np.uint8)
        torch_peers.edm_step(checkout, net, net, images)()
        finish()
    import torch

    sampler = torch_peers.edm_module(checkout, "generate").edm_sampler
    with torch.no_grad():
        latents = torch.randn(IMAGES, channels, size, size)
        images = sampler(net.eval(), latents, num_steps=STEPS // 2)
    save((images / 2 + 0.5).permute(0, 2, 3, 1).numpy(), folder)


def save(images: Any, folder: pathlib.Path) -> None:
    """Writes images [64, H, W, 1] in [0, 1] as one picture."""
    import numpy as np
    from PIL import Image

    levels = np.clip(np.asarray(images) * 255, 0, 255).astype(np.uint8)[..., 0]
    side = int(len(levels) ** 0.5)
    rows = np.concatenate(np.concatenate(levels.reshape(side, side, *levels.shape[1:]), 1), 1)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rows).save(folder / "grid.png")


def run(contender: str, case: str, folder: str, checkout: str = "") -> None:
    sys.dont_write_bytecode = contender != "ours"
    if contender == "ours":
        ours(case, pathlib.Path(folder))
    elif contender == "edm":
        edm(case, pathlib.Path(folder), checkout)
    else:
        score_sde_jax(case, pathlib.Path(folder), checkout)


if __name__ == "__main__":
    run(*sys.argv[1:])
