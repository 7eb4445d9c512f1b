"""`--mode=plan`: whether a run fits on hardware that is not here, and what bounds it there."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import logging

import likelihood
import sampling
from models.ops import native
from planning import costs, programs, roofline, table, topology
from planning.costs import Costs
from planning.programs import Program
from planning.topology import Topology
from runtime import devices, files
from training.step import check_batch

SAMPLES = 50000  # images of an FID
FILE = "plan.json"
Plan = dict[str, Any]
WorkOf = Callable[[Program, int, str], costs.Told]
DRAWS: tuple[tuple[str, Callable[..., Program], str], ...] = (
    ("sampling", programs.score, "sampling"),
    ("likelihood", programs.likelihood, "eval"),
)


def plan(
    config: ml_collections.ConfigDict,
    topology: str,
    workdir: pathlib.Path | None = None,
    compile: bool = True,
) -> None:
    """Prints what training, sampling and likelihoods would need and take on these chips.

    With a `workdir`, its plan.json has the same, by the topology's name.

    Raises:
      ValueError: a config that cannot be served, an unknown topology, a batch that its chips cannot
        share.
    """
    if workdir is not None and workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is no folder")
    path = None if workdir is None else workdir / FILE
    plans = files.read_json(path, "remove it") if path and path.exists() else {}
    result = make(config, topology, compile, say=functools.partial(print, flush=True))
    if not devices.is_primary():
        return
    print(table.text(result))
    if path is not None:
        files.write_json(path, {**plans, result["topology"]: result})
        print(f"\n{path} has these numbers")


@native.elsewhere()
def make(
    config: ml_collections.ConfigDict,
    name: str,
    compile: bool = True,
    say: Callable[[str], Any] = lambda line: None,
    draws: bool = True,
    work: WorkOf = costs.Work,
    ratios: costs.Ratios | None = None,
) -> Plan:
    """The plan, of what JSON knows. `say` gets a line at the start of what takes long.

    Without `draws` it is of training alone. `work` (program, chips, platform) is asked for what the
    program before compilation tells, and `ratios` correct it; None: those of `costs.RATIOS`.
    """
    chips = topology.parse(name)
    share = check_batch(config.training, chips.size)
    sampling.from_config(config)  # refused now, and not when training has been compiled
    likelihood.from_config(config)
    absent, here = "", []
    if compile:
        try:
            here = topology.devices(chips)
        except topology.Absent as error:
            absent = str(error)
            logging.warning("%s", absent)
    ratios = costs.RATIOS[chips.chip.platform] if ratios is None else ratios
    run = functools.partial(_costs, chips=chips, here=here, say=say, work=work, ratios=ratios)
    step = programs.training(config, config.training.batch_size, chips.size)
    estimate, step_costs = run(step, what="the training step")
    larger = programs.training(config, 2 * step.images, chips.size)
    twice = ratios.temporaries * work(larger, chips.size, chips.chip.platform).temporaries
    result: Plan = {
        "topology": chips.name,
        "chip": chips.chip.words,
        "chips": chips.size,
        "dtype": config.model.dtype,
        "compiled": bool(here),
        "note": absent,
        "memory": _memory(chips, step, estimate.temporaries, twice, step_costs),
        "training": {
            **_training(config, chips, step, step_costs),
            "estimate": {"bytes": estimate.traffic, "temporaries": estimate.temporaries},
        },
    }
    result["advice"] = advice(config, result["memory"], share, chips)
    for title, program, section in DRAWS if draws else ():
        images = -(-config[section].batch_size // chips.size) * chips.size
        try:
            evaluation = program(config, images)
        except ValueError as error:  # a guide, or a network of one class at a time
            result[title] = {"refused": str(error)}
            continue
        _, evaluation_costs = run(evaluation, what=f"an evaluation for {title}")
        result[title] = _evaluations(config, chips, evaluation, evaluation_costs)
    if draws:
        result["sampling"]["method"] = config.sampling.method
    return result


def _costs(
    program: Program,
    *,
    chips: Topology,
    here: list[Any],
    say: Callable[[str], Any],
    work: WorkOf,
    ratios: costs.Ratios,
    what: str,
) -> tuple[Costs, Costs]:
    """The costs of a program: the estimate, and the best that can be had."""
    told = work(program, chips.size, chips.chip.platform)
    estimate = costs.estimated(program, told, chips.size, ratios)
    if not here:
        return estimate, estimate
    say(f"compiling {what} for {chips.size} x {chips.chip.words} ...")
    return estimate, costs.compiled(program, here, estimate)


def _memory(chips: Topology, step: Program, small: float, large: float, best: Costs) -> Plan:
    """Bytes on a chip while it trains, and how many images would fit.

    `small` and `large` are estimates of the temporaries with these images, and with twice as many.
    """
    state, batch = step.share(chips.size)
    share, usable = step.images // chips.size, chips.chip.usable
    sections = {
        "parameters": costs.nbytes(state.params),
        "optimiser": costs.nbytes(state.opt_state),
        "averages": costs.nbytes((state.ema_params, state.averages)),
    }
    fixed, per_image = roofline.line((share, small), (2 * share, large))
    scale = best.temporaries / small if small else 1.0
    largest = roofline.largest_batch(
        usable,
        sum(sections.values()) + scale * fixed,
        scale * per_image + costs.nbytes(batch) / share,
    )
    return {
        **sections,
        "temporaries": best.temporaries,
        "needed": best.memory,
        "usable": usable,
        "there": chips.chip.memory,
        "fits": best.memory <= usable,
        "largest_batch_estimate": largest // step.loop * step.loop * chips.size,
    }


def _numbers(
    config: ml_collections.ConfigDict, chips: Topology, program: Program, cost: Costs
) -> Plan:
    """What one run of a program costs, and its bound."""
    chip = chips.chip
    sent = roofline.sent(cost.collectives, chips.size)
    bound = roofline.bound(
        cost.flops,
        cost.traffic,
        sent,
        rate=chip.rate(config.model.dtype),
        bandwidth=chip.bandwidth,
        links=chips.links,
    )
    return {
        "images": program.images,
        "flops": cost.flops,
        "bytes": cost.traffic,
        "bytes_counted": cost.traffic_counted,
        "bytes_sent": sent,
        "collectives": cost.collectives,
        "memory": cost.memory,
        "fits": cost.memory <= chip.usable,
        "seconds": bound.seconds,
        "bound_by": bound.by,
        "peak_share": roofline.utilisation(cost.flops, bound.seconds, chip.bfloat16),
        "compile_seconds": cost.compile_seconds,
    }


def _training(
    config: ml_collections.ConfigDict, chips: Topology, step: Program, cost: Costs
) -> Plan:
    numbers = _numbers(config, chips, step, cost)
    seconds, steps = numbers["seconds"], config.training.n_iters
    rates = {"images_per_second": step.images / seconds, "steps": steps}
    return {**numbers, **rates, "days": roofline.days(steps, seconds)}


def _evaluations(
    config: ml_collections.ConfigDict, chips: Topology, program: Program, cost: Costs
) -> Plan:
    """Of a whole sample, or likelihood: `evaluations` runs of the program."""
    numbers = _numbers(config, chips, program, cost)
    each = numbers["seconds"] * program.times / program.images
    return {
        **numbers,
        "evaluations": program.times,
        "evaluations_assumed": program.assumed,
        "images_per_second": 1 / each,
        "seconds_per_image": each,
        "hours_for_50000": SAMPLES * each / 3600,
    }


def advice(
    config: ml_collections.ConfigDict, memory: Plan, share: int, chips: Topology
) -> list[str]:
    """What would help a training step that does not fit, most effective first."""
    if memory["fits"]:
        return []
    spread = memory["optimiser"] + memory["averages"]
    state = memory["parameters"] + spread
    lines = []
    if chips.size > 1 and not config.training.shard_state and 10 * spread > memory["usable"]:
        lines.append(
            f"training.shard_state=True: moments and averages in slices, {spread / 1e9:.3g} GB "
            f"become {spread / chips.size / 1e9:.3g}"
        )
    if state < memory["usable"]:
        if share > config.training.accumulation:
            lines.append(
                f"training.accumulation={2 * config.training.accumulation} or more: a chip takes "
                f"its {share} images in parts, with the same gradients"
            )
        if not config.model.remat:
            lines.append("model.remat=True: the backward pass computes blocks again")
        if config.model.dtype != "bfloat16":
            lines.append("model.dtype=bfloat16: activations of half the size")
        if share > 1:
            lines.append(f"more chips than {chips.size}, with fewer images each")
    else:
        lines.append("a chip with more memory: the state alone does not fit")
    if chips.chip.platform == "cuda" and memory["needed"] <= 0.95 * memory["there"]:
        lines.append(
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment: JAX takes 75 % without it"
        )
    return lines
