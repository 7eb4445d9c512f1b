"""Evaluation: Fréchet distance, bits per dimension and loss of a checkpoint, with their origin."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

import data
import generate
import likelihood
import parallel
import reports
import train
from data import transforms
from metrics import classifier, frechet

Results = dict[str, Any]


def frechet_results(
    config: ml_collections.ConfigDict,
    parts: train.Parts,
    trained: generate.Trained,
    folder: pathlib.Path,
) -> Results:
    """Draws `eval.num_samples` images, saves pictures of them, and compares their features.

    The features are those of a classifier of the data set itself. Beside the distance between all
    generated and all training images stand two of equal sample size: between disjoint halves of
    the training images (what a perfect generator would get), and between as many generated and
    training images.
    """
    real = data.from_config(config, "train")
    extractor = classifier.load(real, data.from_config(config, "test"))
    began = time.monotonic()
    images: list[np.ndarray] = []
    nfe: list[np.ndarray] = []
    generator = generate.Generator(config, parts)
    for _, drawn in generator(trained.params, np.arange(config.eval.num_samples)):
        if not images and parallel.is_primary():
            generate.save_pictures(folder, "samples", drawn, parts.levels)
        images.append(drawn["image"])
        nfe.append(drawn["nfe"])
    seconds = time.monotonic() - began

    generated = np.concatenate(images)
    real_images, _ = real.take(np.arange(len(real)))
    found, expected = extractor.features(generated), extractor.features(real_images)
    size = min(len(expected) // 2, len(found))
    halves = frechet.split_distance(expected, size=size, seed=config.eval.seed)
    matched = frechet.split_distance(found, size=size, seed=config.eval.seed, other=expected)
    return {
        "frechet_distance": frechet.frechet_distance(
            frechet.Moments.of(found), frechet.Moments.of(expected)
        ),
        "frechet_distance_matched": matched.mean,
        "frechet_distance_real": halves.mean,
        "frechet_distance_real_std": halves.std,
        "frechet_distance_matched_std": matched.std,
        "frechet_samples_real": size,
        "features": extractor.label,
        "num_samples": len(generated),
        "num_train": len(real),
        "class_shares": extractor.class_shares(generated).round(4).tolist(),
        "nfe": float(np.mean(np.concatenate(nfe))),
        "sampling_seconds": seconds,
    }


def likelihood_results(
    config: ml_collections.ConfigDict,
    parts: train.Parts,
    trained: generate.Trained,
    folder: pathlib.Path,
) -> Results:
    """Bits per dimension of uniformly dequantised images: mean and standard error over images.

    An image's own value is its mean over `eval.bpd_num_repeats` draws of dequantisation noise and
    probes; `bits_per_dim.npz` in `folder` holds it with its NFE and, where `eval.bpd_bound` asks
    for it, the variational bound on the same dequantised images.

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
    centered = config.data.centered

    def bits(params: Any, indices: jax.Array, drawn: Any) -> dict[str, jax.Array]:
        images, repeats = drawn
        keys = jax.vmap(jax.random.fold_in)(parallel.image_keys(seed_key, indices), repeats)
        noise_keys, probe_keys, bound_keys = jax.vmap(lambda key: jax.random.split(key, 3), 0, 1)(
            keys
        )
        x = transforms.uniform_dequantize(images, noise_keys, dataset.levels, centered)
        score_fn = generate.score_from_params(config, parts, params)
        per_dim = functools.partial(
            likelihood.bits_per_dim,
            x_shape=parts.image_shape,
            levels=dataset.levels,
            scale=2.0 if centered else 1.0,
        )
        found = compute(parts.sde, score_fn, x, probe_keys)
        values = {"bits": per_dim(found.logp), "nfe": found.nfe, "ok": found.ok}
        if bound is not None:
            values["bound"] = per_dim(bound(parts.sde, score_fn, x, bound_keys))
        return values

    began = time.monotonic()
    rows = np.arange(count * options.bpd_num_repeats)
    indices, repeats = rows % count, rows // count
    run = parallel.ImageMap(
        bits, parallel.fitting_batch(min(options.batch_size, len(rows))), "eval.batch_size"
    )
    found = [
        result for _, result in run(trained.params, indices, (images[indices], repeats), "bits/dim")
    ]
    result = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    failed = ~result.pop("ok")
    tolerances = ("eval.bpd_rtol", options.bpd_rtol), ("eval.bpd_atol", options.bpd_atol)
    generate.refuse(
        np.unique(indices[failed]),
        generate.gave_up(options.bpd_solver, result["nfe"][failed], *tolerances),
    )
    per_image = {name: value.reshape(-1, count).mean(0) for name, value in result.items()}
    if parallel.is_primary():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "bits_per_dim.npz", **per_image)
    results = {
        "bits_per_dim": float(per_image["bits"].mean()),
        "bits_per_dim_stderr": standard_error(per_image["bits"]),
        "bits_per_dim_split": options.bpd_dataset,
        "bits_per_dim_images": count,
        "bits_per_dim_repeats": options.bpd_num_repeats,
        "bits_per_dim_nfe": float(per_image["nfe"].mean()),
        "dequantization": "uniform",
        "levels": dataset.levels,
        "likelihood_seconds": time.monotonic() - began,
    }
    if "bound" in per_image:
        results |= {
            "bits_per_dim_bound": float(per_image["bound"].mean()),
            "bits_per_dim_bound_stderr": standard_error(per_image["bound"]),
            "bits_per_dim_bound_draws": options.bpd_bound_draws,
        }
    return results


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values [n]; not a number if there is only one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan


