"""An order: what a browser asked for, read and checked, and the command line of the same result."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

import configs
import controllable
import sampling
from configs.names import dotted, lookup
from control.run import TASKS as CONTROL
from data import images
from demo import choices
from demo.fields import overrides_of, values_of
from demo.weights import FIRST_IMAGES, Weights
from runtime import devices

MOST_UPLOADED = 2**20  # bytes of a picture
MASK = "mask.png"  # the name of the mask's file, in the command
MEASURED = ("inpaint", "colorize")
EXACT = ("repaint", "replace", "infill")  # methods that meet the mask by a condition alone
ABSENT: dict[str, Any] = {  # the parts of an order, with what stands for one that is left out
    **dict.fromkeys(("task", "weights", "inputs", "mask")),
    **{"settings": {}, "classes": []},
}
Samples = Callable[[str], np.ndarray | None]  # of a finished job, by its number


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The images that a task begins with.

    Attributes:
      images: levels [k, H, W, C].
      row: the number of the first one in the test split, where they are the next ones of it; None
        where they are from elsewhere.
    """

    images: np.ndarray
    row: int | None


@dataclasses.dataclass(frozen=True)
class Order:
    """A task with all its settings.

    Attributes:
      task: a name in `choices.TASKS`.
      weights: that serve it.
      values: of the fields that act.
      inputs: where the task begins with images.
      mask: float32 [H, W, 1], 1 where known; of in-painting.
      classes: of the task "class".
    """

    task: str
    weights: Weights
    values: Mapping[str, Any]
    inputs: Inputs | None = None
    mask: np.ndarray | None = None
    classes: tuple[int, ...] = ()

    @functools.cached_property
    def overrides(self) -> dict[str, Any]:
        """The fields of the config that the order sets, by their dotted names."""
        fields = choices.TASKS[self.task].fields(self.weights)
        values = overrides_of(fields, self.values)
        if self.task == "sample":
            count = values["sampling.num_samples"]
            batch = min(count, values.get("sampling.batch_size", count))
            values["sampling.batch_size"] = devices.fitting_batch(batch)
            values["sampling.num_frames"] = choices.frames(self.weights)
        elif self.task == "likelihood":
            values |= {"eval.enable_loss": False, "eval.enable_sampling": False}
            values |= {"eval.enable_bpd": True, "eval.bpd_dataset": "test"}
            values |= {"eval.bpd_bound": False, "eval.bpd_num_repeats": 1}
            values["eval.batch_size"] = devices.fitting_batch(values["eval.bpd_num_images"])
        elif self.task in CONTROL:
            values["control.task"] = self.task
            rows = values["control.num_variants"]
            if self.task == "class":
                values["control.classes"] = self.classes
                rows *= len(self.classes) or choices.num_classes(self.weights)
            else:
                values["control.num_images"] = self._images_of_the_command()
            values["control.batch_size"] = devices.fitting_batch(rows)
            values |= {"control.mask": MASK} if self.mask is not None else {}
        return values

    def _images_of_the_command(self) -> int:
        """Test images, the first of the split, that a command has to begin with."""
        assert self.inputs is not None
        return (self.inputs.row or 0) + len(self.inputs.images)

    @functools.cached_property
    def config(self) -> ml_collections.ConfigDict:
        """The config of the command, checked."""
        config = self.weights.config.copy_and_resolve_references()
        config.update_from_flattened_dict(self.overrides)
        return config

    def check(self) -> None:
        """Refuses what the config's own rules refuse, before anything is compiled.

        Raises:
          ValueError: one line.
        """
        configs.check(self.config)
        if self.task in ("sample", "class"):
            sampling.from_config(self.config)
            choices.refuse_many(choices.evaluations(self.config))
        elif self.task in MEASURED:
            again = self.config.control.repeats if self.config.control.method == "repaint" else 1
            choices.refuse_many(self.config.sampling.num_steps * again)

    @property
    def mode(self) -> str:
        """The mode of the command."""
        return {"sample": "sample", "likelihood": "eval"}.get(self.task, "control")

    @property
    def command(self) -> str:
        """The command line that gives the same numbers; "" if there is none."""
        elsewhere = self.inputs is not None and self.inputs.row is None
        if elsewhere or self.task == "field":
            return ""
        before = dotted(self.weights.config.to_dict())
        words = [
            f"--config.{name}={_typed(value)}"
            for name, value in self.overrides.items()
            if before[name] != value
        ]
        given = list(self.weights.arguments)
        if not self.weights.in_run:  # each set of samples has a folder of its own
            digest = hashlib.sha256(json.dumps([*given, *words]).encode()).hexdigest()[:8]
            given.append(f"--workdir=runs/demo/{self.weights.name.replace('/', '_')}-{digest}")
        line = ["python", "main.py", f"--mode={self.mode}", *given, *words]
        return " ".join(map(shlex.quote, line))

    @property
    def remark(self) -> str:
        """What the command leaves out, or why there is none."""
        if self.task == "field":
            return "No command draws this: training on points ends with such a picture, field.png."
        if not self.command:
            return "No command draws this: it begins with test images, and these are none in a row."
        if self.mask is not None:
            return f"The command reads the mask from {MASK}: save it where the command is typed."
        return ""


