"""Controlled generation: test images are hidden in part, measured or encoded, and drawn again.

A task turns the config and the test images into a `problem.Problem`; `control` draws its variants,
each a function of (weights, seed, number of the image, number of the variant) alone, and writes a
picture, the arrays, and what they were made from.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
from configs.names import lookup
from control import latents, measurements, prompts
from control.classes import by_class
from control.problem import Condition, Config, Problem, pixels_of
from data import transforms
from diffusion.noise import image_noise
from evaluation.metrics import classifier, fidelity
from runtime import devices, errors, experiment, figures, files
from runtime.workdir import restore
from sde_lib import ScoreFn

# The registry: from a task's name to how it is set up, and the method that it takes by itself.
TASKS: dict[str, tuple[Callable[[Config, experiment.Parts], Problem], str]] = {
    "inpaint": (measurements.inpaint, "repaint"),
    "colorize": (measurements.colorize, "repaint"),
    "super_resolution": (measurements.super_resolution, "posterior"),
    "deblur": (measurements.deblur, "posterior"),
    "compressed_sensing": (measurements.compressed_sensing, "posterior"),
    "denoise": (measurements.denoise, "posterior"),
    "interpolate": (latents.interpolate, "flow"),
    "reconstruct": (latents.reconstruct, "flow"),
    "sdedit": (latents.sdedit, "sdedit"),
    "attribute": (latents.attribute, "flow"),
    "class": (by_class, "classifier_free"),
    "prompt": (prompts.prompt, "similarity"),
}


def problem_of(config: Config, parts: experiment.Parts) -> tuple[Problem, Config]:
    """The problem that `config.control` poses, and the config with its method filled in.

    Raises:
      ValueError: unknown task or method, or what the task refuses.
    """
    make, method = lookup(TASKS, config.control.task, "control.task")
    config = config.copy_and_resolve_references()
    if config.control.method and method == "sdedit":
        raise ValueError(f"control.task={config.control.task!r} has no choice of control.method")
    config.control.method = config.control.method or method
    experiment.refuse_guides(config)
    if config.control.task != "class":
        experiment.refuse_always_told(config)
    if config.control.prompt and config.control.task != "prompt":
        raise ValueError(
            f"control.prompt is {config.control.prompt!r}, but control.task="
            f"{config.control.task!r} reads no text; control.task=prompt does"
        )
    if config.sampling.corrector_norm != "image":
        raise ValueError("controlled images are drawn alone: sampling.corrector_norm must be image")
    return make(config, parts), config


def drawing(config: Config, parts: experiment.Parts, problem: Problem) -> Callable[..., Any]:
    """(weights, numbers of the inputs [b], conditions [b, ...]) -> images and what they cost.

    The weights are the network's, and those of the problem's guidance, or None.

    Every image is drawn on its own, under `vmap`, so that adaptive solvers serve conditions too.
    """
    seed_key = jax.random.key(config.control.seed)
    to_levels = problem.to_levels or pixels_of(config, parts).to_levels

    def draw(
        weights: tuple[Any, Any], numbers: jax.Array, conditions: Condition
    ) -> dict[str, jax.Array]:
        params, guiding = weights

        def one(key: jax.Array, condition: Condition) -> dict[str, jax.Array]:
            condition = jax.tree.map(lambda leaf: leaf[None], condition)

            def score_of(classes: jax.Array | None) -> ScoreFn:
                score = experiment.score_from_params(config, parts, params, classes)
                if problem.guidance is None:
                    return score
                return problem.guidance.score(guiding, condition, score)

            noise = image_noise(key[None], parts.image_shape)
            samples = problem.draw(score_of, noise, condition)
            found = {
                "x": samples.x,
                "image": to_levels(samples.x),
                "nfe": jnp.broadcast_to(samples.nfe, (1,)),
                "ok": samples.ok,
            }
            if problem.error is not None:
                found["error"] = problem.error(samples.x, condition)
            return jax.tree.map(lambda leaf: leaf[0], found)

        keys = devices.image_keys(seed_key, numbers)
        keys = jax.vmap(jax.random.fold_in)(keys, conditions["variant"])
        return jax.vmap(one)(keys, conditions)

    return draw


def control(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Draws `control.num_variants` answers to each input into `<workdir>/control/<task>`.

    `grid.png` shows inputs, variants and originals, `results.npz` holds the images (uint8 levels,
    and x in the network's range), `results.json` the settings, seeds, evaluations, and PSNR and
    SSIM to the originals.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a request that cannot be served, or samples that failed.
    """
    parts = experiment.build(config)
    if not parts.levels:
        raise ValueError(f"data.dataset={config.data.dataset!r} has points; control draws images")
    problem, config = problem_of(config, parts)
    trained = restore(config, parts, workdir)
    inputs_count, count = len(next(iter(problem.conditions.values()))), len(problem.variants)
    rows = np.repeat(np.arange(inputs_count), count)
    if problem.prepare is not None:
        found = problem.conditions | problem.prepare(trained.params)
        problem = dataclasses.replace(problem, conditions=found)
    conditions = {name: values[rows] for name, values in problem.conditions.items()}
    conditions["variant"] = np.tile(np.arange(count), inputs_count)
    run = devices.ImageMap(
        drawing(config, parts, problem),
        devices.fitting_batch(min(config.control.batch_size, len(rows))),
        "control.batch_size",
    )
    guidance = problem.guidance
    weights = trained.params, None if guidance is None else guidance.weights
    began = time.monotonic()
    batches = [drawn for _, drawn in run(weights, rows, conditions, config.control.task)]
    drawn = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    seconds = time.monotonic() - began
    errors.refuse(np.flatnonzero(~drawn.pop("ok")), "are not finite, or their solver gave up")

    error = drawn.pop("error", None)
    recognised = classified(config, problem, drawn)
    results = {
        "task": config.control.task,
        "method": config.control.method,
        "step": trained.step,
        "weights": trained.label,
        "dataset": config.data.dataset,
        "control": config.control.to_dict(),
        "sampling": config.sampling.to_dict(),
        "nfe": float(drawn["nfe"].mean()),
        "seconds": seconds,
        **recognised,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "diffrax")},
    }
    if guidance is not None:
        results["guide"] = guidance.label
    if error is not None:
        results["measurement_rmse"] = float(np.sqrt(error.mean()))
    if "original" in problem.after:
        originals = problem.after["original"][rows]
        results["psnr"] = float(fidelity.psnr(drawn["image"], originals, parts.levels).mean())
        results["ssim"] = float(fidelity.ssim(drawn["image"], originals, parts.levels).mean())
    if devices.is_primary():
        folder = workdir / "control" / config.control.task
        write(folder, problem, drawn, parts.levels, results)
        print(figures.table(table(results)))
        print(f"grid.png, results.npz and results.json are in {folder}")
    return results


