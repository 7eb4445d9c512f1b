"""Likelihoods of a data set: bits per dimension of images, nats of points."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

import data
import likelihood
from evaluation import batch_cache
from generation import examples
from runtime import devices, errors, experiment
from runtime.workdir import Trained

Results = dict[str, Any]


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
    options = config.eval
    dataset = data.from_config(config, options.bpd_dataset)
    count = min(options.bpd_num_images or len(dataset), len(dataset))
    images, _ = dataset.take(np.arange(count))
    compute = likelihood.from_config(config)
    bound = likelihood.bound_from_config(config) if options.bpd_bound else None
    seed_key = jax.random.key(options.seed)
    kind = examples.from_config(config)

    def bits(params: Any, indices: jax.Array, drawn: Any) -> dict[str, jax.Array]:
        images, repeats = drawn
        keys = jax.vmap(jax.random.fold_in)(devices.image_keys(seed_key, indices), repeats)
        noise_keys, probe_keys, bound_keys = jax.vmap(lambda key: jax.random.split(key, 3), 0, 1)(
            keys
        )
        x = kind.continuous(images, noise_keys)
        score_fn = experiment.score_from_params(config, parts, params)
        per_dim = functools.partial(kind.per_dim, shape=parts.image_shape)
        found = compute(parts.sde, score_fn, x, probe_keys)
        values = {kind.unit: per_dim(found.logp), "nfe": found.nfe, "ok": found.ok}
        if bound is not None:
            values["bound"] = per_dim(bound(parts.sde, score_fn, x, bound_keys))
        return values

    rows = np.arange(count * options.bpd_num_repeats)
    indices, repeats = rows % count, rows // count
    run = devices.ImageMap(
        bits, devices.fitting_batch(min(options.batch_size, len(rows))), "eval.batch_size"
    )

    def measured(chosen: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        asked = indices[chosen]
        yield from run(trained.params, asked, (images[asked], repeats[chosen]), f"{kind.unit}/dim")

    fields = {name: value for name, value in options.items() if name.startswith("bpd_")}
    sections = {name: config[name].to_dict() for name in ("data", "model", "training")}
    made = store.open(
        what=f"{kind.unit}/dim",
        config={**sections, "eval": {**fields, "seed": options.seed}},
        images=dataset.fingerprint,
    )
    found = list(made.batches(rows, run.batch_size, measured))
    result = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    failed = ~result.pop("ok")
    tolerances = ("eval.bpd_rtol", options.bpd_rtol), ("eval.bpd_atol", options.bpd_atol)
    errors.refuse(
        np.unique(indices[failed]),
        errors.gave_up(options.bpd_solver, result["nfe"][failed], *tolerances),
    )
    per_image = {name: value.reshape(-1, count).mean(0) for name, value in result.items()}
    name = f"{kind.unit}_per_dim"
    if devices.is_primary():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", **per_image)
    results = {
        "likelihood_unit": kind.unit,
        name: float(per_image[kind.unit].mean()),
        f"{name}_stderr": standard_error(per_image[kind.unit]),
        f"{name}_split": options.bpd_dataset,
        f"{name}_images": count,
        f"{name}_repeats": options.bpd_num_repeats,
        f"{name}_nfe": float(per_image["nfe"].mean()),
        "likelihood_of": kind.described,
        "likelihood_seconds": made.seconds,
    }
    if "bound" in per_image:
        results |= {
            f"{name}_bound": float(per_image["bound"].mean()),
            f"{name}_bound_stderr": standard_error(per_image["bound"]),
            f"{name}_bound_draws": options.bpd_bound_draws,
        }
    return results


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values [n]; not a number if there is only one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan
