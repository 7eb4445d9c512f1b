"""Likelihoods of a data set: bits per dimension of images, nats of points."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import data
import likelihood
from evaluation import batch_cache
from evaluation.metrics.calibration import calibration
from generation import examples
from runtime import devices, errors, experiment, figures, files
from runtime.arrays import FLAG, NUMBER, Row
from runtime.workdir import Trained
from sde_lib import SDE

Results = dict[str, Any]
Arrays = dict[str, np.ndarray]
BOUND_PICTURE = "bound_by_noise.png"


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
    theirs are nats (`nats_per_dim.npz`). `eval.bpd_bound_levels` has the bound's integral in parts,
    which `bound_by_noise.png` shows.

    Raises:
      ValueError: the solver gave up on an image; says which.
    """
    options, kind = config.eval, examples.kind_of(parts.pixels)
    dataset = parts.dataset(options.bpd_dataset)
    count = min(options.bpd_num_images or len(dataset), len(dataset))
    shards = shards_of(config, parts, dataset, store)
    values = values_of_rows(config, parts, trained, dataset, count, shards)
    per_image = {n: v.reshape(-1, count, *v.shape[1:]).mean(0) for n, v in values.items()}
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
    if "bound_parts" in per_image:
        by_noise = bound_by_noise(parts.sde, per_image, kind.unit)
        results[f"{name}_bound_by_noise"] = by_noise
        if devices.is_primary():
            save_bound_by_noise(folder / BOUND_PICTURE, by_noise, kind.unit)
    if options.calibration_images:
        estimates = per_image[kind.unit]
        results |= calibration_results(config, parts, trained, dataset, estimates, store)
    return results


def calibration_results(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    trained: Trained,
    dataset: data.Dataset,
    estimates: np.ndarray,
    store: batch_cache.Store,
) -> Results:
    """Estimated likelihoods against those by the exact trace, on the first images.

    Both are of the same dequantised images, so that what differs is the divergence alone, and the
    steps that the solver takes for it.

    Args:
      estimates: [n] per dimension, as `likelihood_results` has them.

    Raises:
      ValueError: the solver gave up on an image; says which.
    """
    unit = examples.kind_of(parts.pixels).unit
    by_trace = with_exact_trace(config)
    count = min(by_trace.eval.bpd_num_images, len(estimates))
    shards = shards_of(by_trace, parts, dataset, store)
    values = values_of_rows(by_trace, parts, trained, dataset, count, shards)
    exact = values[unit].reshape(-1, count).mean(0)
    result = calibration(estimates[:count], exact)
    name = f"{unit}_per_dim_calibration"
    return {
        name: result.difference,
        f"{name}_stderr": result.stderr,
        f"{name}_spread": result.spread,
        f"{name}_exact": float(exact.mean()),
        f"{name}_images": count,
        f"{name}_seconds": shards.seconds,
    } | ({f"{name}_z": result.z} if math.isfinite(result.z) else {})


def with_exact_trace(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of the likelihoods that calibrate those of `config`."""
    exact = config.copy_and_resolve_references()
    exact.eval.update(
        {
            "bpd_probe": "exact",
            "bpd_num_probes": 1,
            "bpd_num_images": config.eval.calibration_images,
            "bpd_bound": False,
        }
    )
    return exact


def refuse(config: ml_collections.ConfigDict) -> None:
    """Refuses likelihoods that cannot be computed, before anything is.

    Raises:
      ValueError: says what, and what would be valid.
    """
    likelihood.from_config(config)
    options = config.eval
    if options.calibration_images and options.bpd_probe == "exact":
        raise ValueError(
            f"eval.calibration_images is {options.calibration_images}, but eval.bpd_probe is "
            "'exact', which needs no calibration; it is of 'rademacher' and 'gaussian'"
        )
    if options.bpd_bound:
        likelihood.bound_from_config(config)


def bound_by_noise(sde: SDE, per_image: Arrays, unit: str) -> Results:
    """The bound between noise levels: the sum of its parts and its ends is the bound.

    To `likelihood.Bound`'s integrand over log-SNR half a nat is added for each dimension, and taken
    off the ends. So it is half the mean squared error of the network's estimate of the noise, as
    the diffusion loss of Kingma et al. 2021 (arXiv:2107.00630): 0 where noise hides the data, and
    half a nat where it hides below them.

    Returns:
      "log_snr" [n + 1], of the levels, falling; "parts" [n] in the unit per dimension,
      "parts_stderr" [n] over images; "ends", what no level has a part in.
    """
    parts = per_image["bound_parts"]
    levels = np.asarray(likelihood.bound_levels(sde, parts.shape[1]), float)
    half = 0.5 * (levels[:-1] - levels[1:]) / (math.log(2.0) if unit == "bits" else 1.0)
    return {
        "log_snr": levels.tolist(),
        "parts": (parts.mean(0) + half).tolist(),
        "parts_stderr": [standard_error(part) for part in parts.T],
        "ends": float(per_image["bound_ends"].mean() - half.sum()),
    }


def save_bound_by_noise(path: pathlib.Path, by_noise: Results, unit: str) -> None:
    """Draws the bound's integrand over log-SNR, whose area is the sum of its parts."""
    levels = np.array(by_noise["log_snr"])
    density = np.array(by_noise["parts"]) / (levels[:-1] - levels[1:])
    half = 0.5 / (math.log(2.0) if unit == "bits" else 1.0)
    curves: dict[str, tuple[Any, Any]] = {
        "the network": (np.repeat(levels, 2)[1:-1], np.repeat(density, 2)),
        "no estimate of the noise": (levels[[0, -1]], [half, half]),
    }
    with files.whole(path) as temporary:
        figures.plot_curves(
            temporary,
            curves,
            "log-SNR, from noise to data",
            f"{unit}/dim for a unit of log-SNR",
            title="Integrand of the variational bound",
        )


def shards_of(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    dataset: data.Dataset,
    store: batch_cache.Store,
) -> batch_cache.Shards:
    """The finished batches of likelihoods."""
    unit = examples.kind_of(parts.pixels).unit
    row: dict[str, Row] = {unit: NUMBER, "nfe": NUMBER, "ok": FLAG}
    if config.eval.bpd_bound:
        row |= {"bound": NUMBER}
        levels = config.eval.bpd_bound_levels
        row |= {"bound_ends": NUMBER, "bound_parts": ("f", (levels,))} if levels else {}
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
    the "bound", with its "bound_parts" [B, n] by noise level and its "bound_ends". Random numbers
    depend on an image's number and its repeat alone.
    """
    compute = likelihood.from_config(config)
    bound = likelihood.bound_from_config(config) if config.eval.bpd_bound else None
    num_levels = config.eval.bpd_bound_levels
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
            found = bound(parts.sde, score_fn, x, bound_keys)
            values["bound"] = per_dim(found.logp)
            if num_levels:
                pieces = per_dim(-found.parts(num_levels)) - per_dim(jnp.zeros(()))
                values |= {"bound_ends": per_dim(found.ends), "bound_parts": pieces.T}
        return values

    return likelihoods


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values [n]; not a number if there is only one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan
