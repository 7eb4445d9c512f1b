"""Memorisation: neighbours by their definition, shares that are known, pairs in the report."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import data
from evaluation import evaluate, memorisation
from evaluation.metrics.memorisation import nearest
from evaluation.report import console, content, quantities
from runtime import experiment
from tests import tiny
from tests.test_report import load
from tests.test_report import results as report_results


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, data.Dataset]:
    folder = tmp_path_factory.mktemp("digits")
    return {split: data.load("digits", split, folder) for split in ("train", "test")}


def test_neighbours_by_their_definition_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Integers far from 0, whose distances are exact; the blocks are seen once, in order."""
    rng = np.random.default_rng(0)
    samples, training = rng.integers(0, 256, (37, 4, 3)), rng.integers(0, 256, (50, 4, 3))
    squares = ((samples[:, None] - training[None]) ** 2).sum((2, 3))
    order = np.argsort(squares, axis=1)[:, :2]
    expected = np.sqrt(np.take_along_axis(squares, order, axis=1) / 12)
    monkeypatch.setattr("evaluation.metrics.memorisation._BLOCK", 10)
    for cuts in ([], [1], [1, 2, 25]):
        found = nearest(samples.astype(np.uint8), iter(np.split(training, cuts)))
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_allclose(found.distances, expected, rtol=1e-15)


def test_a_sample_is_memorised_up_to_a_quarter_of_the_way() -> None:
    """On a line of integers, x = n + e has the ratio e / (1 - e), which is 1/3 at e = 1/4."""
    line = np.arange(20.0)[:, None]
    for away, memorised in ((0.0, 1.0), (0.249, 1.0), (0.251, 0.0), (0.5, 0.0)):
        found = nearest(line[3:8] + away, [line])
        assert found.memorised == memorised
        np.testing.assert_allclose(found.ratios, away / (1 - away), atol=1e-12)
    mixed = nearest(np.concatenate([line[:1] + 0.1, line[:3] + 0.4]), [line[::2], line[1::2]])
    assert mixed.memorised == 0.25


def test_what_is_there_twice_is_memorised_as_a_copy_alone() -> None:
    twice = np.repeat(np.arange(4.0), 2)[:, None]
    assert nearest(twice[:3], [twice]).memorised == 1.0
    assert nearest(twice[:3] + 0.01, [twice]).memorised == 0.0


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ([np.zeros((1, 2))], "of 1 training"),
        ([np.zeros((4, 3))], "of 3 entries"),
        ([np.full((4, 2), np.nan)], "not finite"),
    ],
)
def test_what_has_no_neighbours_is_refused(training: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nearest(np.zeros((2, 2)), training)


def images_of(digits: dict[str, data.Dataset], **changes: Any) -> memorisation.NearestImages:
    config = tiny.config(eval__memorisation_images=60, eval__num_samples=64, **changes)
    parts = SimpleNamespace(levels=17, dataset=digits.__getitem__, dataset_name="digits")
    return memorisation.NearestImages(parts, config.eval)  # type: ignore[arg-type]


def test_copies_among_samples_are_counted_and_drawn(
    digits: dict[str, data.Dataset], tmp_path: pathlib.Path
) -> None:
    """A third of the samples are training images with one level more somewhere, others are test
    images; what comes after the first 60 does not count, and the judge sees all."""
    copies = digits["train"].images[100:120].copy()
    copies[:, 4, 4] = np.where(copies[:, 4, 4] > 0, copies[:, 4, 4] - 1, 1)
    images = np.concatenate([copies, digits["test"].images[:40], digits["train"].images[:4]])
    watched = images_of(digits)
    batches = [{"image": part} for part in np.split(images, [25, 50])]
    seen = list(watched.watch(iter(batches)))
    assert all(a is b for a, b in zip(seen, batches, strict=True))
    results = watched.results(tmp_path)
    assert results["memorised_pixels"] == pytest.approx(20 / 60)
    assert results["memorised_pixels_real"] == 0.0
    stored = np.load(tmp_path / "nearest.npz")
    np.testing.assert_array_equal(stored["index"][:20, 0], np.arange(100, 120))
    np.testing.assert_allclose(stored["distance"][:20, 0], 1 / 16 / 8, rtol=1e-6)
    assert results["nearest_pixels"] < results["nearest_pixels_real"]
    assert (tmp_path / "nearest.png").stat().st_size > 1000


def test_the_report_says_what_was_compared_with_what() -> None:
    config = load("vp/cifar10_ddpmpp_continuous")
    facts = {"dataset": "cifar10/train", "fingerprint": "cifar10/train/50000/0badcafe"}
    results = report_results(
        config,
        memorised_pixels=0.01, memorised_pixels_real=0.0, nearest_pixels=0.1, memorised=0.02,
        nearest_pixels_real=0.11, memorisation_images=1000, memorisation_real_images=900,
        memorisation_num_train=50000, memorisation_train_data=facts, real_features=50000,
        memorisation_test_data=facts | {"dataset": "cifar10/test"},
    )  # fmt: skip
    rows = dict(console.number_rows(results, "pixels"))
    assert rows["Memorised, by pixels"].startswith("0.0100  (1000 generated, 50000 train; ratio of")
    numbers = quantities.numbers(results)
    assert numbers["memorised"].note == (
        "50000 generated, 50000 real; ratio of nearest distances below 1/3"
    )
    of_samples = content.number_content(numbers["memorised_pixels"], config, None)["made_from"]
    of_test = content.number_content(numbers["nearest_pixels_real"], config, None)["made_from"]
    assert of_samples["data"] == "cifar10/train, CRC-32 0badcafe"
    assert of_test["samples"] == "900 test images"
    assert "weights" in of_samples
    assert "weights" not in of_test
    assert "memorised_pixels" in quantities.of_samples(results)
    assert "memorised_pixels_real" not in quantities.of_samples(results)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        ("digits", {}, "eval.memorisation_images is 9, but eval.num_samples is 8"),
        ("toy", {}, "two_moons has no pixels; .*memorisation.* compares its coordinates"),
    ],
)
def test_samples_without_pixels_or_too_few_are_refused(
    config: str, changes: dict[str, Any], words: str
) -> None:
    made = tiny.config() if config == "digits" else load("toy/two_moons_edm")
    made.eval.update(
        {"num_samples": 8, "enable_sampling": True, "enable_bpd": False, "memorisation_images": 9}
    )
    with pytest.raises(ValueError, match=words):
        evaluate.refuse(made, experiment.build(made))
