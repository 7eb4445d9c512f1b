"""Controlled generation: test images are hidden in part, measured or encoded, and drawn again.

A task of `TASKS` turns the section `control` and a prior into a `problem.Problem`; `control` draws
its variants, each a function of (weights, seed, number of the image, number of the variant) alone,
and writes a picture, the arrays, and what they were made from.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs.names import lookup
from control import classes, latents, measurements, methods, prompts, results, rewards
from control.prior import Options, Prior, prior_from_config
from control.problem import Condition, Problem
from diffusion import latent
from diffusion.noise import image_noise
from evaluation import batch_cache
from evaluation.batch_cache import Shards, Store
from generation import examples
from runtime import devices, errors, experiment, figures
from runtime.arrays import FLAG, NUMBER, Row, fingerprint
from runtime.workdir import Trained, restore, settled
from sde_lib import ScoreFn

# The modules that draw the images, of which all that they import counts.
MAKERS = ("control.run", "runtime.backend")


class Task(NamedTuple):
    """A task of --mode=control.

    Attributes:
      pose: (prior, section `control`, one of `methods`) -> the problem that is to be drawn.
      methods: the methods that the task can be served by, by their names in `control.method`.
      default: the name of the method where `control.method` is empty.
      values: True if it serves real-valued examples, too.
    """

    pose: Callable[[Prior, Options, Any], Problem]
    methods: Mapping[str, Any]
    default: str
    values: bool = False


NOISY: dict[str, methods.Method] = {
    "posterior": methods.posterior,
    "dps": methods.dps,
    "pigdm": methods.pigdm,
    "tmpd": methods.tmpd,
    "ddrm": methods.ddrm,
    "ddnm": methods.ddnm,
    "diffpir": methods.diffpir,
    "daps": methods.daps,
    "twisted": methods.twisted,
}
MEASURED: dict[str, methods.Method] = {
    "infill": methods.infill,
    "replace": methods.replace,
    "repaint": methods.repaint,
    **NOISY,
}
INPAINT: dict[str, methods.Method] = {**MEASURED, "conditional": methods.conditional}
ENCODED: dict[str, latents.Method] = {"flow": latents.flow, "ddim": latents.ddim}
CLASSES: dict[str, classes.Method] = {
    "classifier_free": classes.classifier_free,
    "classifier": classes.classifier,
    "conditional": classes.conditional,
    "autoguidance": classes.autoguidance,
    "feynman_kac": classes.corrected,
}
PROMPTS: dict[str, prompts.Energy] = {
    "similarity": prompts.similarity,
    "contrast": prompts.contrast,
}
REWARDS: dict[str, rewards.Method] = {
    "steering": rewards.steering,
    "gradient": rewards.gradient,
}

TASKS = {
    "inpaint": Task(measurements.inpaint, INPAINT, "repaint", True),
    "colorize": Task(measurements.colorize, MEASURED, "repaint"),
    "super_resolution": Task(measurements.super_resolution, MEASURED, "posterior", True),
    "compressed_sensing": Task(measurements.compressed_sensing, MEASURED, "posterior", True),
    "deblur": Task(measurements.deblur, NOISY, "posterior"),
    "denoise": Task(measurements.denoise, NOISY, "posterior", True),
    "operator": Task(measurements.by_operator, MEASURED, "posterior"),
    "interpolate": Task(latents.interpolate, ENCODED, "flow"),
    "reconstruct": Task(latents.reconstruct, ENCODED, "flow"),
    "attribute": Task(latents.attribute, ENCODED, "flow"),
    "sdedit": Task(latents.sdedit, {"sdedit": latent.sdedit}, "sdedit"),
    "class": Task(classes.images_of_classes, CLASSES, "classifier_free"),
    "prompt": Task(prompts.images_of_prompts, PROMPTS, "similarity"),
    "reward": Task(rewards.images_of_reward, REWARDS, "steering"),
}


def pose(
    config: ml_collections.ConfigDict, parts: experiment.Parts
) -> tuple[Problem, Prior, Options]:
    """The problem that a config poses, its prior, and `control` with the method filled in.

    Raises:
      ValueError: unknown task, a method that the task does not have, or what either refuses.
    """
    options = config.control.copy_and_resolve_references()
    task: Task = lookup(TASKS, options.task, "control.task")
    options.method = options.method or task.default
    method = lookup(task.methods, options.method, "control.method")
    parts.require_score()
    _require_served(config, parts, task)
    if options.task != "class":
        parts.require_unconditional()
    if method is not methods.conditional:
        parts.require_joint()
    if config.training.coupling != "independent" and task.methods is not ENCODED:
        raise ValueError(
            f"this network learnt the flow of dependent pairs (training.coupling="
            f"{config.training.coupling!r}), which has no score for control.task={options.task!r}; "
            "interpolate, reconstruct and attribute follow the flow"
        )
    if options.prompt and options.task != "prompt":
        raise ValueError(
            f"control.prompt is {options.prompt!r}, but control.task={options.task!r} reads no "
            "text; control.task=prompt does"
        )
    if config.sampling.corrector_norm != "image":
        raise ValueError("controlled images are drawn alone: sampling.corrector_norm must be image")
    prior = prior_from_config(config, parts)
    return task.pose(prior, options, method), prior, options


def _require_served(config: ml_collections.ConfigDict, parts: experiment.Parts, task: Task) -> None:
    """Refuses points of the plane, and tasks of images where examples are real-valued."""
    if parts.levels or (task.values and parts.pixels.standard is not None):
        return
    if parts.pixels.standard is None:
        raise ValueError(
            f"data.dataset={config.data.dataset!r} has points; control draws images, and vectors, "
            "series and fields of data.shape. Points of a class: --mode=sample with sampling.guide"
        )
    served = ", ".join(name for name, entry in TASKS.items() if entry.values)
    raise ValueError(
        f"control.task={config.control.task!r} draws images, and data.dataset="
        f"{config.data.dataset!r} has real-valued examples; valid values: {served}"
    )


def control(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Draws `control.num_variants` answers to each input into `<workdir>/control/<task>`.

    `grid.png` shows inputs, variants and originals, `results.npz` holds the images (uint8 levels or
    real numbers in their own units, and x in the network's range), `results.json` the settings,
    seeds, evaluations, and how near the originals are: PSNR and SSIM, or errors and coverage.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a request that cannot be served, or samples that failed.
    """
    config = settled(config, workdir)
    parts = experiment.build(config)
    problem, prior, options = pose(config, parts)
    trained = restore(config, parts, workdir)
    folder = workdir / "control" / options.task
    store = store_of(folder, problem, config, options, trained)
    if problem.prepare is not None:
        conditions = problem.conditions | problem.prepare(trained.params, store)
        problem = dataclasses.replace(problem, conditions=conditions)
    shards = shards_of(store, problem, examples.kind_of(parts.pixels).row(parts.image_shape))
    arrays = draw(problem, prior, options, trained.params, shards)
    error = arrays.pop("error", None)
    metrics: dict[str, Any] = {}
    if problem.target_classes is not None:
        predictions, metrics = results.recognition(
            problem.target_classes, arrays["image"], prior.dataset
        )
        arrays |= predictions
    summary = {
        **origin(options, prior, trained),
        "nfe": float(arrays["nfe"].mean()),
        "seconds": shards.seconds,
        **metrics,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "diffrax")},
    }
    if problem.guidance is not None:
        summary |= {"guide": problem.guidance.label, "guide_sha256": shards.made_by["guide"]}
    summary |= problem.sources
    if error is not None:
        summary["measurement_rmse"] = float(np.sqrt(error.mean()))
    if "reward" in arrays:
        if not np.all(np.isfinite(arrays["reward"])):
            raise ValueError(
                f"control.reward={options.reward!r} is not finite of "
                f"{int(np.sum(~np.isfinite(arrays['reward'])))} of {len(arrays['reward'])} images; "
                "no results are written"
            )
        summary["reward"] = float(arrays["reward"].mean())
    if "original" in problem.columns_after:
        summary |= results.nearness(problem, arrays, parts.pixels)
    if devices.is_primary():
        results.write(folder, problem, arrays, parts.pixels, summary)
        print(figures.table(results.table(summary)))
        print(f"grid.png, results.npz and results.json are in {folder}")
    store.close()
    return summary


def origin(options: Options, prior: Prior, trained: Trained) -> dict[str, Any]:
    """The origin of the images, for `results.json`."""
    return {
        "task": options.task,
        "method": options.method,
        "step": trained.step,
        "weights": trained.label,
        "weights_sha256": trained.sha256,
        "dataset": prior.dataset_name,
        "control": options.to_dict(),
        "sampling": prior.options.to_dict(),
    }


def store_of(
    folder: pathlib.Path,
    problem: Problem,
    config: ml_collections.ConfigDict,
    options: Options,
    trained: Trained,
) -> Store:
    """The store of finished batches: an interrupted run goes on with those that are missing.

    They are kept by a hash of the weights, those of the guide, the settings and the program.
    """
    guide = problem.guidance and fingerprint(devices.fetch(problem.guidance.weights))
    sampler, chosen = config.sampling.to_dict(), options.to_dict()
    made_by = {
        "weights": trained.sha256,
        "guide": guide or "",
        "config": experiment.settings(config) | {"sampling": sampler, "control": chosen},
        **batch_cache.program(MAKERS),
        **problem.sources,
    }
    return Store(folder, made_by)


def shards_of(store: Store, problem: Problem, image: Row) -> Shards:
    """The finished batches of images, which are kept by a hash of what they are drawn from besides:
    inputs, measurements, masks."""
    row = {"x": ("f", image[1]), "image": image, "nfe": NUMBER, "ok": FLAG}
    row |= {} if problem.error is None else {"error": NUMBER}
    row |= {} if problem.reward is None else {"reward": NUMBER}
    inputs = fingerprint((problem.conditions, problem.columns_before, problem.columns_after))
    return store.open(row, what="images", inputs=inputs, variants=problem.variants)


