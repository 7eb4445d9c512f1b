"""Classes, guides and attributes from the command line: their law, invariance and refusals."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
import data
from control import results, run
from control.prior import prior_from_config
from evaluation import evaluate, samples
from evaluation.metrics import classifier
from generation import guides
from runtime import experiment, files
from sde_lib import ScoreFn
from tests import gaussians, tiny
from tests.test_control import restored, settings
from tests.test_models import quick_jit
from tests.test_training import use_devices

STD = 0.1  # of the images of each class in the closed forms


class Judge:
    """Takes every image for the class of the level that most of its pixels have."""

    label, accuracy = "most frequent level", 1.0

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.array([np.bincount(image.reshape(-1)).argmax() for image in images])


def mean_of(y: jax.Array) -> jax.Array:
    return 0.1 * y - 0.4


def of_classes(
    parts: experiment.Parts, params: Any, classes: jax.Array | None = None, given: None = None
) -> ScoreFn:
    """The exact score of N(mean_of(class), STD^2), and of N(0, STD^2) where no class is told."""

    def score(x: jax.Array, t: jax.Array) -> jax.Array:
        mean = 0.0 if classes is None else mean_of(classes).reshape(-1, 1, 1, 1)
        return gaussians.linear_score(parts.sde, mean, STD)(x, t)  # type: ignore[arg-type]

    return score


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run, guides):
        monkeypatch.setattr(module, "restore", restored)
    monkeypatch.setattr(classifier, "load", lambda *_: Judge())


def draw(
    workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, devices: int = 1, **changes: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`--mode=control --task=class` of classes 3 and 5, unless `changes` say otherwise."""
    use_devices(monkeypatch, devices)
    config = settings(
        **{
            "task": "class",
            "classes": (3, 5),
            "model__num_labels": 10,
            "training__label_dropout": 0.1,
            **changes,
        }
    )
    results = run.control(config, workdir)
    with np.load(workdir / "control" / config.control.task / "results.npz") as stored:
        return results, dict(stored)


def guide_folder(folder: pathlib.Path, **changes: Any) -> str:
    """The folder of a run with a tiny classifier; its weights are `restored`."""
    config = tiny.config(**{"training__objective": "classifier", **changes})
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "config.json", config.to_dict())
    return str(folder)


# Their law.


@pytest.mark.slow
def test_classifier_free_guidance_is_linear_in_its_scale(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, judged: None
) -> None:
    """The guided score of N(0, s^2) and N(m, s^2) is that of N(w m, s^2), at every scale w."""
    monkeypatch.setattr(experiment.Parts, "score", of_classes)
    small: dict[str, Any] = {"sampling__method": "ddim", "sampling__num_steps": 8}
    _, free = draw(tmp_path, monkeypatch, scale=0.0, **small)
    _, told = draw(tmp_path, monkeypatch, method="conditional", scale=7.0, **small)
    _, more = draw(tmp_path, monkeypatch, scale=2.5, **small)
    _, held = draw(tmp_path, monkeypatch, scale=2.5, interval=(120.0, 140.0), **small)
    moved = told["x"] - free["x"]
    assert np.abs(moved).mean() > 0.05
    np.testing.assert_allclose(more["x"], free["x"] + 2.5 * moved, atol=1e-5)
    np.testing.assert_allclose(held["x"], told["x"], atol=1e-5)
    assert free["class"].tolist() == [3, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        {"method": "pc", "predictor": "reverse_diffusion", "num_steps": 300},
        {"method": "pc", "predictor": "euler_maruyama", "corrector": "langevin", "num_steps": 300},
        {"method": "ode", "rtol": 1e-3, "atol": 1e-3},
        {"method": "sde", "solver": "ShARK", "num_steps": 100, "rtol": 1e-2, "atol": 1e-2},
        {"method": "ddim", "num_steps": 20},
        {"method": "edm", "num_steps": 20},
        {"method": "dpmpp_2m_sde", "num_steps": 20},
        {"method": "unipc_3", "num_steps": 20},
    ],
    ids=lambda sampler: "-".join(map(str, sampler.values())),
)
def test_every_sampler_serves_classes(
    sampler: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    judged: None,
) -> None:
    """The mean over the pixels of an image is that of its class, within 5 standard errors."""
    monkeypatch.setattr(experiment.Parts, "score", of_classes)
    fields = {f"sampling__{name}": value for name, value in sampler.items()}
    _, arrays = draw(tmp_path, monkeypatch, classes=(0, 9), scale=1.0, **fields)
    means = arrays["x"].reshape(4, -1).mean(1)
    np.testing.assert_allclose(means, np.repeat(mean_of(jnp.array([0, 9])), 2), atol=5 * STD / 8)


