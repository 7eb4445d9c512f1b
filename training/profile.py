"""`--profile`: a trace of some steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
from tqdm import tqdm

from runtime import devices, files
from runtime.buckets import Mirror
from training.state import TrainState

FOLDER = "profile"
STEPS = 10
CALLS = 2  # before the trace: the first one compiles


class Profile:
    """Traces `STEPS` steps, or the whole of a call that takes more, on the first process.

    Args:
      workdir: of the run; the trace is in `profile/` there.
      settle: waits for all steps.
    """

    def __init__(self, workdir: pathlib.Path, settle: Callable[[], None]) -> None:
        self.folder, self.settle = workdir / FOLDER, settle
        bucket_folder = files.in_bucket(self.folder)
        self.mirror = Mirror(bucket_folder) if bucket_folder else None
        self.calls = 0
        self.first: int | None = None  # the last step before the trace
        self.last: int | None = None

    def after_call(self, step: int, state: TrainState) -> None:
        """Begins or ends the trace when it is time; `step` steps are begun."""
        del state
        self.calls += 1
        if self.first is None and self.calls == CALLS and devices.is_primary():
            self.settle()
            folder = self.mirror.folder if self.mirror else self.folder
            jax.profiler.start_trace(str(folder), create_perfetto_trace=True)
            self.first = step
        elif self.first is not None and self.last is None and step >= self.first + STEPS:
            self._end(step)

    def close(self, step: int) -> None:
        """Ends a trace that is not ended yet, at the run's last step."""
        if self.first is not None and self.last is None:
            self._end(step)
        elif self.first is None and devices.is_primary():
            tqdm.write(f"--profile: no trace, which needs more than {CALLS} calls of several steps")

    def _end(self, step: int) -> None:
        self.settle()
        jax.profiler.stop_trace()
        if self.mirror:
            self.mirror.close()
        self.last = step
        assert self.first is not None
        tqdm.write(
            f"--profile: steps {self.first + 1} to {step} are in {self.folder}: open it with "
            "tensorboard --logdir (and its plug-in xprof), or the file perfetto_trace.json.gz in "
            "it at https://ui.perfetto.dev"
        )