def draw(
    problem: Problem, prior: Prior, options: Options, params: Any, shards: Shards
) -> results.Arrays:
    """All variants of all inputs, in that order; those in `shards` are not drawn again.

    `params` are the network's, on every device. Every image is drawn on its own, under `vmap`, so
    that adaptive solvers serve conditions too.

    Returns:
      "x" in the network's range, "image" in levels, "nfe" and, with a measurement, "error", or
      "reward", if one is asked for, [n].

    Raises:
      ValueError: an image is not finite, or its solver gave up; names the first.
    """
    count, num_variants = len(next(iter(problem.conditions.values()))), len(problem.variants)
    rows = np.repeat(np.arange(count), num_variants)
    conditions = {name: values[rows] for name, values in problem.conditions.items()}
    conditions["variant"] = np.tile(np.arange(num_variants), count)
    run = devices.ImageMap(
        image_function(problem, prior, options.seed),
        devices.fitting_batch(min(options.batch_size, len(rows))),
        "control.batch_size",
    )
    weights = params, None if problem.guidance is None else problem.guidance.weights

    def compute(missing: np.ndarray) -> Iterator[tuple[np.ndarray, results.Arrays]]:
        arrays = {name: values[missing] for name, values in conditions.items()}
        yield from run(weights, rows[missing], arrays, options.task)

    batches = list(shards.batches(np.arange(len(rows)), run.batch_size, compute))
    arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    errors.refuse(np.flatnonzero(~arrays.pop("ok")), "are not finite, or their solver gave up")
    return arrays


def image_function(problem: Problem, prior: Prior, seed: int) -> Callable[..., Any]:
    """The function (weights, numbers of the inputs [b], conditions [b, ...]) -> images and costs.

    The weights are the network's, and those of the problem's guidance, or None.
    """
    seed_key = jax.random.key(seed)
    to_levels = problem.to_levels or prior.pixels.to_levels

    def images(
        weights: tuple[Any, Any], numbers: jax.Array, conditions: Condition
    ) -> dict[str, jax.Array]:
        params, guide_weights = weights

        def one(key: jax.Array, condition: Condition) -> dict[str, jax.Array]:
            condition = jax.tree.map(lambda leaf: leaf[None], condition)

            def score_of(labels: jax.Array | None, given: jax.Array | None = None) -> ScoreFn:
                score = prior.score(params, labels, given)
                if problem.guidance is None:
                    return score
                return problem.guidance.score(guide_weights, condition, score)

            noise = image_noise(key[None], prior.image_shape)
            samples = problem.draw(score_of, noise, condition)
            image = {
                "x": samples.x,
                "image": to_levels(samples.x),
                "nfe": jnp.broadcast_to(samples.nfe, (1,)),
                "ok": samples.ok,
            }
            if problem.error is not None:
                image["error"] = problem.error(samples.x, condition)
            if problem.reward is not None:
                image["reward"] = problem.reward(samples.x)
            return jax.tree.map(lambda leaf: leaf[0], image)

        keys = devices.image_keys(seed_key, numbers)
        keys = jax.vmap(jax.random.fold_in)(keys, conditions["variant"])
        return jax.vmap(one)(keys, conditions)

    return images
