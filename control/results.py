"""Results of controlled generation: metrics, the picture, the files and the table."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

import data
from control.problem import Problem
from data import transforms
from evaluation.metrics import classifier, fidelity
from generation import answer_figures, value_figures
from runtime import figures, files
from runtime.experiment import Pixels

Arrays = dict[str, np.ndarray]  # of all images, [n, ...]


def recognition(
    target_classes: np.ndarray, images: np.ndarray, dataset: Callable[[str], data.Dataset]
) -> tuple[Arrays, dict[str, Any]]:
    """The share of the images [n, ...] that are taken for what they should be, by a classifier.

    It is `metrics.classifier`, which is trained on the data set alone and knows nothing of the
    network or its guide. Images whose target class is -1 are not counted.

    Returns:
      "predicted" [n] and the metrics; both are empty where there is no data set to learn from.
    """
    try:
        judge = classifier.load(dataset("train"), dataset("test"))
    except (FileNotFoundError, ValueError) as error:  # the images are there, and are to be kept
        print(f"the images are not classified: {error}")
        return {}, {}
    predicted, targets = judge.predict(images), target_classes.reshape(-1)
    correct = (predicted == targets)[targets >= 0]
    return {"predicted": predicted}, {
        "classified_as_asked": float(correct.mean()),
        "classified": len(correct),
        "classifier": judge.label,
        "classifier_accuracy": judge.accuracy,
    }


def nearness(problem: Problem, arrays: Arrays, pixels: Pixels) -> dict[str, float]:
    """Mean PSNR and SSIM of images to their originals, or `closeness` of real-valued examples."""
    originals = problem.columns_after["original"]
    if not pixels.levels:
        shape = (len(originals), len(problem.variants), *originals.shape[1:])
        x, truth = arrays["x"].reshape(shape), pixels.to_model(originals)
        unknown = np.ones(truth.shape, bool)
        if "mask" in problem.conditions:
            mask = problem.conditions["mask"]
            mask = mask.reshape(*mask.shape, *[1] * (truth.ndim - mask.ndim))
            unknown &= np.broadcast_to(mask, truth.shape) == 0
        return closeness(x, truth, unknown)
    return likeness(arrays["image"], originals.repeat(len(problem.variants), 0), pixels.levels)


def closeness(x: np.ndarray, originals: np.ndarray, unknown: np.ndarray) -> dict[str, float]:
    """How variants [n, V, ...] spread around their originals [n, ...], in standard units.

    Of the entries that are `unknown` [n, ...]: the root mean square error of the variants' mean;
    the mean continuous ranked probability score, E|X - y| - E|X - X'| / 2 over variants X and X'
    that differ (Gneiting and Raftery 2007), lower is better; and the share of originals within the
    variants' middle 80 %. With one variant the last two say nothing and are left out.
    """
    count = x.shape[1]
    numbers = {"rmse": float(np.sqrt(np.square(x.mean(1) - originals)[unknown].mean()))}
    if count == 1:
        return numbers
    ranked = np.sort(x, axis=1)
    weights = 2.0 * np.arange(1, count + 1) - count - 1  # E|X - X'| by order statistics
    spread = np.einsum("nv...,v->n...", ranked, weights) / (count * (count - 1))
    score = np.abs(x - originals[:, None]).mean(1) - spread
    low, high = np.quantile(x, [0.1, 0.9], axis=1)
    within = (low <= originals) & (originals <= high)
    return numbers | {
        "crps": float(score[unknown].mean()),
        "coverage_80": float(within[unknown].mean()),
    }


def likeness(images: np.ndarray, originals: np.ndarray, levels: int) -> dict[str, float]:
    """Mean PSNR and SSIM of images to their originals, both [n, H, W, C].

    Empty, with a line that says why, where the library that compares them is not installed.
    """
    try:
        return {
            "psnr": float(fidelity.psnr(images, originals, levels).mean()),
            "ssim": float(fidelity.ssim(images, originals, levels).mean()),
        }
    except ImportError as error:  # the images are there, and are to be kept
        print(f"PSNR and SSIM are left out: {error}")
        return {}


def write(
    folder: pathlib.Path, problem: Problem, arrays: Arrays, pixels: Pixels, results: dict[str, Any]
) -> None:
    """Writes `grid.png`, `results.npz` and `results.json`, each whole or not at all."""
    with files.whole(folder / "grid.png") as path:
        if pixels.levels:
            pictures, labels = grid(problem, arrays["image"])
            flat = transforms.to_display(pictures.reshape(-1, *pictures.shape[2:]), pixels.levels)
            figures.save_grid(path, np.asarray(flat), pictures.shape[1], labels=labels)
        else:
            value_figures.save(path, value_grid(problem, arrays["image"]))
    stored: dict[str, Any] = {**arrays, **problem.conditions}
    with files.whole(folder / "results.npz") as path:
        np.savez(path, **stored)
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in results.items()
    }
    files.write_json(folder / "results.json", finite)


def grid(problem: Problem, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The pictures [n, columns, H, W, C] of n inputs, and the labels below them, row by row."""
    count, shape = len(problem.variants), images.shape[1:]
    variants = images.reshape(-1, count, *shape).swapaxes(0, 1)
    columns = [*problem.columns_before.values(), *variants, *problem.columns_after.values()]
    names = [*problem.columns_before, *problem.variants, *problem.columns_after]
    pictures = np.stack(columns, 1)
    if problem.titles is not None:
        left = len(names) // 2
        right = len(names) - left - 1
        labels = [text for t in problem.titles for text in (*[""] * left, t, *[""] * right)]
    elif "class" in problem.conditions:
        labels = [f"class {y}" for y in problem.conditions["class"].repeat(count)]
    else:
        labels = names * variants.shape[1]
    return pictures, labels


def value_grid(problem: Problem, values: np.ndarray) -> np.ndarray:
    """The picture of real-valued answers, see `answer_figures.answers`."""
    originals, measured = problem.columns_after["original"], problem.columns_before["measured"]
    shape = (len(originals), len(problem.variants), *originals.shape[1:])
    return answer_figures.answers(originals, measured, values.reshape(shape))


def table(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table on the console."""
    seed = results["control"]["seed"]
    rows = [
        ("task", f"{results['task']}, by {results['method']}"),
        ("checkpoint", f"step {results['step']}, {results['weights']}, seed {seed}"),
        ("evaluations", f"{results['nfe']:.0f} NFE per image, {results['seconds']:.0f} s"),
    ]
    if "guide" in results:
        rows.append(("guide", results["guide"]))
    if "classified_as_asked" in results:
        accuracy = 100 * results["classifier_accuracy"]
        share = f"{100 * results['classified_as_asked']:.1f} % of {results['classified']}"
        rows.append(
            ("as asked", f"{share} (by a classifier right on {accuracy:.1f} % of test images)")
        )
    if "measurement_rmse" in results:
        rows.append(("measurement", f"{results['measurement_rmse']:.2g} off (root mean square)"))
    if "reward" in results:
        rows.append(("reward", f"{results['reward']:.4g} (mean)"))
    if "psnr" in results:
        rows.append(
            ("to the original", f"PSNR {results['psnr']:.2f} dB, SSIM {results['ssim']:.3f}")
        )
    if "rmse" in results:
        words = f"RMSE {results['rmse']:.3f}"
        if "crps" in results:
            words += f", CRPS {results['crps']:.3f}"
            words += f", {100 * results['coverage_80']:.0f} % within the middle 80 %"
        rows.append(("to the original", f"{words} (in standard deviations of the data)"))
    return rows
