"""The work of an order: by the functions of `--mode=sample`, `control` and `eval`, nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import data
import sampling
from control import results
from control import run as control_run
from control.prior import Prior
from control.problem import Condition, Problem
from data import transforms
from demo import choices
from demo.orders import EXACT, MASK, Order
from demo.programs import Programs
from demo.queue import Tell
from demo.weights import Weights
from diffusion import times
from evaluation.likelihoods import likelihood_of_images, standard_error
from generation import point_figures, score_field
from generation.generator import Generator
from runtime import devices, errors, progress

Words = dict[str, Any]  # of JSON


class Compilation:
    """The longest compilation of a job, before which its program was made, and then did its work.

    Attributes:
      seconds: how long XLA compiled.
      ended: when, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.seconds = self.ended = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def begin(self) -> None:
        """Forgets those of other jobs."""
        self.seconds = self.ended = 0.0

    def until_work(self, began: float) -> float:
        """Seconds from `began` until a program was there; 0 where it was before."""
        return self.ended - began if self.seconds > NOTICED else 0.0

    def _note(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == progress.COMPILED and duration_secs > self.seconds:
            self.seconds, self.ended = duration_secs, time.monotonic()


NOTICED = 0.05  # seconds; what is compiled faster is no program of a job
COMPILATION = Compilation()


class Result(NamedTuple):
    """The result of a job.

    Attributes:
      words: what the browser is sent.
      samples: the images that were drawn, in levels, or points; None where there are none.
      numbers: further numbers, for whoever compares them with those of the command.
    """

    words: Words
    samples: np.ndarray | None
    numbers: dict[str, np.ndarray]


def work(order: Order, programs: Programs, tell: Tell = lambda part: None) -> Result:
    """Does the work of an order, and tells of samples as they are drawn.

    Raises:
      ValueError: an image that could not be drawn; what the mode of the command refuses.
    """
    began = time.monotonic()
    COMPILATION.begin()
    if order.task == "sample":
        result = sample(order, programs, tell)
    else:
        others = {"likelihood": likelihoods, "field": field}
        result = others.get(order.task, control)(order, programs)
    compiled = COMPILATION.until_work(began)
    words = {
        **result.words,
        "task": order.task,
        "weights": order.weights.name,
        "seconds": time.monotonic() - began - compiled,
        "compiled": compiled,
        "command": order.command,
        "remark": order.remark,
        "mask": order.mask is not None,
    }
    return result._replace(words=words)


def pictures(images: np.ndarray, levels: int) -> Words:
    """Images in levels [..., H, W, C] as bytes that a browser draws."""
    shown = np.asarray(transforms.to_display(images, levels))
    return {"shape": shown.shape, "data": base64.b64encode(shown.tobytes()).decode()}


def scatter(points: np.ndarray, half: float) -> Words:
    """Points [n, 2] of [-half, half]^2 as whole numbers of 16 bits."""
    scaled = np.clip(np.rint(points / half * 32767.0), -32767, 32767).astype("<i2")
    return {"half": half, "data": base64.b64encode(scaled.tobytes()).decode()}


def extent(weights: Weights) -> float:
    """Half the side of the square that shows the data."""
    return point_figures.half_width(weights.test_examples[:, 0, 0, :2])


def sample(order: Order, programs: Programs, tell: Tell) -> Result:
    """Samples; of each batch, the states on its way are told when it is drawn."""
    weights, config = order.weights, order.config
    parts = weights.parts
    options = config.sampling.to_dict() | {"seed": 0, "num_samples": 0}
    generator = programs.get(
        ("sample", weights.name, repr(options)),
        lambda: Generator(parts, sampling.from_config(config, devices.AXIS), config.sampling),
    )
    numbers = np.arange(config.sampling.num_samples)
    batches = []
    for indices, batch in generator(weights.trained.params, numbers, "", config.sampling.seed):
        states = batch.pop("frames").swapaxes(0, 1)
        tell({"first": int(indices[0]), "count": len(numbers), **_states(weights, states)})
        batches.append(batch)
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    words: Words = {"nfe": float(whole["nfe"].mean()), "count": len(numbers)}
    if "label" in whole:
        words["labels"] = whole["label"].tolist()
    return Result(words, whole["image"], {"nfe": whole["nfe"]})


def _states(weights: Weights, states: np.ndarray) -> Words:
    """The states [K, b, ...] of samples; points each in a square that holds nearly all of them."""
    if weights.parts.levels:
        return {"frames": pictures(states, weights.parts.levels)}
    half = extent(weights)
    planes = [state[:, 0, 0, :2] for state in states]
    spread = [1.05 * float(np.quantile(np.abs(plane), 0.995)) for plane in planes]
    pairs = zip(planes, spread, strict=True)
    return {"scatters": [scatter(plane, max(half, width)) for plane, width in pairs]}


def control(order: Order, programs: Programs) -> Result:
    """Images under a condition: of a class, filled in, coloured, or between two others."""
    weights = order.weights
    with tempfile.TemporaryDirectory(prefix="score-sde-demo-") as folder:
        config = order.config.copy_and_resolve_references()
        parts = weights.parts
        if order.inputs is not None:
            split = _split(weights, order.inputs.images)
            parts = dataclasses.replace(parts, dataset=lambda name: split)
            config.control.num_images = len(order.inputs.images)
        if order.mask is not None:
            config.control.mask = str(pathlib.Path(folder, MASK))
            pathlib.Path(config.control.mask).write_bytes(mask_file(order.mask))
        problem, prior, options = control_run.pose(config, parts)
    problem = dataclasses.replace(problem, error=None)
    depends = options.to_dict() | {"seed": 0, "num_images": 0, "mask": ""}
    mask = b"" if order.mask is None or options.method in EXACT else order.mask.tobytes()
    key = ("control", weights.name, repr(depends), repr(config.sampling.to_dict()), mask)
    count, variants = len(next(iter(problem.conditions.values()))), len(problem.variants)
    run = programs.get(
        key,
        lambda: devices.ImageMap(
            _image_function(problem, prior),
            devices.fitting_batch(min(options.batch_size, count * variants)),
            "control.batch_size",
        ),
    )
    rows = np.repeat(np.arange(count), variants)
    conditions = {name: values[rows] for name, values in problem.conditions.items()}
    conditions["variant"] = np.tile(np.arange(variants), count)
    seeds = np.full(len(rows), options.seed, np.uint32)
    network = weights.trained.params
    guide = None if problem.guidance is None else problem.guidance.weights
    first = 0 if order.inputs is None else order.inputs.row or 0
    batches = [b for _, b in run((network, guide), rows + first, (seeds, conditions))]
    arrays = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    errors.refuse(np.flatnonzero(~arrays.pop("ok")), "are not finite, or their solver gave up")
    words = {"nfe": float(arrays["nfe"].mean()), **_columns(order, problem, arrays["image"])}
    return Result(words, arrays["image"], {"x": arrays["x"], "nfe": arrays["nfe"]})


def _image_function(problem: Problem, prior: Prior) -> Callable[..., Any]:
    """`control.run.image_function` whose seed is an argument, so that one program serves all."""

    def images(
        weights: tuple[Any, Any], numbers: jax.Array, arrays: tuple[jax.Array, Condition]
    ) -> dict[str, jax.Array]:
        seeds, conditions = arrays
        draw = control_run.image_function(problem, prior, seeds[0])  # type: ignore[arg-type]
        images: dict[str, jax.Array] = draw(weights, numbers, conditions)
        return images

    return images


def _split(weights: Weights, images: np.ndarray) -> data.Dataset:
    """A data set of these images alone."""
    parts = weights.parts
    labels = np.zeros(len(images), np.int32)
    shape, classes = parts.image_shape, max(parts.num_labels, 1)
    return data.Dataset(parts.dataset_name, "test", images, labels, parts.levels, shape, classes)


def _columns(order: Order, problem: Problem, images: np.ndarray) -> Words:
    """What is shown, column by column, and the likeness to the original."""
    levels = order.weights.parts.levels
    before = {n: p for n, p in problem.columns_before.items() if n != "mask"}
    columns = [{"title": name, **pictures(p, levels)} for name, p in before.items()]
    names = problem.variants
    if "class" in problem.conditions:
        names = [f"class {y}" for y in problem.conditions["class"].repeat(len(names))]
    columns.append({"title": "drawn", "names": names, **pictures(images, levels)})
    words: Words = {"count": len(images)}
    for name, after in problem.columns_after.items():
        columns.append({"title": name, **pictures(after, levels)})
        if name == "original":
            likeness = results.likeness(images, after.repeat(len(problem.variants), 0), levels)
            words |= {name: float(np.clip(v, -1e3, 1e3)) for name, v in likeness.items()}
    return words | {"columns": columns}


def mask_file(mask: np.ndarray) -> bytes:
    """The file of a mask [H, W, 1] that `control.mask` reads: white is known."""
    file = io.BytesIO()
    Image.fromarray((255 * mask[..., 0]).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def likelihoods(order: Order, programs: Programs) -> Result:
    """Likelihoods of test images, or of images from elsewhere."""
    assert order.inputs is not None
    weights, config = order.weights, order.config
    options = {name: value for name, value in config.eval.items() if name.startswith("bpd_")}
    options |= {"bpd_num_images": 0, "seed": config.eval.seed, "batch": config.eval.batch_size}
    images, unit = order.inputs.images, weights.kind.unit
    run = programs.get(
        ("likelihood", weights.name, repr(options)),
        lambda: devices.ImageMap(
            likelihood_of_images(config, weights.parts), config.eval.batch_size, "eval.batch_size"
        ),
    )
    numbers = np.arange(len(images))
    arrays = images, np.zeros(len(images), np.int64)
    batches = [b for _, b in run(weights.trained.params, numbers, arrays)]
    values = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    failed = ~values.pop("ok")
    tolerance = ("tolerance", config.eval.bpd_rtol)
    why = errors.gave_up(config.eval.bpd_solver, values["nfe"][failed], tolerance)
    errors.refuse(np.flatnonzero(failed), why)
    of_each = values[unit]
    words: Words = {
        "nfe": float(values["nfe"].mean()),
        "unit": f"{unit}/dim",
        "mean": float(of_each.mean()),
        "values": of_each.tolist(),
        "count": len(images),
    }
    if len(images) > 1:
        words["error"] = standard_error(of_each)
    if weights.parts.levels:
        words["images"] = pictures(images, weights.parts.levels)
    else:
        words["scatter"] = scatter(images[:, 0, 0, :2], extent(weights))
    return Result(words, None, values)


def field(order: Order, programs: Programs) -> Result:
    """The learned score over the noisy data, and the density that the probability flow gives."""
    weights, noise = order.weights, float(order.values[choices.NOISE])
    parts, params, half = weights.parts, weights.trained.params, extent(weights)
    t = _time(weights, noise)
    places = point_figures.cells(half, score_field.ARROWS)
    x = places.astype(np.float32)[:, None, None]

    def score(params: Any, indices: jax.Array, arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, t = arrays
        return parts.score(params)(x, t)

    run = programs.get(
        ("score", weights.name),
        lambda: devices.ImageMap(score, devices.fitting_batch(len(x)), "places"),
    )
    arrays = x, np.full(len(x), t, np.float32)
    arrows = np.concatenate([b for _, b in run(params, np.arange(len(x)), arrays)])[:, 0, 0]
    points = weights.test_examples[:, 0, 0, :2]
    alpha, sigma = (float(f(jnp.full((1,), t))[0]) for f in (parts.sde.alpha, parts.sde.sigma))
    blurred = point_figures.histogram(alpha * points, half, score_field.SHADES, blur=sigma)
    words: Words = {
        "t": t,
        "noise": sigma / alpha,
        "half": half,
        "count": len(points),
        "places": scatter(places, half),
        "score": arrows.tolist(),
        "noisy": shades(blurred),
        "data": scatter(points, half),
        "nfe": 1,
    }
    if not choices.no_likelihood(weights):
        density = programs.get(
            ("density", weights.name),
            lambda: score_field.model_density(weights.config, parts, params, half, ""),
        )
        words["density"] = shades(density)
    return Result(words, None, {"score": arrows})


def _time(weights: Weights, noise: float) -> float:
    """The time of a noise level sigma / alpha, or what is nearest to it that the network knows."""
    sde = weights.parts.sde
    t = float(times.time_of_noise(sde, noise))
    if not weights.parts.continuous:
        last = sde.N - 1
        t = round(t / sde.T * last) / last * sde.T
    return t


def shades(density: np.ndarray) -> Words:
    """A density [n, n], rows from below, as shares of its largest value in a byte each."""
    share = np.rint(255.0 * density / max(float(density.max()), 1e-12)).astype(np.uint8)
    return {"shape": share.shape, "data": base64.b64encode(share.tobytes()).decode()}
