"""Training: score matching steps, scanned and pmapped, that resume to the bit."""

from __future__ import annotations

import functools
import json
import pathlib
import signal
from typing import Any

import jax
import ml_collections
from jax.experimental import multihost_utils

import data
from generation import score_field
from runtime import devices, ema, experiment, files
from runtime.ema_snapshots import Snapshots
from runtime.workdir import open_run
from training import metric_log, optimizers
from training.held_out import HeldOutLoss, save_loss_by_time
from training.objective import objective_from_config
from training.state import new_state, state_from_host, state_on_host
from training.step import step_from_config


class StopRequest:
    """Notes SIGTERM (or a pod's preemption notice), so that the loop can save and leave.

    A context: at its end the signal goes back to whoever had it.
    """

    def __enter__(self) -> StopRequest:
        self.received = False
        self.before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _receive(self, signum: int, frame: Any) -> None:
        del signum, frame
        self.received = True

    def __call__(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.received


def crossed(freq: int, before: int, after: int) -> bool:
    """Whether a multiple of `freq` lies in (before, after]."""
    return freq > 0 and after // freq > before // freq


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to `training.n_iters` steps, from the newest checkpoint in `workdir` if there is one.

    Writes checkpoints/, config.json, metrics.jsonl, TensorBoard events, loss.png and
    loss_by_time.png there, and with `training.ema_profiles` ema/, snapshots of those averages.

    Raises:
      ValueError: a config that cannot be served, or another than the workdir's.
      FloatingPointError: the loss stopped being finite.
      OSError: a checkpoint could not be written.
    """
    options = config.training
    parts, dataset = experiment.build(config), data.from_config(config, "train")
    objective = objective_from_config(config, parts, dataset)
    share = devices.per_device(options.batch_size, "training.batch_size")
    if share % options.accumulation:
        raise ValueError(
            f"training.accumulation={options.accumulation} does not divide the {share} images of a "
            f"device (training.batch_size={options.batch_size} on {jax.device_count()} devices)"
        )
    optimizer, averaging = optimizers.from_config(config), ema.from_config(config)
    checkpoints = open_run(config, workdir)

    fresh = functools.partial(
        new_state, parts.module, optimizer, config.seed, parts.image_shape, averaging.further
    )
    if checkpoints.steps():
        template = jax.eval_shape(fresh)
        key_data = jax.eval_shape(jax.random.key_data, template.key)
        restored = checkpoints.restore(vars(template.replace(key=key_data)))
        state, data_state = state_from_host(restored.state), restored.data_state
        if devices.is_primary():
            print(f"resuming at step {restored.step}")
    else:
        state, data_state = jax.jit(fresh)(), None
    start = int(state.step)
    config_json = json.dumps(config.to_dict())
    if devices.is_primary():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / "config.json", config.to_dict())

    batches = data.Batches(
        dataset,
        options.batch_size,
        config.seed,
        num_steps=options.n_jitted_steps,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    if data_state is not None:
        batches.set_state(data_state)
    step_fn = jax.pmap(
        step_from_config(config, objective, optimizer),
        axis_name=devices.AXIS,
        donate_argnums=0,
    )
    held_out, held = HeldOutLoss(config, parts, objective), None
    snapshots = Snapshots(workdir / "ema")
    state = devices.replicate(state)
    history = metric_log.History(
        metric_log.MetricLog(workdir, start) if devices.is_primary() else None
    )
    step = start
    with (
        StopRequest() as stop,
        devices.progress(options.n_iters, "training", "step", initial=start) as bar,
    ):
        while step < options.n_iters:
            drawn = {name: a[: options.n_iters - step] for name, a in next(batches).items()}
            count = len(drawn["label"])
            state, metrics = step_fn(state, devices.lay_out(drawn))
            history.add(step, metrics)
            before, step = step, step + count
            bar.update(count)
            if history.loss is not None:
                bar.set_postfix(loss=f"{history.loss:.4g}", refresh=False)
            last = step >= options.n_iters or stop(step)
            if last or crossed(options.eval_freq, before, step):
                history.settle()
                held = held_out(state.ema_params)
                by_time = {f"eval_{name}_by_time": v for name, v in held.by_time().items()}
                history.write(step, eval_loss=held.loss, **by_time)
            elif crossed(options.log_freq, before, step):
                history.write(step)
            if options.ema_profiles and crossed(options.ema_snapshot_freq, before, step):
                history.settle()
                if devices.is_primary():
                    snapshots.save(step, devices.fetch(state.averages))
            if (
                last
                or crossed(options.snapshot_freq, before, step)
                or crossed(options.snapshot_freq_for_preemption, before, step)
            ):
                history.settle()
                data_state = {**batches.get_state(), "step": step}
                metric = held.loss if held else None
                checkpoints.save(step, state_on_host(state), data_state, config_json, metric)
            if last:
                break
    batches.close()
    checkpoints.wait()
    if history.log:
        history.log.close()
        metric_log.save_curves(workdir)
        if held:
            save_loss_by_time(workdir, held, "EMA weights")
    score_field.draw(config, workdir)
