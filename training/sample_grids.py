"""Samples in the course of training: a picture at every snapshot, and a strip of them all."""

from __future__ import annotations

import io
import math
import pathlib
import zipfile
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from PIL import Image

import models
import sampling
from configs.shapes import example_shape
from generation import examples
from generation.generator import Generator
from runtime import devices, errors, experiment, files
from runtime.arrays import fingerprint, read_archive
from training.metric_log import MetricLog

FOLDER = "samples_in_training"
STRIP = "training_samples.png"
ROWS = 10  # of the strip
PIXELS = 2048**2  # of all images of a grid


# What no picture is worth a training for: a sampler, a disk, a device, an archive that was damaged.
DRAWING_ERRORS = (
    *(OSError, ValueError, jax.errors.JaxRuntimeError),
    *(zipfile.BadZipFile, EOFError, KeyError),
)


class SampleGrids:
    """Grids of samples of the averaged weights, `samples_in_training/step_0050000.png`.

    Image i of every grid is the sample of number i, a function of (weights, `sampling.seed`, i)
    alone, by the config's sampler: grids of several steps differ by their weights only, and those
    of a resumed run are those of one that was never interrupted. Beside each grid,
    `step_0050000.npz` holds its first samples as the data set stores them. They make the strip
    `training_samples.png`, a row for each of at most `ROWS` steps, drawn anew after each grid.

    Training waits for a grid, whose cost is that of its samples, and once a compilation. They are
    `sampling.num_samples`, at most 64 images. An evaluation of the network costs about a third of a
    training step of as many images. So predictor and corrector on CIFAR-10, 64 images by 2000
    evaluations, cost some 330 training steps of 128 images, every 50000 steps: 0.7 % of training.

    No picture ends a training: where one cannot be drawn or written, a line says so.

    Args:
      workdir: the folder of the run.
      start: the step that the run resumes from; grids of later ones are dropped, as are metrics.
      log: the grids go to TensorBoard too; None on all processes but the first.

    Raises:
      ValueError: see `Generator`.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        parts: experiment.Parts,
        workdir: pathlib.Path,
        start: int,
        log: MetricLog | None,
    ) -> None:
        self.kind, self.image_shape = examples.kind_of(parts.pixels), parts.image_shape
        self.num_samples = _num_samples(config, self.kind)
        frameless = _plain(config, self.num_samples)
        sampler = sampling.from_config(frameless, devices.AXIS)
        self.generator = Generator(parts, sampler, frameless.sampling)
        self.workdir, self.folder, self.log = workdir, workdir / FOLDER, log
        if devices.is_primary():
            later = [*self._stored(".png").items(), *self._stored(".npz").items()]
            for path in [path for step, path in later if step > start]:
                path.unlink()

    def draw(self, step: int, ema_params: Any) -> None:
        """Draws, writes and logs the grid of these weights, a copy on every device, and the strip.

        A grid of these weights that is there stays as it is.
        """
        sha256 = fingerprint(devices.fetch(ema_params))
        if devices.of_primary(self._holds(step, sha256)):
            return
        try:
            samples = self._samples(step, ema_params)
            if devices.is_primary() and len(samples):
                self._write(step, samples, sha256)
        except DRAWING_ERRORS as error:
            print(f"no samples of step {step} are shown: {errors.one_line(error, limit=300)}")

    def _samples(self, step: int, ema_params: Any) -> np.ndarray:
        """The samples of these weights, without points that are not finite: they have no place."""
        batches = [
            batch
            for _, batch in self.generator.unchecked(ema_params, np.arange(self.num_samples), "")
        ]
        samples, finite, ok = (
            np.concatenate([batch[name] for batch in batches]) for name in ("image", "finite", "ok")
        )
        for failed, why in (
            (~finite, "are not finite; is training stable?"),
            (finite & ~ok, "were given up by their solver; loosen sampling.rtol and sampling.atol"),
        ):
            if failed.any() and devices.is_primary():
                print(f"{failed.sum()} of {len(samples)} samples of step {step} {why}")
        return samples if samples.dtype == np.uint8 else samples[finite]

    def _holds(self, step: int, sha256: str) -> bool:
        """True if the grid of the step is there, of the weights with this hash."""
        if not self._path(step, ".png").exists() or not self._path(step, ".npz").exists():
            return False
        try:
            return str(read_archive(self._path(step, ".npz")).get("weights_sha256")) == sha256
        except (ValueError, OSError):
            return False

    def _write(self, step: int, samples: np.ndarray, sha256: str) -> None:
        """Writes the grid last: with it the step is done."""
        with files.whole(self._path(step, ".npz")) as path:
            np.savez(path, image=samples[: self.kind.in_strip], weights_sha256=np.array(sha256))
        self._write_strip()
        self.kind.save_pictures(self.folder, "newest", {"image": samples})
        newest = self.folder / "newest.png"
        if self.log:
            page = np.asarray(Image.open(io.BytesIO(newest.read_bytes())).convert("RGB"))
            self.log.write_images(step, "samples", page[None], scale=1, gap=0)
            self.log.flush()
        newest.replace(self._path(step, ".png"))

    def _write_strip(self) -> None:
        """Draws the strip of the steps whose samples can be read."""
        paths, stored = self._stored(".npz"), {}
        for step in sorted(paths):
            try:
                stored[step] = self._read(paths[step])
            except (ValueError, OSError) as error:
                logging.warning("%s; the strip is drawn without it", errors.one_line(error, 300))
        steps = list(stored)
        rows = np.unique(np.linspace(0, len(steps) - 1, ROWS).round().astype(int))
        samples = {steps[row]: stored[steps[row]] for row in rows}
        with files.whole(self.workdir / STRIP) as temporary:
            Image.fromarray(self.kind.strip(samples)).save(temporary, optimize=True)

    def _read(self, path: pathlib.Path) -> np.ndarray:
        """The first samples of a step.

        Raises:
          ValueError: the file is damaged; names it.
        """
        kinds, shape = self.kind.row(self.image_shape)
        image = read_archive(path).get("image", np.zeros(0))
        if image.dtype.kind not in kinds or image.shape[1:] != shape or not len(image):
            raise ValueError(f"{path} is damaged (it has no samples of this run)")
        return image

    def _stored(self, suffix: str) -> dict[int, pathlib.Path]:
        """The files of grids, by their steps."""
        steps = {path: path.stem.removeprefix("step_") for path in self.folder.glob(f"*{suffix}")}
        return {int(step): path for path, step in steps.items() if step.isdecimal()}

    def _path(self, step: int, suffix: str = "") -> pathlib.Path:
        return self.folder / f"step_{step:07d}{suffix}"


def newest_grid(workdir: pathlib.Path) -> pathlib.Path | None:
    """The grid of the newest step in a run's folder; None: there is none."""
    return max((workdir / FOLDER).glob("step_*[0-9].png"), default=None)


def from_config(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    workdir: pathlib.Path,
    start: int,
    log: MetricLog | None,
) -> SampleGrids | None:
    """The grids that `training.snapshot_sampling` asks for, if this run can draw samples.

    A guide has no score.
    """
    if not config.training.snapshot_sampling or not models.has_samples(config):
        return None
    try:
        return SampleGrids(config, parts, workdir, start, log)
    except (ValueError, OSError) as error:
        if devices.is_primary():
            print(f"no samples are drawn in training: {errors.one_line(error)}")
        return None


def _num_samples(config: ml_collections.ConfigDict, kind: examples.Kind) -> int:
    """The samples of a grid: `sampling.num_samples`, or as many as its picture can show."""
    pixels = math.prod(example_shape(config.data)[:2])
    return min(config.sampling.num_samples, kind.in_picture, max(1, PIXELS // pixels))


def _plain(config: ml_collections.ConfigDict, num_samples: int) -> ml_collections.ConfigDict:
    """The config with batches of at most `num_samples`, no states before the last, no guide."""
    config = config.copy_and_resolve_references()
    config.sampling.num_frames, config.sampling.guide = 0, ""
    config.sampling.batch_size = devices.fitting_batch(min(num_samples, config.sampling.batch_size))
    return config
