"""Training: score matching steps, scanned and pmapped, that resume to the bit."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

import data
from configs.names import dotted
from generation import score_field
from runtime import (
    cluster,
    devices,
    errors,
    experiment,
    files,
    groups,
    hosts,
    peak_memory,
    stop,
)
from runtime.checkpoints import Checkpoints
from runtime.ema_snapshots import Snapshots
from runtime.workdir import open_run, settled
from training import layout as layouts
from training import loggers, optimizers, sample_grids, utilisation
from training.held_out import HeldOutLoss
from training.metric_log import METRICS, History, MetricLog
from training.objective import objective_from_config
from training.profile import Profile
from training.records import Periodic, Records
from training.state import TrainState, state_from_config, state_from_host
from training.step import Step, check_batch, step_from_config


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path, profile: bool = False) -> None:
    """Trains to `training.n_iters` steps, from the newest checkpoint in `workdir` if there is one.

    A run that is there already is left as it is, but for what a stop may have left undone.

    Writes checkpoints/, config.json, metrics.jsonl, TensorBoard events, loss.png and
    loss_by_time.png there, with `training.ema_profiles` ema/, snapshots of those averages, and with
    `training.snapshot_sampling` samples_in_training/ and training_samples.png.

    Args:
      profile: some steps are traced, see `training.profile`.

    Raises:
      ValueError: a config that cannot be served, or another than the workdir's.
      FloatingPointError: the loss stopped being finite.
      OSError: a checkpoint could not be written.
      Stopped: a signal asked to stop; the step was finished and saved.
      Lack: a call of several steps needs more of the CPU's memory than is free.
    """
    options = config.training
    loggers.makers(options.loggers)  # refuses a name that is no logger's
    config = settled(config, workdir)
    parts = experiment.build(config)
    dataset = parts.dataset("train")
    objective = objective_from_config(config, parts, dataset)
    check_batch(options, jax.device_count())
    optimizer = optimizers.from_config(config)
    checkpoints = open_run(config, workdir)
    state, data_state, earlier_config = new_or_resumed(config, parts, optimizer, checkpoints)
    start, n_iters = int(state.step), options.n_iters
    if devices.is_primary() and earlier_config is not None:
        print(beginning(start, n_iters, workdir))

    layout = layouts.from_config(config, state)
    state = layout.place(state)
    step_fn = jax.pmap(
        step_from_config(config, objective, optimizer), axis_name=devices.AXIS, donate_argnums=0
    )
    log = opened_log(config, workdir, start)
    with (
        log or contextlib.nullcontext(),
        stop.handled(),
        stop.listening(),
        devices.progress(n_iters, "training", "step", start) as bar,
    ):
        at_peak = None
        if start < n_iters:
            call = state, shapes_of_batches(options, dataset)
            require_memory(step_fn, call, options, dataset)
            compile_together(step_fn, call)
            at_peak = utilisation.seconds_at_peak(step_fn, call, options.accumulation)
        batches = batches_from_config(config, dataset, data_state, earlier_config or {})
        if hosts.is_writer() and start <= n_iters:  # now that nothing is refused any more
            files.write_json(workdir / "config.json", config.to_dict())
        history = History(log, options.batch_size)
        history.speed.at_peak = at_peak
        records = Records(
            history=history,
            held_out_loss=HeldOutLoss(parts, objective, config.eval.batch_size, config.seed),
            snapshots=Snapshots(workdir / "ema"),
            checkpoints=checkpoints,
            grids=sample_grids.from_config(config, parts, workdir, start, log),
            batches=batches,
            config_json=json.dumps(config.to_dict()),
            bar=bar,
            layout=layout,
            profile=Profile(workdir, history.settle) if profile else None,
        )
        actions = records.actions(options)
        make_up(actions, start, state, options)
        last = take_steps(
            step_fn,
            *(state, batches, history, actions, start, n_iters, devices.asked_to_stop),
        )
        records.close(workdir, last)
        if last < n_iters:
            raise stop.Stopped(f"stopped at step {last} of {n_iters}; the same command goes on")
    try:
        score_field.draw(config, workdir)
    except (ValueError, OSError) as error:  # the run is trained, and its weights are kept
        if devices.is_primary():
            print(f"field.png is not drawn: {errors.one_line(error)}")


def opened_log(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, start: int
) -> MetricLog | None:
    """The log of a run that begins at a step, None on a process that writes none.

    Of hosts with disks of their own each has one; the loggers are the first one's.
    """
    hosts.bring(workdir / METRICS)
    if not hosts.is_writer():
        return None
    settings, names = dotted(config.to_dict()), config.training.loggers
    primary = devices.is_primary()
    return MetricLog(
        workdir, start, loggers.opened(names, workdir, start, settings) if primary else ()
    )


def beginning(start: int, n_iters: int, workdir: pathlib.Path) -> str:
    """The line that says where an earlier run goes on, if there is anything left to do."""
    if start >= n_iters:
        return (
            f"{workdir} is already at step {start}, and training.n_iters is {n_iters}: nothing to "
            "train; a larger one goes on"
        )
    return f"resuming at step {start}"


def take_steps(
    step_fn: Step,
    state: TrainState,
    batches: data.Batches,
    history: History,
    actions: Sequence[Periodic],
    start: int,
    n_iters: int,
    asked_to_stop: Callable[[int], bool],
) -> int:
    """Steps from `start` to `n_iters`, or until asked to stop; returns the last one.

    After each call come the actions that are due.

    `step_fn` takes several steps in one call, the last call perhaps fewer; `state` is given away.
    """
    step, call, stopping = start, 0, False
    while step < n_iters and not stopping:
        call += 1
        with history.speed.at_work():
            arrays = {name: rows[: n_iters - step] for name, rows in next(batches).items()}
            with stop.compiling(call == 1 and jax.process_count() == 1):
                state, metrics = step_fn(state, devices.lay_out(arrays))
            history.add(step, metrics)
        before, step = step, step + len(arrays["label"])
        finished = step >= n_iters
        stopping = not finished and asked_to_stop(call)
        for periodic in actions:
            if periodic.due(before, step, finished, stopping):
                periodic.action(step, state)
    return step


def make_up(
    actions: Sequence[Periodic], start: int, state: TrainState, options: ml_collections.ConfigDict
) -> None:
    """Does what an earlier run may have left undone at `start`, its last checkpoint, when it was
    stopped or killed."""
    before = max(start - options.n_jitted_steps, 0)
    for periodic in actions:
        if periodic.can_wait and periodic.due(before, start, start >= options.n_iters, False):
            periodic.action(start, state)


def new_or_resumed(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Any, dict[str, Any] | None]:
    """The state before replication, that of the data, and the config that it was saved with; the
    last two are None in a new run."""
    fresh = functools.partial(state_from_config, config, parts, optimizer)
    if not checkpoints.steps_anywhere():
        return groups.evaluate(fresh), None, None
    template = jax.eval_shape(fresh)
    key_data = jax.eval_shape(jax.random.key_data, template.key)
    restored = checkpoints.restore(vars(template.replace(key=key_data)))
    earlier_config = json.loads(restored.config_json)
    return state_from_host(restored.state), restored.data_state, earlier_config


def batches_from_config(
    config: ml_collections.ConfigDict,
    dataset: data.Dataset,
    data_state: Any,
    earlier_config: Mapping[str, Any],
) -> data.Batches:
    """This process's share of the batches, from where `data_state` left them, else the first.

    Args:
      earlier_config: that of the run which left them; {}: none.

    Raises:
      ValueError: fewer examples than a batch has, or others than the run began with.
    """
    check_examples(config.training, dataset)
    batches = data.Batches(
        dataset,
        config.training.batch_size,
        config.seed,
        num_steps=config.training.n_jitted_steps,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    if data_state is not None:
        earlier_place = dotted(earlier_config).get("data.data_dir", "")
        batches.set_state(data_state, config.data.data_dir, earlier_place)
    return batches


def check_examples(training: ml_collections.ConfigDict, dataset: data.Dataset) -> None:
    """Refuses batches that have more examples than there are.

    Raises:
      ValueError: these.
    """
    if len(dataset) < training.batch_size:
        raise ValueError(
            f"training.batch_size={training.batch_size} is more than the {len(dataset)} examples "
            f"of {dataset.name}/{dataset.split}; it must be {len(dataset)} or less"
        )


def shapes_of_batches(
    training: ml_collections.ConfigDict, dataset: data.Dataset
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the batches that one call takes, as `devices.lay_out` has them."""
    local, steps = jax.local_device_count(), training.n_jitted_steps
    share = training.batch_size // jax.device_count()
    images, labels = dataset.take(np.arange(1))
    return {
        name: jax.ShapeDtypeStruct((local, steps, share, *rows.shape[1:]), rows.dtype)
        for name, rows in {"image": images, "label": labels}.items()
    }


def compile_together(step_fn: Any, call: tuple[Any, ...]) -> None:
    """Compiles the step before processes on CPUs meet in it, see `cluster.await_others`."""
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        state, shapes = call
        batches = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        step_fn.lower(state, batches).compile()
        cluster.await_others()


def require_memory(
    step_fn: Step, call: tuple[Any, ...], training: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
    """Refuses a call of several steps that needs more of the CPU's memory than is free.

    What is hopeless is refused first, then fewer examples than a batch has, and then, once the
    program is compiled, the rest.

    Args:
      call: the arguments of a call, or their shapes.

    Raises:
      Lack: it needs more; the error says what to lower.
      ValueError: as `check_examples`.
    """
    what = f"training.batch_size={training.batch_size}"
    lower = "it, or raise training.accumulation"  # XLA's CPU compiler undoes model.remat
    enough = functools.partial(check_examples, training, dataset)
    peak_memory.require(step_fn, call, what, lower, enough)