def classified(config: Config, problem: Problem, drawn: dict[str, np.ndarray]) -> dict[str, Any]:
    """How many of the images are taken for what was asked, by a classifier of the data set's own.

    It is `metrics.classifier`, which knows nothing of the network or its guide. Its predictions are
    put into `drawn`. Empty where nothing was asked, or where there is no data set to learn from.
    """
    if problem.asked is None:
        return {}
    try:
        dataset = data.from_config(config, "train")
        judge = classifier.load(dataset, data.from_config(config, "test"))
    except (FileNotFoundError, ValueError) as error:  # the images are drawn, and are to be kept
        print(f"the images are not classified: {error}")
        return {}
    drawn["predicted"] = judge.predict(drawn["image"])
    asked = problem.asked.reshape(-1)
    right = (drawn["predicted"] == asked)[asked >= 0]
    return {
        "classified_as_asked": float(right.mean()),
        "classified": len(right),
        "classifier": judge.label,
        "classifier_accuracy": judge.accuracy,
    }


def write(
    folder: pathlib.Path,
    problem: Problem,
    drawn: dict[str, np.ndarray],
    levels: int,
    results: dict[str, Any],
) -> None:
    """The picture, a row for each input, and the two files of numbers."""
    count = len(problem.variants)
    shape = drawn["image"].shape[1:]
    variants = drawn["image"].reshape(-1, count, *shape).swapaxes(0, 1)
    columns = [*problem.before.values(), *variants, *problem.after.values()]
    names = [*problem.before, *problem.variants, *problem.after]
    page = np.stack(columns, 1).reshape(-1, *shape)
    labels = names * variants.shape[1]
    if "class" in problem.conditions:
        labels = [f"class {y}" for y in problem.conditions["class"].repeat(count)]
    if problem.titles is not None:
        middle = len(names) // 2
        around = [""] * middle, [""] * (len(names) - middle - 1)
        labels = [text for title in problem.titles for text in (*around[0], title, *around[1])]
    pictures = np.asarray(transforms.to_display(page, levels))
    figures.save_grid(folder / "grid.png", pictures, len(names), labels=labels)
    arrays: dict[str, Any] = {**drawn, **problem.conditions}
    np.savez(folder / "results.npz", **arrays)
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in results.items()
    }
    files.write_json(folder / "results.json", finite)


def table(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows that are printed."""
    seed = results["control"]["seed"]
    rows = [
        ("task", f"{results['task']}, by {results['method']}"),
        ("checkpoint", f"step {results['step']}, {results['weights']}, seed {seed}"),
        ("evaluations", f"{results['nfe']:.0f} NFE per image, {results['seconds']:.0f} s"),
    ]
    if "guide" in results:
        rows.append(("guide", results["guide"]))
    if "classified_as_asked" in results:
        rows.append(
            (
                "as asked",
                f"{100 * results['classified_as_asked']:.1f} % of {results['classified']} (by a "
                f"classifier right on {100 * results['classifier_accuracy']:.1f} % of test images)",
            )
        )
    if "measurement_rmse" in results:
        rows.append(("measurement", f"{results['measurement_rmse']:.2g} off (root mean square)"))
    if "psnr" in results:
        rows.append(
            ("to the original", f"PSNR {results['psnr']:.2f} dB, SSIM {results['ssim']:.3f}")
        )
    return rows
