"""FID and its kin from images: the numbers are those of all features at once, and say of what."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import data
from evaluation import batch_cache, evaluate, features, reference, samples
from evaluation.judge import Judge, compare_features
from evaluation.metrics import (
    feature_set,
    frechet,
    inception,
    inception_score,
    inception_weights,
    kernel,
    manifold,
    metric,
    statistics,
    two_sample,
)
from evaluation.metrics.moments import Moments
from evaluation.report import console, quantities
from runtime import devices, experiment
from runtime.workdir import Trained
from tests import tiny
from tests.test_inception import drawn_params
from tests.test_training import use_devices

ALL = tuple(sorted(name for name, entry in metric.table().items() if not entry.network))
MIX = np.random.default_rng(0).standard_normal((192, 12)).astype(np.float32) / 100


def stand_in(params: Any, images: Any, resize: str) -> inception.Outputs:
    """In Inception's place: 5 features, 4 logits and 3 spatial ones, mixtures of 8 x 8 pixels."""
    scale = params["scale"] * (2.0 if resize == "pytorch" else 1.0)
    mixed = images.reshape(len(images), -1).astype(jnp.float32) @ MIX * scale
    return inception.Outputs(mixed[:, :5], mixed[:, 5:9], mixed[:, 9:])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    data.load("digits", "train", folder)
    return folder


def replace_inception(monkeypatch):
    """Puts `stand_in` in the place of Inception and its weights, for sets of few images; C2ST, of
    which no test asks the value here (test_simulators does), learns for few epochs."""
    monkeypatch.setattr(two_sample, "EPOCHS", 10)
    weights = inception_weights.Weights({"scale": np.float32(1)}, "ab" * 32)
    monkeypatch.setattr(inception, "apply", stand_in)
    monkeypatch.setattr(inception_weights, "load_weights", lambda path: weights)
    monkeypatch.setattr(inception, "NUM_FEATURES", 5)
    few = functools.partial(kernel.kernel_distance, subsets=4, size=100)
    monkeypatch.setattr(kernel, "kernel_distance", few)
    monkeypatch.setattr(features, "PER_DEVICE", 64)


@pytest.fixture
def small(tmp_path, prepared, monkeypatch):
    """Inception replaced, a cache of one's own, one device."""
    replace_inception(monkeypatch)
    fewer = dataclasses.replace(metric.table()["kid"], least=100)
    monkeypatch.setitem(metric.table(), "kid", fewer)
    monkeypatch.setattr(feature_set, "PENDING", 100)
    monkeypatch.setenv("SCORE_SDE_DATA", str(prepared))
    monkeypatch.setattr(data, "default_folder", lambda: tmp_path)
    use_devices(monkeypatch, 1)
    return tmp_path


def config(**changes):
    defaults = {
        "eval__features": "inception",
        "eval__repeat_grey": True,
        "eval__num_samples": 220,
        "eval__metrics": ALL,
    }
    return tiny.config(**defaults | changes)


def all_outputs(images: np.ndarray) -> Any:
    colour = np.repeat(np.round(images * (255 / 16)), 3, axis=-1)
    made = stand_in({"scale": 1.0}, colour, "tensorflow")
    return SimpleNamespace(**{name: np.asarray(x) for name, x in made._asdict().items()})


def judge_of(config: Any) -> Judge:
    return Judge(experiment.build(config), config.eval)


def uses_inception(config: Any) -> bool:
    return features.network_of(experiment.build(config), config.eval) == "inception"


def judged(made_config, images, parts=(3, 150)) -> dict[str, Any]:
    judge = judge_of(made_config)
    for part in np.split(images, parts):
        judge.add(part)
    return judge.results()


def fake_samples() -> np.ndarray:
    real = data.load("digits", "train").images[:220]
    noise = np.random.default_rng(1).integers(-3, 4, real.shape)
    return np.clip(real.astype(int) + noise, 0, 16).astype(np.uint8)


