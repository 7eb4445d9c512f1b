"""Sampling: images from a trained network, each a function of (weights, seed, its index) alone."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

import models
import parallel
import reports
import sampling
import solvers
import train
from checkpoints import config_differences, unflatten
from data import transforms


class Trained(NamedTuple):
    """The EMA weights of one checkpoint, a copy on every device, and the step they are from."""

    params: Any
    step: int


def restore(
    config: ml_collections.ConfigDict, parts: train.Parts, workdir: pathlib.Path
) -> Trained:
    """The EMA weights of the checkpoint `config.eval.checkpoint`: "latest", "best" or a step.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it belongs to another config, or is damaged.
    """
    stored = train.open_run(config, workdir).restore(step=config.eval.checkpoint)
    init = functools.partial(models.init, parts.module, image_shape=parts.image_shape)
    template = jax.eval_shape(init, jax.random.key(0))
    params = unflatten(template, stored.state, prefix="ema_params")
    return Trained(parallel.replicate(params), stored.step)


def score_from_params(
    config: ml_collections.ConfigDict, parts: train.Parts, params: Any
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The score function of the trained network with these weights, without dropout."""
    network = functools.partial(parts.module.apply, {"params": params})
    return models.score_fn(parts.sde, network, config.training.continuous)


class Generator:
    """Draws images by number: the image with index i is the same in any batch on any device."""

    def __init__(self, config: ml_collections.ConfigDict, parts: train.Parts) -> None:
        sampler = sampling.from_config(config, parallel.AXIS)
        seed_key = jax.random.key(config.sampling.seed)

        def draw(params: Any, indices: jax.Array, _: None) -> dict[str, jax.Array]:
            keys = parallel.image_keys(seed_key, indices)
            noise = sampling.image_noise(keys, parts.image_shape)
            samples = sampler(parts.sde, score_from_params(config, parts, params), noise)
            to_levels = functools.partial(
                transforms.inverse_scale,
                levels=parts.levels,
                centered=config.data.centered,
                dequantized=config.data.uniform_dequantization,
            )
            drawn = {
                "image": to_levels(samples.x),
                "nfe": jnp.broadcast_to(samples.nfe, indices.shape),
                "ok": samples.ok,
                "finite": solvers.all_finite(samples.x),
            }
            if samples.trajectory is not None:
                drawn["frames"] = jnp.moveaxis(to_levels(samples.trajectory), 0, 1)
            return drawn

        self.options = config.sampling
        self.draw = parallel.ImageMap(draw, config.sampling.batch_size, "sampling.batch_size")

    def __call__(
        self, params: Any, indices: np.ndarray, description: str = "sampling"
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields `(indices, {"image" uint8 levels, "nfe", ["frames" [b, K, ...]]})` per batch.

        Raises:
          ValueError: a sample is not finite, or its solver gave up; says which images.
        """
        for numbers, drawn in self.draw(params, indices, description=description):
            finite, failed = drawn.pop("finite"), ~drawn.pop("ok")
            refuse(numbers[~finite], "are not finite; is the training stable?")
            options = self.options
            tolerances = ("sampling.rtol", options.rtol), ("sampling.atol", options.atol)
            refuse(numbers[failed], gave_up(options.solver, drawn["nfe"][failed], *tolerances))
            yield numbers, drawn


def gave_up(solver: str, nfe: np.ndarray, *tolerances: tuple[str, float]) -> str:
    """Says what an adaptive solver spent on images that it could not solve, and the cure."""
    given = " and ".join(f"{name}={value:g}" for name, value in tolerances)
    return (
        f"were not solved: {solver} gave up after {np.max(nfe, initial=0):.0f} evaluations, its "
        f"steps too many or too small; loosen {given}"
    )


def refuse(failed: np.ndarray, why: str) -> None:
    """Raises a ValueError that counts the failed images and names the first ones."""
    if len(failed):
        named = ", ".join(map(str, failed[:8])) + (", ..." if len(failed) > 8 else "")
        raise ValueError(f"{len(failed)} samples (numbers {named}) {why}")


def save_pictures(
    folder: pathlib.Path, name: str, drawn: dict[str, np.ndarray], levels: int, limit: int = 64
) -> None:
    """Writes `<name>.png`, a grid of the first images, and the GIF of how they came about."""
    display = functools.partial(transforms.to_display, levels=levels)
    reports.save_grid(folder / f"{name}.png", np.asarray(display(drawn["image"][:limit])))
    if "frames" in drawn:
        frames = np.asarray(display(drawn["frames"][:limit])).swapaxes(0, 1)
        reports.save_gif(folder / "reverse_process.gif", frames)


def sample(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Draws images 0 .. sampling.num_samples - 1 into `<workdir>/samples`.

    Each batch becomes one `shard_<first index>.npz` ("image" uint8 levels, "index", "nfe") and one
    PNG file per image; images that are there already are not drawn again, so an interrupted run
    goes on. The first ones make `grid.png`, and with sampling.num_frames `reverse_process.gif`.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a config that cannot be served; samples that are not finite; a folder of samples
        that were made in another way.
    """
    parts = train.build(config)
    generator = Generator(config, parts)
    trained = restore(config, parts, workdir)
    folder = workdir / "samples"
    made_by = {"step": trained.step, "sampling": config.sampling.to_dict()}
    free = ["sampling.num_samples", "sampling.batch_size", "sampling.num_frames"]
    stored = folder / "made_by.json"
    if stored.exists():
        differences = config_differences(json.loads(stored.read_text()), made_by, free)
        if differences:
            raise ValueError(
                f"{folder} holds samples made otherwise: {'; '.join(differences)}; move it away"
            )
    done = {int(i) for shard in folder.glob("shard_*.npz") for i in np.load(shard)["index"]}
    missing = np.array([i for i in range(config.sampling.num_samples) if i not in done], np.int32)
    if parallel.is_primary():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        reports.write_json(stored, made_by)
    for indices, drawn in generator(trained.params, missing):
        if parallel.is_primary():
            save_batch(folder, indices, drawn, parts.levels)
    if parallel.is_primary():
        print(f"{config.sampling.num_samples} samples are in {folder} ({len(missing)} new)")


def save_batch(
    folder: pathlib.Path, indices: np.ndarray, drawn: dict[str, np.ndarray], levels: int
) -> None:
    """One batch as PNG files, then as a shard, which is written last and in one move."""
    if indices[0] == 0:
        save_pictures(folder, "grid", drawn, levels)
    pictures = np.asarray(transforms.to_display(drawn["image"], levels))
    for index, picture in zip(indices, pictures, strict=True):
        Image.fromarray(picture.squeeze()).save(folder / "images" / f"{index:06d}.png")
    partial = folder / "partial.npz"
    np.savez(partial, image=drawn["image"], index=indices, nfe=drawn["nfe"])
    partial.replace(folder / f"shard_{indices[0]:06d}.npz")
