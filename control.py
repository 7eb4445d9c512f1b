"""Controlled generation: test images are hidden in part, measured or encoded, and drawn again.

A task turns the config and the test images into a `problem.Problem`; `control` draws its variants,
each a function of (weights, seed, number of the image, number of the variant) alone, and writes a
picture, the arrays, and what they were made from.
"""

from __future__ import annotations

import importlib.metadata
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import codes
import generate
import measure
import parallel
import reports
import sampling
import train
from data import transforms
from metrics import fidelity
from problem import Condition, Config, Problem, pixels_of
from sde_lib import ScoreFn, lookup

# The registry: from a task's name to how it is set up, and the method that it takes by itself.
TASKS: dict[str, tuple[Callable[[Config, train.Parts], Problem], str]] = {
    "inpaint": (measure.inpaint, "repaint"),
    "colorize": (measure.colorize, "repaint"),
    "super_resolution": (measure.super_resolution, "posterior"),
    "deblur": (measure.deblur, "posterior"),
    "compressed_sensing": (measure.compressed_sensing, "posterior"),
    "denoise": (measure.denoise, "posterior"),
    "interpolate": (codes.interpolate, "flow"),
    "reconstruct": (codes.reconstruct, "flow"),
    "sdedit": (codes.sdedit, "sdedit"),
    "class": (codes.by_class, "classifier_free"),
}


def problem_of(config: Config, parts: train.Parts) -> tuple[Problem, Config]:
    """The problem that `config.control` poses, and the config with its method filled in.

    Raises:
      ValueError: unknown task or method, or what the task refuses.
    """
    make, method = lookup(TASKS, config.control.task, "control.task")
    config = config.copy_and_resolve_references()
    if config.control.method and method in ("sdedit", "classifier_free"):
        raise ValueError(f"control.task={config.control.task!r} has no choice of control.method")
    config.control.method = config.control.method or method
    if config.sampling.corrector_norm != "image":
        raise ValueError("controlled images are drawn alone: sampling.corrector_norm must be image")
    return make(config, parts), config


def drawing(config: Config, parts: train.Parts, problem: Problem) -> Callable[..., Any]:
    """(params, numbers of the inputs [b], conditions [b, ...]) -> images and what they cost.

    Every image is drawn on its own, under `vmap`, so that adaptive solvers serve conditions too.
    """
    seed_key, pixels = jax.random.key(config.control.seed), pixels_of(config, parts)

    def draw(params: Any, numbers: jax.Array, conditions: Condition) -> dict[str, jax.Array]:
        def score_of(classes: jax.Array | None) -> ScoreFn:
            return generate.score_from_params(config, parts, params, classes)

        def one(key: jax.Array, condition: Condition) -> dict[str, jax.Array]:
            condition = jax.tree.map(lambda leaf: leaf[None], condition)
            noise = sampling.image_noise(key[None], parts.image_shape)
            samples = problem.draw(score_of, noise, condition)
            found = {
                "x": samples.x,
                "image": pixels.to_levels(samples.x),
                "nfe": jnp.broadcast_to(samples.nfe, (1,)),
                "ok": samples.ok,
            }
            if problem.error is not None:
                found["error"] = problem.error(samples.x, condition)
            return jax.tree.map(lambda leaf: leaf[0], found)

        keys = parallel.image_keys(seed_key, numbers)
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
    parts = train.build(config)
    if not parts.levels:
        raise ValueError(f"data.dataset={config.data.dataset!r} has points; control draws images")
    problem, config = problem_of(config, parts)
    trained = generate.restore(config, parts, workdir)
    inputs_count, count = len(next(iter(problem.conditions.values()))), len(problem.variants)
    rows = np.repeat(np.arange(inputs_count), count)
    conditions = {name: values[rows] for name, values in problem.conditions.items()}
    conditions["variant"] = np.tile(np.arange(count), inputs_count)
    run = parallel.ImageMap(
        drawing(config, parts, problem),
        parallel.fitting_batch(min(config.control.batch_size, len(rows))),
        "control.batch_size",
    )
    began = time.monotonic()
    batches = [drawn for _, drawn in run(trained.params, rows, conditions, config.control.task)]
    drawn = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    seconds = time.monotonic() - began
    generate.refuse(np.flatnonzero(~drawn.pop("ok")), "are not finite, or their solver gave up")

    error = drawn.pop("error", None)
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
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "diffrax")},
    }
    if error is not None:
        results["measurement_rmse"] = float(np.sqrt(error.mean()))
    if "original" in problem.after:
        originals = problem.after["original"][rows]
        results["psnr"] = float(fidelity.psnr(drawn["image"], originals, parts.levels).mean())
        results["ssim"] = float(fidelity.ssim(drawn["image"], originals, parts.levels).mean())
    if parallel.is_primary():
        folder = workdir / "control" / config.control.task
        write(folder, problem, drawn, parts.levels, results)
        print(reports.table(table(results)))
        print(f"grid.png, results.npz and results.json are in {folder}")
    return results


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
    pictures = np.asarray(transforms.to_display(page, levels))
    reports.save_grid(folder / "grid.png", pictures, len(names), labels=labels)
    arrays: dict[str, Any] = {**drawn, **problem.conditions}
    np.savez(folder / "results.npz", **arrays)
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in results.items()
    }
    reports.write_json(folder / "results.json", finite)


def table(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows that are printed."""
    seed = results["control"]["seed"]
    rows = [
        ("task", f"{results['task']}, by {results['method']}"),
        ("checkpoint", f"step {results['step']}, {results['weights']}, seed {seed}"),
        ("evaluations", f"{results['nfe']:.0f} NFE per image, {results['seconds']:.0f} s"),
    ]
    if "measurement_rmse" in results:
        rows.append(("measurement", f"{results['measurement_rmse']:.2g} off (root mean square)"))
    if "psnr" in results:
        rows.append(
            ("to the original", f"PSNR {results['psnr']:.2f} dB, SSIM {results['ssim']:.3f}")
        )
    return rows