def test_streamed_numbers_are_those_of_all_features_at_once(small):
    samples = fake_samples()
    results = judged(config(eval__bootstrap=3, eval__stats_images=300), samples)
    real_images = data.load("digits", "train").images[:300]
    found, real = all_outputs(samples), all_outputs(real_images)
    pool = Moments.of(real.pool)
    spatial = Moments.of(real.spatial)
    kid = kernel.kernel_distance(found.pool, real.pool)
    score = inception_score.inception_score(found.logits)
    expected = {
        "fid": frechet.frechet_distance(Moments.of(found.pool), pool),
        "fid_stderr": frechet.bootstrap_error(found.pool, pool, 3),
        "sfid": frechet.frechet_distance(Moments.of(found.spatial), spatial),
        "fid_infinity": frechet.extrapolated_distance(found.pool, pool).distance,
        "inception_score": score.mean,
        "inception_score_std": score.std,
        "kid": kid.mean,
        "kid_std": kid.std,
        **manifold.precision_recall(real.pool, found.pool)._asdict(),
        **manifold.density_coverage(real.pool, found.pool)._asdict(),
    }
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name
    assert (results["num_samples"], results["real_features"]) == (220, 300)
    printed = dict(console.sample_rows(results))
    assert printed["FID"].startswith(f"{results['fid']:.3f} ± {results['fid_stderr']:.3f}  (220")
    assert "line through 15 subsets of 22 to 220" in printed["FID-infinity"]
    for row in ("sFID", "Inception Score", "KID", "Precision", "Recall", "Density", "Coverage"):
        assert "220 generated" in printed[row]


def test_every_number_has_its_origin_and_statistics_are_made_once(small, monkeypatch):
    samples = fake_samples()
    only = config(eval__metrics=("fid", "sfid"), eval__bootstrap=2)
    first = judged(only, samples)
    assert first["fid_stderr_draws"] == 2
    (stored,) = (small / "statistics").iterdir()
    assert first["statistics"] == {
        "path": str(stored),
        "sha256": statistics.read(stored).sha256,
        "form": "mu, sigma, mu_s, sigma_s",
        "network": inception.NAME,
        "weights_sha256": "ab" * 32,
        "resize": "tensorflow",
        "dataset": "digits/train",
        "fingerprint": data.load("digits", "train").fingerprint,
        "images": 1500,
        **{"folder": "", "image_size": 8, "channels": 1, "transform": ""},
    }
    assert first["network"]["resize"] == "tensorflow"
    printed = "\n".join(map(" ".join, console.sample_rows(first)))
    for word in (first["statistics"]["sha256"][:16], "1500 images of digits/train", "abababab"):
        assert word in printed
    monkeypatch.setattr(features.NetworkExtractor, "see", None)  # a second time nothing is seen
    assert judged(only, samples)["fid"] == first["fid"]
    by_path = config(eval__metrics=("fid",), eval__stats_path=str(stored))
    monkeypatch.setattr(data, "from_config", None)  # nor is the data set opened
    assert judged(by_path, samples)["fid"] == first["fid"]


def test_numbers_do_not_depend_on_devices_or_batches(small, monkeypatch):
    samples = fake_samples()
    few = config(eval__stats_images=200, eval__metrics=("fid", "sfid", "inception_score"))
    one = judged(few, samples)
    monkeypatch.setattr(features, "PER_DEVICE", 5)
    monkeypatch.setattr(feature_set, "PENDING", 333)
    use_devices(monkeypatch, 4)
    (file,) = (small / "statistics").iterdir()
    file.unlink()
    four = judged(few, samples, parts=(1, 99, 140))
    assert four["inception_score"] == pytest.approx(one["inception_score"], rel=1e-6)
    # XLA may sum a feature's products in another order for another batch: it is then off by eps
    # times its size, and a squared distance d by 2 sqrt(d) times as much.
    found = all_outputs(samples)
    for name, features_of in (("fid", found.pool), ("sfid", found.spatial)):
        rounding = np.finfo(np.float32).eps * np.abs(features_of).max()
        assert four[name] == pytest.approx(one[name], abs=2 * np.sqrt(one[name]) * rounding), name


