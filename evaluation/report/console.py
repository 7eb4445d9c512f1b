"""The report as rows of text, for the console."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.metrics.frechet import Gaussian
from evaluation.metrics.statistics import Origin, Statistics
from evaluation.report import page, quantities

Results = dict[str, Any]


def short(value: float) -> str:
    """Two decimals, or two digits of what is smaller, as distances between points are."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def table(results: Results) -> list[tuple[str, str]]:
    """The rows that are printed: every number with what it was made from."""
    rows = [("checkpoint", f"step {results['step']}, {results['weights']}, seed {results['seed']}")]
    if "frechet_distance" in results:
        size = results["frechet_samples_real"]
        rows += [
            (
                "Fréchet distance",
                f"{short(results['frechet_distance'])}  "
                f"({results['num_samples']} generated, {results['num_train']} train)",
            ),
            (
                "  generated to train",
                f"{short(results['frechet_distance_matched'])} ± "
                f"{short(results['frechet_distance_matched_std'])}  ({size} and {size}, 10 draws)",
            ),
            (
                "  train to train",
                f"{short(results['frechet_distance_real'])} ± "
                f"{short(results['frechet_distance_real_std'])}  ({size} and {size}, 10 draws)",
            ),
            ("  measured on", results["features"]),
        ]
        if "class_shares" in results:
            rows.append(("rarest class", f"{100 * min(results['class_shares']):.1f} % of samples"))
        if "sliced_wasserstein" in results:
            rows += [
                (
                    "sliced Wasserstein",
                    f"{results['sliced_wasserstein']:.4f}  (generated to train)",
                ),
                (
                    "  test to train",
                    f"{results['sliced_wasserstein_real']:.4f}  ({results['num_test']} test)",
                ),
            ]
    if "num_samples" in results:
        rows += metric_rows(results)
        rows += seed_rows(results)
        rows.append(
            (
                "evaluations",
                f"{results['nfe']:.0f} NFE per sample, {results['sampling_seconds']:.0f} s",
            )
        )
    if "likelihood_unit" in results:
        rows += likelihood_rows(results, results["likelihood_unit"])
    if "loss" in results:
        rows.append(
            (
                "loss",
                f"{results['loss']:.4f}  ({results['loss_images']} test {results['examples']})",
            )
        )
    return rows


def seed_rows(results: Results) -> list[tuple[str, str]]:
    """Those of the spread over sampling seeds."""
    spreads = dict(results.get("over_seeds", {"seeds": []}))
    seeds, known = spreads.pop("seeds"), quantities.found(results)
    rows = []
    for name, spread in spreads.items():
        digits = page.decimals(spread["mean"], known[name].digits)
        value = f"{spread['mean']:.{digits}f} ± {spread['std']:.{digits}f}"
        title = f"{known[name].title}, {len(seeds)} seeds"
        rows.append((title, f"{value}  (seeds {seeds[0]} to {seeds[-1]})"))
    return rows


def likelihood_rows(results: Results, unit: str) -> list[tuple[str, str]]:
    """Those of the likelihood, in bits or nats per dimension, and of its bound."""
    name = f"{unit}_per_dim"
    rows = [
        (
            f"{unit}/dim",
            f"{results[name]:.3f} ± {results[f'{name}_stderr']:.3f}  "
            f"({results[f'{name}_images']} {results[f'{name}_split']} {results['examples']}, "
            f"{results['likelihood_of']}, {results[f'{name}_nfe']:.0f} NFE, "
            f"{results['likelihood_seconds']:.0f} s)",
        )
    ]
    if f"{name}_bound" in results:
        rows.append(
            (
                "  bound",
                f"{results[f'{name}_bound']:.3f} ± {results[f'{name}_bound_stderr']:.3f}  "
                f"(variational, {results[f'{name}_bound_draws']} draws per image)",
            )
        )
    return rows


