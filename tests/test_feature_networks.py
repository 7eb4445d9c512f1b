"""Networks by whose features images are compared: their images, their numbers, what they refuse."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import data
from evaluation import feature_networks, features, samples
from evaluation.judge import Judge
from evaluation.metrics import frechet
from evaluation.metrics.cmmd import cmmd
from evaluation.metrics.moments import Moments
from evaluation.metrics.pillow_resize import pillow_resized
from evaluation.report import console, content, page, quantities
from interop import transformers_clip, transformers_dinov2
from runtime import experiment
from tests import golden_cases, tiny
from tests.test_models import quick_jit
from tests.test_report import load
from tests.test_report import results as report_results
from tests.test_training import use_devices

ROOT = golden_cases.ROOTS[0]


@pytest.mark.parametrize(("before", "after"), [(8, 24), (32, 21), (9, 9), (40, 7)])
def test_images_are_resized_as_pillow_does(before: int, after: int) -> None:
    """But for a level where its fixed point rounds what is halfway to the other side."""
    images = np.random.default_rng(0).integers(0, 256, (4, before, before, 3)).astype(np.uint8)
    images[0] //= 255  # black and white, so that the kernel overshoots
    images[0] *= 255
    found = np.asarray(pillow_resized(jnp.asarray(images), after))
    bicubic = Image.Resampling.BICUBIC
    expected = np.stack(
        [np.asarray(Image.fromarray(image).resize((after, after), bicubic)) for image in images]
    )
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found != expected) < 2e-3


def test_cmmd_by_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two points it is 2000 (1 - exp(-d^2 / 200)); of any, the sum over all pairs in blocks."""
    a, b = np.array([[0.0, 3.0]]), np.array([[4.0, 0.0]])
    assert cmmd(a, b) == pytest.approx(2000 * (1 - np.exp(-25 / 200)))
    rng = np.random.default_rng(0)
    x, y = 5 * rng.standard_normal((30, 6)), 5 * rng.standard_normal((41, 6)) + 1
    monkeypatch.setattr("evaluation.metrics.cmmd._BLOCK", 7)

    def mean(a: np.ndarray, b: np.ndarray) -> Any:
        return np.mean(np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 200))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(x, x) == pytest.approx(0.0, abs=1e-9)
    for bad, words in ((x[:, :3], r"\(30, 3\) and"), (x * np.nan, "not finite"), (x[:0], "no CM")):
        with pytest.raises(ValueError, match=words):
            cmmd(bad, y)


def test_the_published_dinov2_has_as_many_parameters_as_in_transformers() -> None:
    """Those of `Dinov2Model` of facebook/dinov2-large without the mask token, which only learns."""
    module = transformers_dinov2.DINOv2(24, 1024, 4096, 16, "gelu", 1e-6, 518, 14)
    pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 304_368_640 - 1024
    names = jax.tree_util.tree_leaves_with_path(shapes)
    assert len(names) == 24 * 18 + 6


def config(network: str, metrics: tuple[str, ...], **changes: Any) -> Any:
    small = {
        "eval__features": network,
        "eval__features_path": str(ROOT / network),
        "eval__repeat_grey": True,
        "eval__num_samples": 40,
        "eval__stats_images": 60,
        "eval__metrics": metrics,
    }
    return tiny.config(**small | changes)