def test_statistics_of_activations_serve_every_metric(small, monkeypatch):
    """score_sde's form: the features of the real images are in the file."""
    real = all_outputs(data.load("digits", "train").images[:300]).pool
    np.savez(small / "stats.npz", pool_3=real)
    monkeypatch.setattr(data, "from_config", None)
    with_file = config(
        eval__stats_path=str(small / "stats.npz"),
        eval__metrics=("fid", "precision_recall"),
        eval__num_samples=64,
    )
    results = judged(with_file, fake_samples()[:64])
    assert (results["statistics"]["form"], results["statistics"]["images"]) == ("pool_3", 300)
    assert 0 < results["precision"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval__metrics": ("fid", "lpips")},
            "unknown metric of eval.metrics 'lpips'; known: c2st, cmmd, dens",
        ),
        (
            {"eval__num_samples": 99},
            "has c2st, which needs 100 images or more; eval.num_samples is",
        ),
        (
            {"eval__features": "vgg"},
            "unknown eval.features 'vgg'; known: auto, classifier, clip, dino",
        ),
        ({"eval__features": "auto"}, "inception_score, which needs --config.eval.features=incep"),
        ({"eval__repeat_grey": False}, r"digits have 1 channel\(s\); --config.eval.repeat_grey"),
        ({"eval__resize": "nearest"}, "unknown eval.resize 'nearest'"),
        ({"eval__stats_images": 1501}, "is 1501, but digits/train has 1500 images"),
        (
            {"eval__stats_images": 5, "eval__metrics": ("density_coverage",)},
            "has density_coverage, which needs 6 images or more; of the data set there are 5",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_drawn(small, changes, message):
    with pytest.raises(ValueError, match=message):
        judge_of(config(**changes))


def test_statistics_of_another_data_set_serve_with_a_warning_and_open_none(
    small, monkeypatch, caplog
):
    """Where single images are needed, of which the file has no features, the data set is opened."""
    path = str(small / "s.npz")
    reference.write_statistics(config(eval__stats_path=path))
    stored = statistics.read(path)
    assert stored.origin.name == "digits/train"
    assert (stored.origin.image_size, stored.origin.channels) == (8, 1)
    opened = data.from_config
    monkeypatch.setattr(data, "from_config", None)
    judge_of(config(eval__stats_path=path, eval__metrics=("fid", "sfid")))
    assert not caplog.messages
    other = {"data__dataset": "folder", "data__data_dir": str(small / "cats")}
    judge_of(config(eval__stats_path=path, eval__metrics=("fid",), **other))
    assert caplog.messages == [
        f"the statistics in {path} are of digits/train, CRC-32 "
        f"{stored.origin.fingerprint.rpartition('/')[2]}, the data set is folder/train (cats): "
        "distances are to the former"
    ]

    def renamed(config, split):
        return dataclasses.replace(opened(config, split), name="others")

    caplog.clear()
    monkeypatch.setattr(data, "from_config", renamed)
    facts = judge_of(config(eval__stats_path=path)).real.facts()
    assert facts["features_of"].startswith("others/train, others/train/1500/")
    assert facts["dataset"] == "digits/train"
    assert len(caplog.messages) == 1
    rows = dict(console.statistics_rows(facts))
    assert rows["  single images"] == facts["features_of"]


def test_statistics_that_do_not_fit_are_refused(small, monkeypatch):
    reference.write_statistics(config(eval__stats_path=str(small / "s.npz")))
    fits = {"eval__stats_path": str(small / "s.npz"), "eval__metrics": ("fid",)}
    judge_of(config(**fits))
    for changes, message in (
        ({"eval__resize": "pytorch"}, "resize tensorflow, not pytorch"),
        ({"eval__stats_images": 1000}, "1500 images, not 1000"),
        ({"data__image_size": 16}, "image size 8, not 16"),
        ({"data__num_channels": 3}, "channels 1, not 3"),
    ):
        with pytest.raises(ValueError, match=message):
            judge_of(config(**fits | changes))
    with np.load(small / "s.npz") as stored:
        np.savez(small / "s.npz", mu=stored["mu"], sigma=stored["sigma"])
    with pytest.raises(ValueError, match=r"sfid, but .* has no mu_s and sigma_s; --mode=stats"):
        judge_of(config(eval__stats_path=str(small / "s.npz")))
    judge = judge_of(config(**fits))
    judge.add(fake_samples()[:199])
    with pytest.raises(ValueError, match="num_samples is 220, but 199 images were judged"):
        judge.results()
    broken = [(0, {"pool": np.full((1, 5), np.nan)})]
    monkeypatch.setattr(judge.extractor, "run", lambda *_: broken)
    with pytest.raises(ValueError, match=r"1 image\(s\) are not finite"):
        judge.add(fake_samples()[:1])


def test_which_features_judge_which_data_set():
    def uses(**changes):
        return uses_inception(tiny.config(**changes))

    assert not uses()  # digits
    assert uses(eval__features="inception")
    colour = {"data__dataset": "cifar10", "data__num_channels": 3}
    assert uses(**colour)
    assert not uses(**colour, eval__features="classifier")
    assert uses(data__dataset="celeba", data__num_channels=3)
    points = {"data__dataset": "two_moons", "data__num_channels": 2, "data__image_size": 1}
    points |= {"data__uniform_dequantization": False}
    assert not uses(**points)
    with pytest.raises(ValueError, match=r"two_moons has points.* must be 'auto'"):
        uses(**points, eval__features="classifier")


def test_further_metrics_on_the_classifiers_features_bear_its_name():
    rng = np.random.default_rng(0)
    generated, real = rng.standard_normal((2, 40, 3))
    few = tiny.config(
        eval__metrics=("fid", "precision_recall", "density_coverage"), eval__num_samples=40
    )
    results = compare_features(experiment.build(few), few.eval, generated, real)
    assert results == {
        "classifier_precision": manifold.precision_recall(real, generated).precision,
        "classifier_recall": manifold.precision_recall(real, generated).recall,
        "classifier_density": manifold.density_coverage(real, generated).density,
        "classifier_coverage": manifold.density_coverage(real, generated).coverage,
    }
    rows = dict(console.sample_rows(results | {"num_samples": 40, "num_train": 40}))
    assert rows["Precision (classifier)"].endswith("(40 generated, 40 real, k = 3)")
    plain = tiny.config()
    assert not compare_features(experiment.build(plain), plain.eval, generated, real)


def generator_of(images_of_seed: list[np.ndarray]) -> Any:
    """In place of `Generator`: known images for each seed."""

    class Generator:
        guide = None

        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, params: Any, indices: np.ndarray, seed: int) -> Any:
            for part in np.split(indices, range(64, len(indices), 64)):
                yield part, {"image": images_of_seed[seed][part], "nfe": np.full(len(part), 7)}

    return Generator


def test_evaluation_judges_exactly_the_images_that_were_asked_for(small, monkeypatch, tmp_path):
    """`samples.sampling_results` with a generator of known images: of two seeds, each by itself,
    and the network and the statistics of the data set are made ready once.
    """
    images_of_seed = [fake_samples(), fake_samples() // 2]
    weights, read = inception_weights.load_weights(""), []

    def load_weights(path: str) -> inception_weights.Weights:
        read.append(path)
        return weights

    monkeypatch.setattr(inception_weights, "load_weights", load_weights)

    generator = generator_of(images_of_seed)
    monkeypatch.setattr(samples, "Generator", generator)
    few = config(
        eval__metrics=("fid",), eval__num_samples=200, eval__seeds=2, sampling__batch_size=64
    )
    trained: Any = SimpleNamespace(params=None)
    folder, parts = tmp_path / "eval", experiment.build(few)
    store = batch_cache.Store(folder, {})
    results = samples.sampling_results(few, parts, trained, folder, store)
    assert (results["num_samples"], results["nfe"]) == (200, 7)
    assert len(read) == 1
    alone = [judged(few, images[:200])["fid"] for images in images_of_seed]
    assert results["fid"] == pytest.approx(alone[0], rel=1e-9)
    assert results["over_seeds"]["fid"]["values"] == pytest.approx(alone, rel=1e-9)
    assert alone[1] > 2 * alone[0]
    assert (tmp_path / "eval" / "samples.png").exists()
    monkeypatch.setattr(generator, "__call__", None)  # a second time nothing is drawn
    again = samples.sampling_results(few, parts, trained, folder, store)
    assert again["fid"] == results["fid"]
    origin = {"step": 1, "weights": "EMA weights", "seed": 0, "examples": "images"}
    rows = dict(console.table(results | origin))
    assert rows["FID"].startswith(f"{results['fid']:.3f}")
    json.dumps(results)


def spread_of_features(generated: feature_set.FeatureSet, real: Any, options: Any) -> Any:
    """A new metric: the mean deviation of the features, and its own over features."""
    del real, options
    deviations = generated.array("pool").std(axis=0)
    return {
        "feature_spread": float(deviations.mean()),
        "feature_spread_std": float(deviations.std()),
        "feature_spread_count": len(deviations),
    }


def test_a_metric_is_one_function_and_one_quantity(small, tmp_path, monkeypatch, capsys):
    """Console, results.json, report.json and page have its number by nothing else."""
    monkeypatch.setitem(metric.table(), "spread", metric.Metric(spread_of_features, keep=True))
    entry = quantities.Quantity(
        title="Spread of features",
        source="samples",
        digits=3,
        note=lambda of: f"of {of['feature_spread_count']} features",
        better="higher",
        error=("_std", "over features"),
        leading=True,
    )
    monkeypatch.setitem(quantities.QUANTITIES, "feature_spread", entry)

    images = [fake_samples(), fake_samples() // 2]
    monkeypatch.setattr(samples, "Generator", generator_of(images))
    trained = Trained(devices.replicate({"w": np.ones(2)}), 7, "EMA weights", "ab12")
    monkeypatch.setattr(evaluate, "restore", lambda *_: trained)
    only = config(
        eval__metrics=("spread",),
        eval__seeds=2,
        eval__enable_sampling=True,
        eval__enable_bpd=False,
        eval__enable_loss=False,
        sampling__batch_size=64,
        sampling__num_frames=0,
    )
    evaluate.evaluate(only, tmp_path, "eval")

    deviations = [all_outputs(each).pool.std(axis=0) for each in images]
    value, error = float(deviations[0].mean()), float(deviations[0].std())
    mean = float(np.mean([each.mean() for each in deviations]))
    shown = quantities.text(value, 3, error)
    printed = capsys.readouterr().out
    assert re.search(rf"Spread of features +{shown}  \(of 5 features\)", printed)
    assert re.search(rf"Spread of features, 2 seeds +{quantities.text(mean, 3)} ± ", printed)

    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["feature_spread"] == pytest.approx(value, rel=1e-6)
    assert results["over_seeds"]["feature_spread"]["mean"] == pytest.approx(mean, rel=1e-6)

    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    (number,) = report["evaluations"][""]["numbers"]
    assert number["title"] == "Spread of features"
    assert (number["value"], number["better"]) == (results["feature_spread"], "higher")
    assert number["error_of"] == "over features"
    assert number["made_from"]["samples"] == "220"

    page = (tmp_path / "eval" / "report.html").read_text()
    number_shown, _, error_shown = shown.partition(" ± ")
    text = f'{number_shown} <span class="error">± {error_shown}</span>'
    assert page.count(text) == 2, "on top, and in the table"
    assert page.count('Spread of features <span class="soft">↑</span>') == 2
    assert f"mean {quantities.text(mean, 3)} ± " in page

    header = console.comparison({"a": results, "b": results})[1]
    assert header == ["evaluation", "step", "NFE", "Spread of features"]


def test_every_metric_declares_itself_and_has_a_number_that_is_shown(small):
    files = pathlib.Path(metric.__file__).parent.glob("*.py")
    declared = [
        name
        for file in files
        if file.name != "metric.py"
        for name in re.findall(r'^@metric\("(\w+)"', file.read_text(), re.MULTILINE)
    ]
    assert set(declared) == metric.table().keys()
    judge = judge_of(config())
    judge.add(fake_samples())
    for name, entry in judge.metrics.items():
        numbers = entry.compute(judge.generated, judge.real, judge.options)
        assert numbers.keys() & quantities.QUANTITIES.keys(), name
    with pytest.raises(ValueError, match="two metrics 'fid'"):
        metric.metric("fid")(spread_of_features)


def test_stats_mode_writes_a_file_and_says_so(small, capsys):
    path = small / "digits.npz"
    argv = [
        "main.py",
        "--mode=stats",
        "--config=configs/quickstart.py",
        "--config.eval.features=inception",
        "--config.eval.repeat_grey=True",
        "--config.eval.stats_images=100",
        f"--config.eval.stats_path={path}",
    ]
    code, lines = tiny.run(capsys, *argv)
    assert (code, lines) == (0, [])
    stored = statistics.read(path)
    assert stored.origin.images == 100
    assert stored.spatial is not None
    code, lines = tiny.run(capsys, *argv)
    assert (code, lines[-1].partition("; ")[0]) == (1, f"error: {path} is there already")
    code, lines = tiny.run(capsys, *argv[:3])
    assert code == 1
    assert "statistics are of a network's features" in lines[-1]


@pytest.mark.slow
def test_inception_itself_judges_digits(tmp_path, monkeypatch):
    """The network on two devices, from images to FID: of the real images themselves, and others."""
    weights = inception_weights.Weights(drawn_params(), "ab" * 32)
    monkeypatch.setattr(inception_weights, "load_weights", lambda path: weights)
    monkeypatch.setattr(features, "PER_DEVICE", 2)
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path))
    use_devices(monkeypatch, 2)
    few = config(eval__stats_images=6, eval__num_samples=6, eval__metrics=("fid", "sfid"))
    images = data.load("digits", "train").images
    same = judged(few, images[:6], parts=(1,))
    assert abs(same["fid"]) < 1e-4
    assert abs(same["sfid"]) < 1e-4
    assert pathlib.Path(same["statistics"]["path"]).is_file()
    other = judged(few, images[6:12], parts=(5,))
    assert other["fid"] > 100 * abs(same["fid"])