@pytest.mark.slow
def test_an_attribute_is_the_difference_of_the_mean_latents(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, judged: None
) -> None:
    """The flow of a Gaussian is linear: in the images the step is the difference of the means."""
    monkeypatch.setattr(experiment.Parts, "score", of_classes)
    small: dict[str, Any] = {"task": "attribute", "classes": (1, 8), "scale": 1.5}
    small |= {"num_examples": 5, "sampling__rtol": 1e-5, "sampling__atol": 1e-5, "split": "train"}
    results, arrays = draw(tmp_path, monkeypatch, **small)
    images, classes = data.load("digits", "train").take(np.arange(1500))
    x = 2.0 * (images + 0.5) / 17 - 1.0
    one, eight = (x[classes == y][:5] for y in (1, 8))
    step = eight.mean(0) - one.mean(0)
    images_by_share = arrays["x"].reshape(2, 2, 8, 8, 1)
    np.testing.assert_allclose(
        images_by_share[:, 1] - images_by_share[:, 0], np.stack([0.75 * step] * 2), atol=2e-3
    )
    np.testing.assert_allclose(images_by_share[:, 0], one[:2] + 0.75 * step, atol=2e-3)
    assert results["classified"] == 2, "the last variant of each image is judged"


def test_images_are_counted_that_are_taken_for_what_was_asked(judged: None) -> None:
    """By a classifier that the guide has nothing to do with; nothing asked is not counted."""
    config = settings(task="class", classes=(3, 5), model__num_labels=10)
    config.control.method = "conditional"
    problem, prior, _ = run.pose(config, experiment.build(config))
    targets = problem.target_classes
    assert targets is not None
    assert targets.tolist() == [[3, 3], [5, 5]]
    levels = np.array([3, 4, 5, 5], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (4, 8, 8, 1))
    arrays, metrics = results.recognition(targets, images, prior.dataset)
    assert (metrics["classified_as_asked"], metrics["classified"]) == (0.75, 4)
    assert arrays["predicted"].tolist() == [3, 4, 5, 5]
    targets[0, 1] = -1
    _, metrics = results.recognition(targets, images, prior.dataset)
    assert metrics["classified_as_asked"] == 1.0

    def absent(*_: Any) -> Any:
        raise FileNotFoundError("not here")

    assert results.recognition(targets, images, absent) == ({}, {})


# Guides.


@pytest.mark.slow
@pytest.mark.parametrize("labels", [0, 10])
def test_an_image_of_a_class_depends_on_its_numbers_alone(
    labels: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, judged: None
) -> None:
    """Not on the batch or the devices, with the gradient of a guide too."""
    case: dict[str, Any] = {"method": "classifier", "guide": guide_folder(tmp_path / "guide")}
    case |= {"model__num_labels": labels, "scale": 2.0}
    case["training__label_dropout"] = 0.1 if labels else 0.0
    results, few = draw(tmp_path, monkeypatch, **case)
    more: dict[str, Any] = {"num_variants": 3, "batch_size": 8, "classes": (3, 5, 7)}
    _, many = draw(tmp_path, monkeypatch, 4, **case | more)
    size = np.abs(few["x"]).max()
    np.testing.assert_allclose(many["x"][[0, 1, 3, 4]], few["x"], atol=1e-4 * size)
    _, free = draw(tmp_path, monkeypatch, **case | {"scale": 0.0})
    assert np.abs(free["x"] - few["x"]).max() > 1e-3 * size, "the guide guides"
    assert results["guide"].endswith("guide, step 7, EMA weights")


def test_a_guide_guides_by_the_weights_that_it_is_given(
    tmp_path: pathlib.Path, judged: None
) -> None:
    """They are arguments of the draw; weights of 0, to which all classes are alike, do nothing."""
    fields: dict[str, Any] = {"task": "class", "method": "classifier", "scale": 3.0}
    config = settings(**fields, guide=guide_folder(tmp_path))
    guidance = run.pose(config, experiment.build(config))[0].guidance
    assert guidance is not None
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), jnp.full(1, 0.5)
    condition = {"class": jnp.array([3])}

    @quick_jit
    def guided(weights: Any) -> jax.Array:
        return guidance.score(weights, condition, lambda x, t: -x)(x, t)

    weights = jax.tree.map(lambda leaf: leaf[0], guidance.weights)
    np.testing.assert_array_equal(guided(jax.tree.map(jnp.zeros_like, weights)), -x)
    assert np.abs(guided(weights) + x).max() > 1e-3


def test_samples_are_guided_to_classes_of_their_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, judged: None
) -> None:
    """The score of N(0, STD^2) and log p(x | y) / p(x) make that of N(mean_of(y), STD^2): the mean
    over the 64 pixels of each image is that of the class that its key drew, within 5 standard
    errors. Without strength it is 0."""

    def log_prob(sde: Any, network: Any) -> Any:
        def of_all(x: jax.Array, t: jax.Array) -> jax.Array:
            alpha, sigma = (v[:, None] for v in (sde.alpha(t), sde.sigma(t)))
            means, pixels = alpha * mean_of(jnp.arange(10)), x.reshape(len(x), -1)
            moved = pixels.sum(1, keepdims=True) * means - 0.5 * pixels.shape[1] * means**2
            return moved / (alpha**2 * STD**2 + sigma**2)

        return of_all

    use_devices(monkeypatch, 1)
    monkeypatch.setattr(guides, "restore", restored)
    monkeypatch.setattr(guides.models, "class_log_prob", log_prob)
    monkeypatch.setattr(experiment.Parts, "score", of_classes)
    monkeypatch.setattr(experiment.Pixels, "to_levels", lambda self, x: x)
    numbers = {}
    for scale in (0.0, 1.0):
        config = tiny.config(
            sampling__guide=guide_folder(tmp_path),
            sampling__guide_scale=scale,
            sampling__method="ddim",
            sampling__num_steps=10,
            sampling__num_frames=0,
            sampling__batch_size=8,
        )
        [(_, numbers[scale])] = tiny.generator(config, experiment.build(config))(
            restored(config, experiment.build(config), tmp_path).params, np.arange(8)
        )
    labels = numbers[1.0]["label"]
    assert len(set(labels.tolist())) > 3
    np.testing.assert_array_equal(labels, numbers[0.0]["label"])
    for scale, batch in numbers.items():
        means = batch["image"].reshape(8, -1).mean(1)
        np.testing.assert_allclose(
            means, scale * np.asarray(mean_of(jnp.asarray(labels))), atol=5 * STD / 8
        )


def test_samples_are_led_away_from_those_of_a_weaker_network(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, judged: None
) -> None:
    """Of Gaussians of one deviation the guided mean is weak + scale (strong - weak) at every noise
    level, and so is every sample; at the levels beyond the interval the network's own score acts.
    """
    means = {"strong": 0.2, "weak": -0.1}

    def score_of(parts: experiment.Parts, params: Any, *told: Any) -> ScoreFn:
        name = "weak" if parts.sigma_data == 0.25 else "strong"
        return gaussians.linear_score(parts.sde, means[name], STD)

    use_devices(monkeypatch, 1)
    monkeypatch.setattr(experiment.Parts, "score", score_of)
    monkeypatch.setattr(experiment.Pixels, "to_levels", lambda self, x: x)
    folder = guide_folder(tmp_path, training__objective="dsm", model__sigma_data=0.25)
    images = {}
    for interval in ((), (1e-4, 1e-3)):
        config = tiny.config(
            sampling__guide=folder,
            sampling__guide_scale=3.0,
            sampling__guide_interval=interval,
            sampling__method="ddim",
            sampling__num_steps=10,
            sampling__num_frames=0,
            sampling__batch_size=8,
        )
        [(_, batch)] = tiny.generator(config, experiment.build(config))(
            restored(config, experiment.build(config), tmp_path).params, np.arange(8)
        )
        assert "label" not in batch
        images[interval] = batch["image"]
    free = images[1e-4, 1e-3]
    assert free.mean() == pytest.approx(0.2, abs=5 * STD / math.sqrt(free.size))
    np.testing.assert_allclose(images[()] - free, 2.0 * (0.2 + 0.1), atol=2e-3)