@pytest.fixture
def small(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Networks of golden folders at few pixels, and digits as they see them, with a cache of one's
    own."""
    data.load("digits", "train", tmp_path)
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path))
    monkeypatch.setattr(data, "default_folder", lambda: tmp_path)
    monkeypatch.setattr(feature_networks, "DINOV2_SIZE", 14)  # 3 patches of 4 pixels
    monkeypatch.setattr(features, "PER_DEVICE", 20)
    use_devices(monkeypatch, 1)
    images = data.load("digits", "train").images
    return {"generated": 16 - images[100:140], "real": images[:60]}


def colours(images: np.ndarray, size: int) -> np.ndarray:
    """Digits as 8-bit colour images that Pillow resized."""
    grey = np.round(images[..., 0] * (255 / 16)).astype(np.uint8)
    bicubic = Image.Resampling.BICUBIC
    resized = [np.asarray(Image.fromarray(one).resize((size, size), bicubic)) for one in grey]
    return np.repeat(np.stack(resized)[..., None], 3, axis=-1) / 255.0


def judged(made: Any, images: np.ndarray) -> dict[str, Any]:
    judge = Judge(experiment.build(made), made.eval)
    for part in np.split(images, [15]):
        judge.add(part)
    return judge.results()


def test_dinov2_judges_as_its_network_sees_the_images(small: dict[str, np.ndarray]) -> None:
    """FD of the features of images that Pillow resized and ImageNet's moments normalised; the
    statistics, which a second judge reads, and precision and recall, of the same features."""
    made = config("dinov2", ("fid", "precision_recall", "memorisation"))
    results = judged(made, small["generated"])
    module, params = transformers_dinov2.read(ROOT / "dinov2")

    def seen(images: np.ndarray) -> np.ndarray:
        x = (colours(images, 12) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        return x.astype(np.float32)

    both = np.concatenate([seen(small["generated"]), seen(small["real"])])
    vectors = np.asarray(jax.jit(module.apply)({"params": params}, both))
    generated, real = Moments.of(vectors[:40]), Moments.of(vectors[40:])
    expected = frechet.frechet_distance(generated, real)
    assert results["dinov2_fid"] == pytest.approx(expected, rel=1e-3)
    assert results.keys() >= {"dinov2_precision", "dinov2_recall", "dinov2_memorised"}
    assert results["features"].startswith("features: dinov2, 2 layers, patches of 4, weights ")
    assert results["network"]["resize"] == "pillow bicubic"
    assert judged(made, small["generated"])["dinov2_fid"] == results["dinov2_fid"]
    rows = dict(console.sample_rows(results))
    assert rows["FD (dinov2)"].endswith("(40 generated, fewer than 50000 raise it)")


def test_cmmd_is_of_clips_unit_vectors(small: dict[str, np.ndarray]) -> None:
    results = judged(config("clip", ("cmmd",)), small["generated"])
    module, params, mean, std = transformers_clip.read(ROOT / "clip")

    def seen(images: np.ndarray) -> Any:
        return ((colours(images, 8) - mean) / std).astype(np.float32)

    both = np.concatenate([seen(small["generated"]), seen(small["real"])])
    image = quick_jit(lambda params, x: module.apply({"params": params}, x, method="image"))
    vectors = np.asarray(image(params, both))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    expected = cmmd(vectors[:40], vectors[40:])
    assert results["clip_cmmd"] == pytest.approx(expected, rel=1e-3)
    rows = dict(console.sample_rows(results))
    assert rows["CMMD (clip)"].endswith("(40 generated, 60 real, sigma = 10, times 1000)")


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        ("dinov2", {"eval__metrics": ("cmmd",)}, "cmmd, which needs --config.eval.features=clip"),
        ("clip", {"eval__metrics": ("sfid",)}, "sfid, which needs --config.eval.features=incept"),
        ("dinov2", {"eval__repeat_grey": False}, r"DINOv2 sees colour images, and those of dig"),
        ("dinov2", {"eval__features_path": str(ROOT / "clip")}, "no config.json of a DINOv2"),
        ("clip", {"eval__features_path": str(ROOT / "dinov2")}, "no config.json of a CLIP"),
        ("clip", {"eval__features_path": str(ROOT / "NO")}, "eval.features_path=.*: there is no"),
        ("clip", {"eval__features_path": __file__}, "is a file, not a folder of a network"),
    ],
)
def test_what_a_network_cannot_judge_is_refused(
    network: str, changes: dict[str, Any], words: str
) -> None:
    made = config(network, ("fid",), **changes)
    parts = experiment.build(made)

    def asked() -> None:
        samples.refuse(made, parts)
        Judge(parts, made.eval)

    with pytest.raises((ValueError, FileNotFoundError), match=words):
        asked()


def test_the_report_has_its_distance_on_top_and_in_comparisons() -> None:
    made = load("vp/cifar10_ddpmpp_continuous")
    results = report_results(made)
    results = {("dinov2_fid" if name == "fid" else name): v for name, v in results.items()}
    results.pop("fid_stderr")
    number = quantities.numbers(results)["dinov2_fid"]
    assert number.title == "FD (DINOv2)"
    run = content.content({"": made}, {"": results})["evaluations"][""]
    assert page.leading(run["numbers"])[0]["name"] == "dinov2_fid"
    assert "FD (dinov2)" in console.comparison({"a": results, "b": results})[1]