def _typed(value: Any) -> str:
    """A value as absl reads it."""
    return repr(value) if isinstance(value, tuple) else str(value)


def read(body: Any, offered: Mapping[str, Weights], samples: Samples) -> Order:
    """The order in the body of a request.

    Args:
      body: parsed JSON of a stranger.
      offered: the weights by name.
      samples: what a finished job drew.

    Raises:
      ValueError: one line that says what is wrong and what would be valid.
    """
    weights = weights_of(body, offered)
    for name in body:
        lookup(ABSENT, str(name), "part of an order")
    if "task" not in body:
        raise ValueError(f"the order names no task; valid: {', '.join(choices.TASKS)}")
    task_name = str(body["task"])
    task = lookup(choices.TASKS, task_name, "task")
    if reason := task.refusal(weights):
        raise ValueError(reason)
    body = ABSENT | body
    values = values_of(task.fields(weights), body["settings"])
    inputs = None
    if task_name in (*MEASURED, "interpolate", "likelihood"):
        inputs = _inputs(body["inputs"], task_name, values, weights, samples)
    if task_name == "likelihood" and inputs is not None:
        values["eval.bpd_num_images"] = len(inputs.images)
    mask = _mask(body["mask"], weights) if task_name == "inpaint" else None
    classes: tuple[int, ...] = ()
    if task_name == "class":
        classes = _classes(body["classes"], values["control.num_variants"], weights)
    order = Order(task_name, weights, values, inputs, mask, classes)
    order.check()
    return order


def weights_of(body: Any, offered: Mapping[str, Weights]) -> Weights:
    """The weights that the body of a request names.

    Raises:
      ValueError: it is no object, names none, or they are not offered.
    """
    if not isinstance(body, dict):
        raise ValueError("what is asked must be an object with its parts by name")
    if "weights" not in body:
        raise ValueError(f"what is asked names no weights; valid: {', '.join(offered)}")
    weights: Weights = lookup(dict(offered), str(body["weights"]), "weights")
    return weights