def comparison(runs: dict[str, Results]) -> tuple[list[list[Any]], list[str]]:
    """Rows and header of the table of several runs: the numbers that any of them has."""
    titles = {
        "step": "step",
        "nfe": "NFE",
        "fid": "FID",
        "frechet_distance": "Fréchet distance",
        "inception_score": "Inception Score",
        "bits_per_dim": "bits/dim",
        "loss": "loss",
    }
    names = [name for name in titles if any(name in run for run in runs.values())]
    rows = [[key, *(run.get(name, "") for name in names)] for key, run in runs.items()]
    return rows, ["evaluation", *(titles[name] for name in names)]


def statistics_rows(found: Statistics) -> list[tuple[str, str]]:
    """What is printed about statistics."""
    origin = found.origin
    images = f"{origin.images} images" if origin.images else "of an unknown number of images"
    rows = [
        ("statistics", f"{found.path} ({found.form}), SHA-256 {found.sha256[:16]}"),
        ("  made from", f"{images} of {origin.dataset or 'an unknown data set'}"),
    ]
    if origin.network:
        network = f"{origin.network}, weights {origin.weights_sha256[:8]}, {origin.resize} resize"
        rows.append(("  made by", network))
    return rows


def metric_rows(results: Results) -> list[tuple[str, str]]:
    """What is printed of a judge's results, or of `own_features`: every number with its making."""
    kinds = {"": "", "classifier_": " (classifier)", "coordinates_": " (coordinates)"}
    found = [row for prefix, note in kinds.items() for row in _number_rows(results, prefix, note)]
    if "statistics" in results:
        stored = dict(results["statistics"])
        path, sha256, form = (stored.pop(name) for name in ("path", "sha256", "form"))
        empty = Gaussian(np.zeros(0), np.zeros((0, 0)))
        real = Statistics(empty, None, None, Origin(**stored), form, path, sha256)
        found += [("  measured on", results["features"]), *statistics_rows(real)]
    return found


def _number_rows(results: Results, prefix: str, note: str) -> list[tuple[str, str]]:
    """The numbers whose names begin with `prefix`."""

    def of(name: str) -> Any:
        return results[f"{prefix}{name}"]

    generated = f"{results['num_samples']} generated"
    both = f"{generated}, {results.get('real_features') or results.get('num_train')} real"
    few = ", fewer than 50000 raise it" if results["num_samples"] < 50000 else ""
    found = []
    if f"{prefix}fid" in results:
        error, draws = "", ""
        if f"{prefix}fid_stderr" in results:
            error = f" ± {of('fid_stderr'):.3f}"
            draws = f", {of('fid_stderr_draws')} bootstrap draws"
        found.append((f"FID{note}", f"{of('fid'):.3f}{error}  ({generated}{few}{draws})"))
    if f"{prefix}fid_infinity" in results:
        sizes = of("fid_infinity_sizes")
        line = f"line through {len(sizes)} subsets of {sizes[0]} to {sizes[-1]}"
        found.append((f"FID-infinity{note}", f"{of('fid_infinity'):.3f}  ({line})"))
    if f"{prefix}sfid" in results:
        found.append((f"sFID{note}", f"{of('sfid'):.3f}  ({generated}{few})"))
    if f"{prefix}inception_score" in results:
        score = f"{of('inception_score'):.3f} ± {of('inception_score_std'):.3f}"
        splits = f"{of('inception_score_splits')} splits"
        found.append((f"Inception Score{note}", f"{score}  ({generated}, {splits})"))
    if f"{prefix}kid" in results:
        drawn = f"{of('kid_subsets')} subsets of {of('kid_subset_size')}"
        value = f"{of('kid'):.5f} ± {of('kid_std'):.5f}"
        found.append((f"KID{note}", f"{value}  ({both}, {drawn})"))
    for names in (("precision", "recall"), ("density", "coverage")):
        if f"{prefix}{names[0]}" in results:
            first, second = (of(name) for name in names)
            k = 3 if names[0] == "precision" else 5
            title = f"{names[0]}, {names[1]}{note}"
            found.append((title, f"{first:.4f}, {second:.4f}  ({both}, k = {k})"))
    return found
