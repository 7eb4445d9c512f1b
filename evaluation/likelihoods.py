"""Likelihoods of a data set: bits per dimension of images, nats of points."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

import data
import likelihood
from evaluation import batch_cache
from generation import examples
from runtime import devices, errors, experiment, files
from runtime.arrays import FLAG, NUMBER
from runtime.workdir import Trained

Results = dict[str, Any]
Arrays = dict[str, np.ndarray]


def likelihood_results(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    trained: Trained,
    folder: pathlib.Path,
    store: batch_cache.Store,
) -> Results:
    """Bits per dimension of uniformly dequantised images: mean and standard error over images.

    An image's own value is its mean over `eval.bpd_num_repeats` draws of dequantisation noise and
    probes; `bits_per_dim.npz` in `folder` holds it with its NFE and, where `eval.bpd_bound` asks
    for it, the variational bound on the same dequantised images. Points are not dequantised, and
    theirs are nats (`nats_per_dim.npz`).

    Raises:
      ValueError: the solver gave up on an image; says which.
    """
    options, kind = config.eval, examples.kind_of(parts.pixels)
    dataset = parts.dataset(options.bpd_dataset)
    count = min(options.bpd_num_images or len(dataset), len(dataset))
    shards = shards_of(config, parts, dataset, store)
    values = values_of_rows(config, parts, trained, dataset, count, shards)
    per_image = {name: value.reshape(-1, count).mean(0) for name, value in values.items()}
    name = f"{kind.unit}_per_dim"
    if devices.is_primary():
        with files.whole(folder / f"{name}.npz") as temporary:
            np.savez(temporary, **per_image)  # type: ignore[arg-type]
    results = {
        "likelihood_unit": kind.unit,
        name: float(per_image[kind.unit].mean()),
        f"{name}_stderr": standard_error(per_image[kind.unit]),
        f"{name}_split": options.bpd_dataset,
        f"{name}_data": dataset.facts(),
        f"{name}_images": count,
        f"{name}_repeats": options.bpd_num_repeats,
        f"{name}_nfe": float(per_image["nfe"].mean()),
        "likelihood_of": kind.described,
        "likelihood_seconds": shards.seconds,
    }
    if "bound" in per_image:
        results |= {
            f"{name}_bound": float(per_image["bound"].mean()),
            f"{name}_bound_stderr": standard_error(per_image["bound"]),
            f"{name}_bound_draws": options.bpd_bound_draws,
        }
    return results


def shards_of(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    dataset: data.Dataset,
    store: batch_cache.Store,
) -> batch_cache.Shards:
    """The finished batches of likelihoods."""
    unit = examples.kind_of(parts.pixels).unit
    row = {unit: NUMBER, "nfe": NUMBER, "ok": FLAG}
    row |= {"bound": NUMBER} if config.eval.bpd_bound else {}
    images = dataset.fingerprint
    return store.open(row, what=f"{unit}/dim", config=settings(config), images=images)


def settings(config: ml_collections.ConfigDict) -> Results:
    """The fields of the config that likelihoods depend on, by section."""
    options = config.eval
    fields = {name: value for name, value in options.items() if name.startswith("bpd_")}
    sections = {name: config[name].to_dict() for name in ("data", "model", "training")}
    return {**sections, "eval": {**fields, "seed": options.seed}}


def values_of_rows(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    trained: Trained,
    dataset: data.Dataset,
    count: int,
    shards: batch_cache.Shards,
) -> Arrays:
    """Likelihood, NFE and bound [repeats * count] of the first `count` images, repeat by repeat.

    Raises:
      ValueError: the solver gave up on an image; says which.
    """
    options, unit = config.eval, examples.kind_of(parts.pixels).unit
    rows = np.arange(count * options.bpd_num_repeats)
    indices, repeats = rows % count, rows // count
    batch_size = devices.fitting_batch(min(options.batch_size, len(rows)))
    run = devices.ImageMap(likelihood_of_images(config, parts), batch_size, "eval.batch_size")

    def compute(missing: np.ndarray) -> Iterator[tuple[np.ndarray, Arrays]]:
        numbers = indices[missing]
        arrays = devices.Rows(dataset.images, numbers), repeats[missing]
        yield from run(trained.params, numbers, arrays, f"{unit}/dim")

    batches = list(shards.batches(rows, run.batch_size, compute))
    values = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    failed = ~values.pop("ok")
    tolerances = ("eval.bpd_rtol", options.bpd_rtol), ("eval.bpd_atol", options.bpd_atol)
    errors.refuse(
        np.unique(indices[failed]),
        errors.gave_up(options.bpd_solver, values["nfe"][failed], *tolerances),
    )
    return values


def likelihood_of_images(
    config: ml_collections.ConfigDict, parts: experiment.Parts
) -> Callable[[Any, jax.Array, Any], dict[str, jax.Array]]:
    """The function of (params, image numbers [B], (images [B, ...], repeats [B])) for `ImageMap`.

    It returns the likelihood per dimension [B] by its unit, "nfe", "ok" and, where it is asked for,
    the "bound". Random numbers depend on an image's number and its repeat alone.
    """
    compute = likelihood.from_config(config)
    bound = likelihood.bound_from_config(config) if config.eval.bpd_bound else None
    seed_key = jax.random.key(config.eval.seed)
    kind = examples.kind_of(parts.pixels)
    per_dim = functools.partial(kind.per_dim, shape=parts.image_shape)

    def likelihoods(
        params: Any, indices: jax.Array, arrays: tuple[jax.Array, jax.Array]
    ) -> dict[str, jax.Array]:
        images, repeats = arrays
        keys = jax.vmap(jax.random.fold_in)(devices.image_keys(seed_key, indices), repeats)
        noise_keys, probe_keys, bound_keys = jax.vmap(lambda key: jax.random.split(key, 3), 0, 1)(
            keys
        )
        x = kind.continuous(images, noise_keys)
        score_fn = parts.score(params)
        result = compute(parts.sde, score_fn, x, probe_keys)
        values = {kind.unit: per_dim(result.logp), "nfe": result.nfe, "ok": result.ok}
        if bound is not None:
            values["bound"] = per_dim(bound(parts.sde, score_fn, x, bound_keys))
        return values

    return likelihoods


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values [n]; not a number if there is only one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan
