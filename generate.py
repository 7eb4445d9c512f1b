"""Sampling: images from a trained network, each a function of (weights, seed, its index) alone."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import ema
import kinds
import losses
import models
import parallel
import reports
import sampling
import solvers
import train
from checkpoints import config_differences, unflatten
from data import transforms
from snapshots import Snapshots


class Trained(NamedTuple):
    """Weights of one run, the step that they are from, and what they are called in tables."""

    params: Any
    step: int
    label: str


def restore(
    config: ml_collections.ConfigDict, parts: train.Parts, workdir: pathlib.Path
) -> Trained:
    """`load_weights` with a copy of them on every device."""
    found = load_weights(config, parts.module, parts.image_shape, workdir)
    return found._replace(params=parallel.replicate(found.params))


def load_weights(
    config: ml_collections.ConfigDict,
    module: Any,
    image_shape: tuple[int, int, int],
    workdir: pathlib.Path,
) -> Trained:
    """The weights `config.eval.ema` of the checkpoint `config.eval.checkpoint`, in NumPy.

    The checkpoint is "latest", "best" or a step; the weights are "" for the average that training
    itself evaluates, "raw" for the parameters, "0.9999" for the average of that rate, or
    "posthoc:0.1" for a power-function average of that relative width (see `ema`), "posthoc:0.1@500"
    for that at another step than the checkpoint's.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it belongs to another config, or is damaged; weights that the run did not keep.
    """
    choice = chosen_weights(config.eval.ema)
    stored = train.open_run(config, workdir).restore(step=config.eval.checkpoint)
    init = functools.partial(models.init, module, image_shape=image_shape)
    template = jax.eval_shape(init, jax.random.key(0))
    if isinstance(choice, PostHoc):
        step = stored.step if choice.step is None else choice.step
        if step > stored.step:
            raise ValueError(
                f"eval.ema is {config.eval.ema!r}, but the run has come to step {stored.step} only"
            )
        state = stored.state if step == stored.step else None
        made = Snapshots(workdir / "ema").reconstruct(template, step, choice.width, state)
        label = (
            f"post-hoc EMA of width {choice.width:g} (from {made.sources} averages, "
            f"error of its profile {100 * made.error:.2g} %)"
        )
        return Trained(made.params, step, label)
    kept = {"raw": ("params", "raw weights"), "": ("ema_params", "EMA weights")}
    kept |= {
        ema.rate_name(rate): (f"averages/{ema.rate_name(rate)}", f"EMA weights of rate {rate:g}")
        for rate in config.training.ema_rates
    }
    kept.setdefault(ema.rate_name(config.model.ema_rate), kept[""])
    name = ema.rate_name(choice) if isinstance(choice, float) else choice
    if name not in kept:
        rates = ", ".join(f"{r:g}" for r in (config.model.ema_rate, *config.training.ema_rates))
        raise ValueError(
            f"eval.ema is {config.eval.ema!r}, but this run kept the averages of rate {rates} only "
            "(model.ema_rate, training.ema_rates)"
        )
    prefix, label = kept[name]
    return Trained(unflatten(template, stored.state, prefix=prefix), stored.step, label)


class PostHoc(NamedTuple):
    """A power-function average that was perhaps not tracked; None is the checkpoint's step."""

    width: float
    step: int | None


def chosen_weights(choice: str) -> str | float | PostHoc:
    """What `eval.ema` says: "" or "raw", a rate, or a relative width with perhaps a step.

    Raises:
      ValueError: none of these.
    """
    if choice in ("", "raw"):
        return choice
    found = re.fullmatch(r"(posthoc:)?([\d.e-]+)(@\d+)?", choice)
    with contextlib.suppress(ValueError):  # of float()
        if found and found[1]:
            return PostHoc(float(found[2]), int(found[3][1:]) if found[3] else None)
        if found and not found[3]:
            return float(choice)
    raise ValueError(
        f"eval.ema is {choice!r}; valid values: '', 'raw', a rate such as '0.9999', "
        "'posthoc:0.1' or, at another step, 'posthoc:0.1@5000'"
    )