def table(results: Results) -> list[tuple[str, str]]:
    """The rows that are printed: every number with what it was made from."""
    rows = [("checkpoint", f"step {results['step']}, EMA weights, seed {results['seed']}")]
    if "frechet_distance" in results:
        shares = results["class_shares"]
        size = results["frechet_samples_real"]
        rows += [
            (
                "Fréchet distance",
                f"{results['frechet_distance']:.2f}  "
                f"({results['num_samples']} generated, {results['num_train']} train)",
            ),
            (
                "  generated to train",
                f"{results['frechet_distance_matched']:.2f} ± "
                f"{results['frechet_distance_matched_std']:.2f}  ({size} and {size}, 10 draws)",
            ),
            (
                "  train to train",
                f"{results['frechet_distance_real']:.2f} ± "
                f"{results['frechet_distance_real_std']:.2f}  ({size} and {size}, 10 draws)",
            ),
            ("  measured on", results["features"]),
            ("rarest class", f"{100 * min(shares):.1f} % of samples"),
            (
                "evaluations",
                f"{results['nfe']:.0f} NFE per sample, {results['sampling_seconds']:.0f} s",
            ),
        ]
    if "bits_per_dim" in results:
        rows.append(
            (
                "bits/dim",
                f"{results['bits_per_dim']:.3f} ± {results['bits_per_dim_stderr']:.3f}  "
                f"({results['bits_per_dim_images']} {results['bits_per_dim_split']} images, "
                f"{results['levels']} levels, {results['dequantization']} dequantisation, "
                f"{results['bits_per_dim_nfe']:.0f} NFE, {results['likelihood_seconds']:.0f} s)",
            )
        )
    if "bits_per_dim_bound" in results:
        rows.append(
            (
                "  bound",
                f"{results['bits_per_dim_bound']:.3f} ± "
                f"{results['bits_per_dim_bound_stderr']:.3f}  "
                f"(variational, {results['bits_per_dim_bound_draws']} draws per image)",
            )
        )
    if "loss" in results:
        rows.append(("loss", f"{results['loss']:.4f}  ({results['loss_images']} test images)"))
    return rows


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str) -> Results:
    """Evaluates one checkpoint; writes pictures and `results.json` in `<workdir>/<eval_folder>`.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a config that cannot be served, or that is not the checkpoint's; samples or
        likelihoods that failed.
    """
    if config.eval.enable_bpd and not config.training.continuous:
        raise ValueError(
            "eval.enable_bpd is True, but the likelihood asks the network at all times, and this "
            "one was trained with discrete labels (training.continuous is False)"
        )
    parts = train.build(config)
    trained = generate.restore(config, parts, workdir)
    folder = workdir / eval_folder
    results: Results = {
        "step": trained.step,
        "checkpoint": config.eval.checkpoint,
        "weights": "EMA",
        "dataset": config.data.dataset,
        "seed": config.sampling.seed,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "diffrax")},
    }
    if config.eval.enable_loss:
        held_out = train.HeldOutLoss(config, parts)
        results |= {"loss": held_out(trained.params), "loss_images": len(held_out.images)}
    if config.eval.enable_sampling:
        results |= frechet_results(config, parts, trained, folder)
    if config.eval.enable_bpd:
        results |= likelihood_results(config, parts, trained, folder)
    if parallel.is_primary():
        reports.write_json(folder / "results.json", results)
        print(reports.table(table(results)))
        print(f"pictures and results.json are in {folder}")
    return results
