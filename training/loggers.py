"""Where the metrics of a run go beside metrics.jsonl: a table of loggers by name.

A logger is a class with the methods of `Logger`, made from (workdir, start, config), and a line of
`LOGGERS`. Those of other people's services are optional, read their settings from the environment
(`WANDB_PROJECT`, `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`, ...), and go on with the run that
they began for this folder.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from configs.names import lookup
from runtime import files
from runtime.buckets import Mirror

RUN = "run_id.txt"  # has the name of the service's run
PROJECT = "score-sde"  # of the services, where the environment names none
COPY_EVERY = 300.0  # seconds between two copies of the events to a bucket


class Logger(Protocol):
    """Takes the metrics of a run."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the values at one step, of which none is a list."""

    def write_image(self, step: int, name: str, page: np.ndarray) -> None:
        """Takes a picture, uint8 [H, W] or [H, W, 3]."""

    def flush(self) -> None:
        """Writes out what is still in memory."""

    def close(self) -> None:
        """Writes out everything; nothing more comes."""


class TensorBoard:
    """Events in `<workdir>/tensorboard`, of which a resumed run disowns those after `start`.

    Those of a run in a bucket are on this machine first, and copied there every five minutes.
    """

    def __init__(self, workdir: pathlib.Path, start: int, config: Mapping[str, Any]):
        import tensorboardX

        del config
        folder = workdir / "tensorboard"
        bucket_folder = files.in_bucket(folder)
        self.mirror = Mirror(bucket_folder) if bucket_folder else None
        self.events = tensorboardX.SummaryWriter(
            str(self.mirror.folder if self.mirror else folder),
            purge_step=start + 1,
            flush_secs=10,
            filename_suffix=f".{start}",  # names have whole seconds only
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)
        if self.mirror and self.mirror.due(COPY_EVERY):
            self.flush()

    def write_image(self, step: int, name: str, page: np.ndarray) -> None:
        layout = "HWC" if page.ndim == 3 else "HW"
        self.events.add_image(name, page, step, dataformats=layout)

    def flush(self) -> None:
        self.events.flush()
        if self.mirror:
            self.mirror.upload()

    def close(self) -> None:
        self.events.close()
        if self.mirror:
            self.mirror.close()


class WeightsAndBiases:
    """A run of Weights & Biases (extra `wandb`), its files in `<workdir>/wandb`.

    The step is a metric of its own, which all others are drawn over: a resumed run may take steps
    again that were logged.
    """

    def __init__(self, workdir: pathlib.Path, start: int, config: Mapping[str, Any]):
        wandb = library("wandb", "wandb")
        path = workdir / "wandb" / RUN
        self.images = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", workdir.resolve().name),
            id=known(path, start),
            resume="allow",
            dir=tempfile.mkdtemp(prefix="score-sde-") if files.in_bucket(workdir) else str(workdir),
            config=dict(config),
        )
        files.write_text(path, self.run.id)
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log({"step": step, **scalars})

    def write_image(self, step: int, name: str, page: np.ndarray) -> None:
        self.run.log({"step": step, name: self.images(page)})

    def flush(self) -> None:
        """It writes by itself."""

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of MLflow (extra `mlflow`), at `MLFLOW_TRACKING_URI` or in `<workdir>/mlflow`."""

    def __init__(self, workdir: pathlib.Path, start: int, config: Mapping[str, Any]):
        tracking = library("mlflow.tracking", "mlflow")
        folder = (workdir / "mlflow").resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if files.in_bucket(workdir) and not uri:
            raise ValueError(
                f"training.loggers: mlflow has no database in a bucket, and --workdir={workdir}: "
                "MLFLOW_TRACKING_URI says where it is"
            )
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = None if uri else (folder / "artifacts").as_uri()
        uri = uri or f"sqlite:///{folder / 'runs.db'}"
        self.client = tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)

        self.run = known(folder / RUN, start)
        if self.run is None:
            found = self.client.get_experiment_by_name(name)
            experiment = (
                found.experiment_id if found else self.client.create_experiment(name, artifacts)
            )
            run = self.client.create_run(experiment, run_name=workdir.resolve().name)
            self.run = str(run.info.run_id)
            for field, value in config.items():
                self.client.log_param(self.run, field, str(value)[:500])
        files.write_text(folder / RUN, self.run)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.client.log_metric(self.run, name, value, step=step)

    def write_image(self, step: int, name: str, page: np.ndarray) -> None:
        self.client.log_image(self.run, page, artifact_file=f"{name}/step_{step:07}.png")

    def flush(self) -> None:
        """It writes at once."""

    def close(self) -> None:
        self.client.set_terminated(self.run)


Maker = Callable[[pathlib.Path, int, Mapping[str, Any]], Logger]
LOGGERS: Mapping[str, Maker] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
}


def opened(
    names: Sequence[str], workdir: pathlib.Path, start: int, config: Mapping[str, Any]
) -> list[Logger]:
    """The loggers of `training.loggers`.

    Args:
      start: the step that the run resumes from, 0 for a new run.
      config: the run's, by dotted names.

    Raises:
      ValueError: no such logger, or its library is not installed; a service that refuses.
    """
    return [make(workdir, start, config) for make in makers(names)]


def makers(names: Sequence[str]) -> list[Maker]:
    """The entries of LOGGERS of these names, each once.

    Raises:
      ValueError: no such logger.
    """
    return [lookup(LOGGERS, name, "training.loggers") for name in dict.fromkeys(names)]


def library(name: str, extra: str) -> Any:
    """A module of an optional library.

    Raises:
      ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"training.loggers: {extra} is not installed: pip install -e '.[{extra}]'"
        ) from error


def known(path: pathlib.Path, start: int) -> str | None:
    """The name of the service's run that a run which resumes goes on with; None: there is none."""
    return path.read_text(encoding="utf-8").strip() if start and path.is_file() else None