def score_from_params(
    config: ml_collections.ConfigDict,
    parts: train.Parts,
    params: Any,
    classes: jax.Array | None = None,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The score function of the trained network with these weights, without dropout.

    `classes` [B] are told to a network with `model.num_labels`, which else sees the null class.
    """
    told = {} if classes is None else {"y": classes}
    network = functools.partial(parts.module.apply, {"params": params}, **told)
    return models.score_fn(
        parts.sde,
        network,
        config.training.continuous,
        prediction=config.model.prediction,
        sigma_data=config.model.sigma_data,
    )


def refuse_guides(config: ml_collections.ConfigDict) -> None:
    """Refuses to draw images, or to measure likelihoods, without a score."""
    if not train.has_score(config):
        objective = config.training.objective
        raise ValueError(
            f"this run trained {losses.GUIDES[objective]} of noisy images (training.objective is "
            f"{objective!r}), which has no score: neither samples nor likelihoods; its loss can be "
            "evaluated"
        )


def refuse_always_told(config: ml_collections.ConfigDict) -> None:
    """Refuses to ask a network for images of no class that has never seen any."""
    if config.model.num_labels and not config.training.label_dropout:
        raise ValueError(
            "this network was told the class of every image (training.label_dropout is 0), so "
            "it draws images of a class only: --mode=control --config.control.task=class"
        )


class Generator:
    """Draws images by number: the image with index i is the same in any batch on any device.

    No class is asked for. A network that was told one with every image cannot do without.
    """

    def __init__(self, config: ml_collections.ConfigDict, parts: train.Parts) -> None:
        refuse_guides(config)
        refuse_always_told(config)
        sampler = sampling.from_config(config, parallel.AXIS)

        def draw(params: Any, indices: jax.Array, seeds: jax.Array) -> dict[str, jax.Array]:
            keys = parallel.image_keys(jax.random.key(seeds[0]), indices)
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
        self,
        params: Any,
        indices: np.ndarray,
        description: str = "sampling",
        seed: int | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields `(indices, {"image", "nfe", ["frames" [b, K, ...]]})` per batch.

        The images are as the data set stores them: uint8 levels, or float32 points. They belong to
        `seed`, or else to `sampling.seed`; the program is the same for all seeds.

        Raises:
          ValueError: a sample is not finite, or its solver gave up; says which images.
        """
        seeds = np.full(len(indices), self.options.seed if seed is None else seed, np.uint32)
        for numbers, drawn in self.draw(params, indices, seeds, description):
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


def sample(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Draws images 0 .. sampling.num_samples - 1 into `<workdir>/samples`.

    Each batch becomes one `shard_<first index>.npz` ("image" as the data set stores it, "index",
    "nfe") and one PNG file per image; images that are there already are not drawn again, so an
    interrupted run goes on. The first ones make `grid.png` (points: `scatter.png`, and no files of
    their own), and with sampling.num_frames `reverse_process.gif`.

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
    if config.eval.ema:
        made_by["ema"] = config.eval.ema
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
        reports.write_json(stored, made_by)
    kind = kinds.from_config(config)
    for indices, drawn in generator(trained.params, missing):
        if parallel.is_primary():
            save_batch(folder, indices, drawn, kind)
    if parallel.is_primary():
        print(f"{config.sampling.num_samples} samples are in {folder} ({len(missing)} new)")


def save_batch(
    folder: pathlib.Path, indices: np.ndarray, drawn: dict[str, np.ndarray], kind: kinds.Kind
) -> None:
    """One batch as pictures, then as a shard, which is written last and in one move."""
    if indices[0] == 0:
        kind.save_pictures(folder, kind.overview, drawn)
    kind.save_each(folder, indices, drawn["image"])
    partial = folder / "partial.npz"
    np.savez(partial, image=drawn["image"], index=indices, nfe=drawn["nfe"])
    partial.replace(folder / f"shard_{indices[0]:06d}.npz")
