"""The records that a training run makes now and then: a list of actions and their frequencies."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import ml_collections
from tqdm import tqdm

import data
from runtime import devices, hosts
from runtime.checkpoints import Checkpoints
from runtime.ema_snapshots import Snapshots
from training.held_out import HeldOut, HeldOutLoss, save_loss_by_time
from training.layout import Layout
from training.metric_log import History, save_curves
from training.profile import Profile
from training.sample_grids import SampleGrids
from training.state import TrainState

Action = Callable[[int, TrainState], None]  # of the finished steps, and the state on all devices


def crossed(freq: int, before: int, after: int) -> bool:
    """True if a multiple of `freq` lies in (before, after]."""
    return freq > 0 and after // freq > before // freq


class Periodic(NamedTuple):
    """An action that is due whenever the steps cross a multiple of one of the numbers `every`.

    Attributes:
      at_end: it is due besides after the last step, and when the run is asked to stop.
      can_wait: a run that is asked to stop leaves it to the run that resumes.
    """

    every: tuple[int, ...]
    action: Action
    at_end: bool = False
    can_wait: bool = False

    def due(self, before: int, step: int, finished: bool, stopping: bool) -> bool:
        """True if the action is due after the steps from `before` to `step`."""
        if stopping and self.can_wait:
            return False
        at_end = self.at_end and (finished or stopping)
        return at_end or any(crossed(freq, before, step) for freq in self.every)


@dataclasses.dataclass
class Records:
    """Everything that a run writes, and its progress bar; the methods with a state are actions."""

    history: History
    held_out_loss: HeldOutLoss
    snapshots: Snapshots
    checkpoints: Checkpoints
    grids: SampleGrids | None
    batches: data.Batches
    config_json: str
    bar: tqdm
    layout: Layout
    profile: Profile | None = None
    held_out: HeldOut | None = None  # the newest

    def actions(self, training: ml_collections.ConfigDict) -> list[Periodic]:
        """The actions and their frequencies, in the order in which they follow a step."""
        averages = (training.ema_snapshot_freq,) if training.ema_profiles else ()
        checkpoints = (training.snapshot_freq, training.snapshot_freq_for_preemption)
        grids = (training.snapshot_freq, training.n_iters)
        traces = [Periodic((1,), self.profile.after_call)] if self.profile else []
        return [
            *traces,
            Periodic((1,), self.show_progress),
            Periodic((training.eval_freq,), self.evaluate, at_end=True),
            Periodic((training.log_freq,), self.log),
            Periodic(averages, self.keep_averages),
            Periodic(checkpoints, self.save_checkpoint, at_end=True),
            Periodic(grids, self.draw_samples, can_wait=True),
        ]

    def show_progress(self, step: int, state: TrainState) -> None:
        """Moves the progress bar."""
        self.bar.update(step - self.bar.n)
        if self.history.loss is not None:
            speed = self.history.speed.last
            images = {} if speed is None else {"img/s": f"{speed:.4g}"}
            test = {"test": f"{self.held_out.loss:.4g}"} if self.held_out else {}
            loss = f"{self.history.loss:.4g}"
            self.bar.set_postfix(loss=loss, **test, **images, refresh=False)

    def evaluate(self, step: int, state: TrainState) -> None:
        """Logs the loss of test images, and with it the metrics since the last line."""
        self.history.settle()
        self.held_out = self.held_out_loss(self.layout.whole(state.ema_params))
        by_time = {f"eval_{name}_by_time": v for name, v in self.held_out.by_time().items()}
        self.history.write(step, eval_loss=self.held_out.loss, **by_time)

    def log(self, step: int, state: TrainState) -> None:
        """Logs the metrics since the last line: none where `evaluate` has just written one."""
        self.history.write(step)

    def keep_averages(self, step: int, state: TrainState) -> None:
        """Stores the averages of `training.ema_profiles`, of which others can be combined."""
        self.history.settle()
        averages = self.layout.on_host(state.averages)
        if hosts.is_writer():
            self.snapshots.save(step, averages)

    def save_checkpoint(self, step: int, state: TrainState) -> None:
        """Begins to write a checkpoint, and goes on meanwhile."""
        self.history.settle()
        if self.history.log:
            self.history.log.secure()
        data_state = {**self.batches.get_state(), "step": step}
        metric = self.held_out.loss if self.held_out else None
        tree = vars(self.layout.on_host(state))
        self.checkpoints.save(step, tree, data_state, self.config_json, metric)

    def draw_samples(self, step: int, state: TrainState) -> None:
        """Draws a grid of samples of the averaged weights."""
        if self.grids:
            self.grids.draw(step, self.layout.whole(state.ema_params))

    def close(self, workdir: pathlib.Path, last: int) -> None:
        """Waits for the last checkpoint, at step `last`, then draws the curves."""
        if self.profile:
            self.profile.close(last)
        self.batches.close()
        self.checkpoints.wait()
        if self.history.log:
            self.history.log.close()
        if devices.is_primary():
            save_curves(workdir)
            if self.held_out:
                save_loss_by_time(workdir, self.held_out, "EMA weights")