def test_a_guide_may_be_one_of_the_checkpoints_of_a_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """folder@step; a folder whose own name has an @ is a folder."""
    loaded: list[tuple[str, pathlib.Path]] = []

    def restore(config: Any, parts: experiment.Parts, workdir: pathlib.Path) -> Any:
        loaded.append((config.eval.checkpoint, workdir))
        return restored(config, parts, workdir)

    monkeypatch.setattr(guides, "restore", restore)
    config = tiny.config()
    prior = experiment.build(config)
    own = tmp_path / "run"
    guide_folder(own, training__objective="dsm")
    guide_folder(tmp_path / "run@7", training__objective="dsm")
    for name in (own, f"{own}@500", f"{own}@best", f"{own}@7"):
        guides.load_guide(str(name), prior, guides.SCORE)
    folders = [own, own, own, tmp_path / "run@7"]
    assert loaded == list(zip(["latest", "500", "best", "latest"], folders, strict=True))
    with pytest.raises(ValueError, match=r"names the checkpoint 'x'; valid values are a step's"):
        guides.load_guide(f"{own}@x", prior, guides.SCORE)
    with pytest.raises(ValueError, match="holds no run"):
        guides.load_guide(f"{own}s@3", prior, guides.SCORE)


@pytest.mark.parametrize(
    ("changes", "guide", "message"),
    [
        ({}, {}, r"sampling\.guide is a network with a score.*guide_scale=1 does not do so"),
        ({"scale": 2.0}, {"training__objective": "clip"}, "='clip'; samples are guided by a"),
        ({"scale": 2.0}, {"data__image_size": 16}, r"images of shape \(16, 16, 1\), and the score"),
        (
            {"scale": 2.0},
            {"model__num_labels": 10, "training__label_dropout": 0.1},
            "is told one of 10 classes, and the network that it is to guide one of 0",
        ),
        (
            {"scale": 2.0, "model__num_labels": 10, "training__label_dropout": 0.1},
            {"model__num_labels": 10},
            "was told the class of every image .*, and the network that it is to guide was not",
        ),
        (
            {"scale": 2.0},
            {"training__continuous": False},
            "knows the levels of its chain alone, and the score network all times",
        ),
    ],
)
def test_a_network_that_is_no_weaker_one_is_refused(
    changes: dict[str, Any], guide: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    """Before any weights are read."""
    scale = {"sampling__guide_scale": changes.get("scale", 1.0)}
    others = {name: value for name, value in changes.items() if name != "scale"}
    folder = guide_folder(tmp_path, **{"training__objective": "dsm", **guide})
    config = tiny.config(sampling__guide=folder, **scale, **others)
    with pytest.raises(ValueError, match=message):
        guides.check(config.sampling, experiment.build(config))


@pytest.mark.slow
def test_classes_are_led_away_from_a_weaker_network_and_corrected_by_particles(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, judged: None
) -> None:
    """All is linear: a weak N(0, s^2) beside N(mean_of(y), s^2) makes images of mean
    w mean_of(y) by each of the three, with the particles up to their noise."""
    few: dict[str, Any] = {"sampling__method": "ddim", "sampling__num_steps": 20, "scale": 2.0}

    def score_of(parts: experiment.Parts, params: Any, classes: Any = None, *_: Any) -> ScoreFn:
        return of_classes(parts, params, None if parts.sigma_data == 0.25 else classes)

    monkeypatch.setattr(experiment.Parts, "score", score_of)
    weak = guide_folder(tmp_path / "weak", training__objective="dsm", model__sigma_data=0.25)
    _, free = draw(tmp_path, monkeypatch, **few)
    _, led = draw(tmp_path, monkeypatch, method="autoguidance", guide=weak, **few)
    np.testing.assert_allclose(led["x"], free["x"], atol=1e-5)
    _, whole = draw(tmp_path, monkeypatch, parallel=1.0, limit=1e6, **few)
    np.testing.assert_allclose(whole["x"], free["x"], atol=1e-4)
    _, short = draw(tmp_path, monkeypatch, limit=1e-6, **few)
    _, told = draw(tmp_path, monkeypatch, method="conditional", **few)
    np.testing.assert_allclose(short["x"], told["x"], atol=1e-4)
    results, exact = draw(tmp_path, monkeypatch, method="feynman_kac", particles=8, **few)
    means = exact["x"].reshape(4, -1).mean(1)
    np.testing.assert_allclose(
        means, 2.0 * np.repeat(mean_of(jnp.array([3, 5])), 2), atol=5 * STD / 8
    )
    assert results["nfe"] == 8 * 21


def test_batches_of_another_guide_are_other_batches(tmp_path: pathlib.Path) -> None:
    config = tiny.config(sampling__guide="runs/classifier")
    parts, folders = experiment.build(config), []
    for guide in ("", "a", "b"):
        store = evaluate.store_of(tmp_path, "weights")
        shards = samples.shards_by_seed(config, parts, store, guide)[config.sampling.seed]
        folders.append(shards.folder)
    assert len(set(folders)) == 3


def test_an_evaluation_refuses_its_guide_before_any_weights_are_read(
    tmp_path: pathlib.Path,
) -> None:
    config = tiny.config(sampling__guide="absent", eval__enable_sampling=True)
    with pytest.raises(ValueError, match=r"sampling\.guide='absent' holds no run"):
        evaluate.evaluate(config, tmp_path, "eval")
    config.sampling.guide = guide_folder(tmp_path / "guide", model__beta_max=10.0)
    with pytest.raises(ValueError, match=r"sampling\.guide=.* knows the SDE"):
        evaluate.evaluate(config, tmp_path, "eval")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__num_labels": 0, "training__label_dropout": 0.0},
            "told classes, and this one has model.num_labels=0",
        ),
        ({"training__label_dropout": 0.0}, "was told every class"),
        ({"classes": (3, 10)}, r"classes is \(3, 10\); classes are 0 to 9"),
        (
            {"method": "magic"},
            "unknown control.method 'magic'; known: autoguidance, classifier, classifier_free",
        ),
        ({"method": "classifier"}, "needs a guide: control.guide, the folder of a run"),
        ({"method": "autoguidance"}, "trained with training.objective=one of a score"),
        (
            {"method": "autoguidance", "guide": {}},
            "trained with training.objective='classifier'; needed is one of a score",
        ),
        (
            {"method": "autoguidance", "guide": {"training__objective": "dsm"}},
            "control.guide is a network with a score, .*control.scale=1 does not do so",
        ),
        ({"method": "feynman_kac", "training__label_dropout": 0.0}, "was told every class"),
        ({"method": "classifier", "guide": "absent"}, "control.guide='absent' holds no run"),
        (
            {"method": "classifier", "guide": {"training__objective": "dsm"}},
            "trained with training.objective='dsm'; needed is 'classifier'",
        ),
        (
            {"method": "classifier", "guide": {"data__image_size": 16}},
            r"knows images of shape \(16, 16, 1\), and the score network \(8, 8, 1\)",
        ),
        (
            {"method": "classifier", "guide": {"model__beta_max": 10.0}},
            "beta_max=10.0.*, and the score network .*beta_max=20.0",
        ),
        (
            {"method": "classifier", "guide": {"data__centered": False}},
            "knows pixels in .*centered=False",
        ),
        (
            {"method": "classifier", "guide": {"classifier__num_classes": 12}},
            "tells 12 classes apart, and the network that it is to guide is told one of 10",
        ),
        (
            {
                "method": "classifier",
                "guide": {"classifier__num_classes": 4},
                "model__num_labels": 0,
                "training__label_dropout": 0.0,
            },
            r"classes is \(3, 5\); classes are 0 to 3",
        ),
        (
            {"task": "attribute", "classes": ()},
            r"two classes of 0 to 9 in control.classes.*not \(\)",
        ),
        ({"task": "attribute", "classes": (3, 10)}, r"not \(3, 10\)"),
        ({"task": "attribute", "num_examples": 1000}, "num_examples is 1000, but digits/train has"),
        ({"task": "attribute", "num_images": 1000}, "num_images is 1000, but digits/test has"),
        (
            {
                "training__objective": "classifier",
                "model__num_labels": 0,
                "training__label_dropout": 0.0,
            },
            "trained a classifier of noisy images",
        ),
    ],
)
def test_what_cannot_be_guided_is_refused(
    changes: dict[str, Any],
    message: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    judged: None,
) -> None:
    if isinstance(changes.get("guide"), dict):
        changes = changes | {"guide": guide_folder(tmp_path / "guide", **changes["guide"])}
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "run", monkeypatch, **changes)


def test_a_guide_is_the_run_that_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guide's config, lists as tuples again, says what it is; without a checkpoint it is none."""
    config = settings(guide=guide_folder(tmp_path, eval__ema="raw", classifier__num_classes=11))
    prior = prior_from_config(config, experiment.build(config))
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        guides.load_guide(config.control.guide, prior, "classifier")
    monkeypatch.setattr(guides, "restore", restored)
    guide = guides.load_guide(config.control.guide, prior, "classifier")
    assert guide.config.eval.ema == "raw"
    assert guide.config.model.ch_mult == (1,)
    assert guide.parts.module.num_classes == 11
    configs.check(guide.config)
