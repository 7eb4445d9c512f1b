"""Evaluation: Fréchet distance, bits per dimension and loss of a checkpoint, with their origin."""

from __future__ import annotations

import importlib.metadata
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
            generate.save_pictures(folder, "samples", drawn, parts.dataset.levels)
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
    config: ml_collections.ConfigDict, parts: train.Parts, trained: generate.Trained
) -> Results:
    """Bits per dimension of uniformly dequantised images: mean and standard error over images.

    Raises:
      ValueError: the solver gave up on an image; says which.
    """
    options = config.eval
    dataset = data.from_config(config, options.bpd_dataset)
    count = min(options.bpd_num_images or len(dataset), len(dataset))
    images, _ = dataset.take(np.arange(count))
    compute = likelihood.from_config(config)
    seed_key = jax.random.key(options.seed)
    centered = config.data.centered

    def bits(params: Any, indices: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
        keys = parallel.image_keys(seed_key, indices)
        dequantize_keys, probe_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = transforms.uniform_dequantize(images, dequantize_keys, dataset.levels, centered)
        score_fn = generate.score_from_params(config, parts, params)
        found = compute(parts.sde, score_fn, x, probe_keys)
        per_dim = likelihood.bits_per_dim(
            found.logp, parts.image_shape, dataset.levels, 2.0 if centered else 1.0
        )
        return {"bits": per_dim, "nfe": found.nfe, "ok": found.ok}

    began = time.monotonic()
    batch = parallel.fitting_batch(min(options.batch_size, count))
    run = parallel.ImageMap(bits, batch, "eval.batch_size")
    found = [result for _, result in run(trained.params, np.arange(count), images, "bits/dim")]
    result = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    generate.refuse(
        np.flatnonzero(~result["ok"]),
        "of the likelihood were not solved; loosen eval.bpd_rtol and eval.bpd_atol",
    )
    return {
        "bits_per_dim": float(result["bits"].mean()),
        "bits_per_dim_stderr": float(result["bits"].std(ddof=1) / np.sqrt(count)),
        "bits_per_dim_split": options.bpd_dataset,
        "bits_per_dim_images": count,
        "bits_per_dim_nfe": float(result["nfe"].mean()),
        "dequantization": "uniform",
        "levels": dataset.levels,
        "likelihood_seconds": time.monotonic() - began,
    }


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
    parts = train.build(config, "test")
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
        results |= likelihood_results(config, parts, trained)
    if parallel.is_primary():
        reports.write_json(folder / "results.json", results)
        print(reports.table(table(results)))
        print(f"pictures and results.json are in {folder}")
    return results