def _inputs(
    given: Any, task: str, values: Mapping[str, Any], weights: Weights, samples: Samples
) -> Inputs:
    """The images that a task begins with: one, for interpolation two, for likelihoods several.

    Each is {"from": "test", "index": 3}, {"from": "job", "job": "7", "index": 3} or
    {"from": "upload", "data": base64 of a file of a picture}. Likelihoods take none for the first
    test images.
    """
    count = {"interpolate": 2, "likelihood": 0}.get(task, 1)
    if task == "likelihood" and not given:
        return Inputs(weights.test_examples[: values["eval.bpd_num_images"]], 0)
    if not isinstance(given, list) or (count and len(given) != count) or len(given) > 64:
        what = f"{count} images" if count > 1 else "one image" if count else "up to 64 images"
        raise ValueError(f"{task} begins with {what}")
    found = [_input(entry, weights, samples) for entry in given]
    pictures = np.stack([image for image, _ in found])
    rows = [row for _, row in found]
    first = rows[0]
    in_a_row = None not in rows and rows == list(range(first or 0, (first or 0) + len(rows)))
    if task == "likelihood" and first != 0:
        in_a_row = False
    return Inputs(pictures, first if in_a_row else None)


def _input(given: Any, weights: Weights, samples: Samples) -> tuple[np.ndarray, int | None]:
    """An image in levels, and its number if it is a test image."""
    origin = given.get("from") if isinstance(given, dict) else None
    if origin == "upload":
        return uploaded(given.get("data"), weights), None
    if origin == "test":
        there = weights.test_examples
    elif origin == "job":
        drawn = samples(str(given.get("job")))
        if drawn is None or drawn.shape[1:] != weights.parts.image_shape:
            raise ValueError("the samples of that job are not here any more; draw them again")
        there = drawn
    else:
        raise ValueError('an image is from "test", "job" or "upload"')
    index = given.get("index")
    whole = isinstance(index, int) and not isinstance(index, bool)
    if not whole or not 0 <= index < len(there):
        raise ValueError(f"the number of an image is {index!r:.60}; valid: 0 to {len(there) - 1}")
    return there[index], index if origin == "test" and index < FIRST_IMAGES else None


def uploaded(data: Any, weights: Weights) -> np.ndarray:
    """The picture of a stranger as an image of these weights, in levels [H, W, C].

    The middle square is taken, and resized; `data.images` decides what is decoded.

    Raises:
      ValueError: no base64, too many bytes, or no picture.
    """
    if not isinstance(data, str) or len(data) > 4 * MOST_UPLOADED // 3 + 4:
        raise ValueError(f"a picture has up to {MOST_UPLOADED >> 20} MiB, in base64")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("a picture has to be in base64") from error
    file = images.Content("the picture", content)
    levels = weights.parts.levels
    if not levels:
        raise ValueError(f"{weights.name} draws points of the plane, and takes no picture")
    image = images.read_image(file, weights.parts.image_shape, lambda kind, line: None)
    if levels == 256:
        return image
    return np.rint(image / 255.0 * (levels - 1)).astype(np.uint8)


def _mask(given: Any, weights: Weights) -> np.ndarray:
    """A mask [H, W, 1] from a text of 0 (unknown) and 1 (known), row by row."""
    height, width, _ = weights.parts.image_shape
    if not isinstance(given, str) or len(given) != height * width or set(given) - {"0", "1"}:
        raise ValueError(f"a mask is {height} x {width} times 0 (unknown) or 1 (known)")
    mask = np.array([c == "1" for c in given], np.float32).reshape(height, width, 1)
    if mask.all():
        raise ValueError("the mask hides nothing: paint over what is to be drawn anew")
    controllable.check_mask(mask, (height, width, 1))
    return mask


def _classes(given: Any, of_each: int, weights: Weights) -> tuple[int, ...]:
    """The classes that are asked for; () is all."""
    most = choices.num_classes(weights)
    whole = isinstance(given, list) and all(
        isinstance(y, int) and not isinstance(y, bool) and 0 <= y < most for y in given
    )
    if not whole:
        raise ValueError(f"classes are whole numbers from 0 to {most - 1}")
    count = (len(given) or most) * of_each
    if count > choices.MOST_IMAGES:
        raise ValueError(
            f"these are {count} images; the demo draws up to {choices.MOST_IMAGES} at a time: "
            "choose a class, or fewer of each"
        )
    return tuple(given)
