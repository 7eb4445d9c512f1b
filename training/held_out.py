"""The loss of test images that training never sees."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import data
from runtime import devices, experiment, figures, files
from training.objective import Objective


class HeldOut(NamedTuple):
    """The loss of test images.

    Attributes:
      loss: its mean.
      per_image: [n] each: "t", "log_snr", "loss" and the other parts of the loss.
    """

    loss: float
    per_image: dict[str, np.ndarray]

    def by_time(self, groups: int = 10) -> dict[str, list[float]]:
        """Means over groups of equally many images that have neighbouring times, in their order."""
        t = self.per_image["t"]
        order = np.array_split(np.argsort(t, stable=True), min(groups, len(t)))
        return {
            name: [float(f"{values[rows].mean():.5g}") for rows in order]
            for name, values in self.per_image.items()
        }


class HeldOutLoss:
    """The loss of the EMA weights on fixed test images at fixed times with fixed noise.

    It makes the curves, and chooses the best checkpoint.

    Args:
      dataset: the test images, which `parts` open if they are not given.
    """

    def __init__(
        self,
        parts: experiment.Parts,
        objective: Objective,
        batch_size: int,
        seed: int,
        dataset: data.Dataset | None = None,
    ) -> None:
        dataset = dataset or parts.dataset("test")
        count = min(len(dataset), batch_size)
        self.images, self.classes = dataset.take(np.arange(count))
        key = jax.random.key(seed)

        def losses(params: Any, indices: jax.Array, examples: Any) -> dict[str, jax.Array]:
            images, classes = examples
            per_image, terms = objective(
                params, images, classes, key, indices, count,
                train=False, flip=False, axis_name=devices.AXIS,
            )  # fmt: skip
            t = jnp.maximum(terms["t"], parts.sde.training_eps)  # at 0 there is no noise
            return {**terms, "loss": per_image, "log_snr": parts.sde.log_snr(t)}

        batch = devices.fitting_batch(count)
        self.map = devices.ImageMap(losses, batch, "eval.batch_size")

    def __call__(self, ema_params: Any, description: str = "") -> HeldOut:
        """The losses of averaged weights; a progress bar is shown if it has a `description`."""
        indices = np.arange(len(self.images))
        examples = (self.images, self.classes)
        batches = [batch for _, batch in self.map(ema_params, indices, examples, description)]
        per_image = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
        return HeldOut(float(np.mean(per_image["loss"])), per_image)


def save_loss_by_time(folder: pathlib.Path, held_out: HeldOut, weights: str) -> None:
    """Draws loss_by_time.png: losses of test images against t, and against the SNR the errors of
    the noise, the tangents of a flow map, or the share of images that a classifier knows."""
    values, means = held_out.per_image, held_out.by_time()

    def panel(x: str, xlabel: str, y: str, ylabel: str) -> figures.Panel:
        return figures.Panel(xlabel, ylabel, (values[x], values[y]), (means[x], means[y]))

    labels = {
        "noise_mse": "squared error of the noise",
        "tangent": "squared tangent",
        "velocity_mse": "squared error of the mean velocity",
        "accuracy": "accuracy",
    }
    name, label = next((name, label) for name, label in labels.items() if name in values)
    panels = [
        panel("t", "time t", "loss", "loss"),
        panel("log_snr", "log-SNR, 2 log(alpha / sigma)", name, label),
    ]
    count = len(values["t"])
    title = f"{count} test images, {weights}: each, and means of groups with neighbouring times"
    with files.whole(folder / "loss_by_time.png") as path:
        figures.plot_panels(path, panels, title)
