"""ScoreFlow's configs and files, and the official classifier of noisy CIFAR-10 images."""

from __future__ import annotations

import functools
import pathlib
import zlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
import controllable
import models
from control import classes
from control.prior import prior_from_config
from generation import guides
from interop import convert, official, sources
from interop.flax_parameters import FlaxParameters
from runtime import experiment
from sde_lib import VESDE
from tests import golden_cases, tiny
from tests.test_interop_files import jax_state, write_flax
from tests.test_models import quick_jit

CLASSIFIER = "score_sde/cifar10_classifier"
TOLERANCE = 2e-5


# ScoreFlow.


@pytest.mark.parametrize("deep", ["", "deep_"])
@pytest.mark.parametrize("sde", ["vp", "subvp"])
def test_score_flow_has_the_networks_of_the_official_configs(sde: str, deep: str) -> None:
    """Hence their names and shapes; of ImageNet 32 x 32 without dropout."""
    name = f"{sde}/cifar10_ddpmpp_{deep}continuous"
    network = models.from_config(configs.load(name))
    for dataset, dropout in (("cifar10", 0.1), ("imagenet32", 0.0)):
        config = configs.load(f"score_flow/{dataset}_{deep}{sde}")
        assert models.from_config(config) == network.clone(dropout=dropout)
        assert config.training.sde == f"{sde}sde"
        assert config.sampling.method == "ode"
        assert config.data.random_flip == (dataset == "cifar10")
        config.training.likelihood_weighting, config.training.time = True, "likelihood"
        configs.check(config)


def test_a_variational_dequantiser_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    state, _ = jax_state()
    del state["model_state"]
    path = write_flax(tmp_path / "checkpoint_6", {**state, "ema_train_bpd": np.float32(3.0)})
    with pytest.raises(ValueError, match="a variational dequantiser of score_flow") as refusal:
        sources.open_source(path)
    assert "\n" not in str(refusal.value)


# The classifier.


def by_rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of the golden classifiers."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    z = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    leaf = name.rpartition("/")[2]
    if leaf in ("scale", "bias", "W"):
        return np.float32(leaf == "scale") + np.float32(0.3 if leaf == "W" else 0.1) * z
    return (z / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def config_of(network: dict[str, Any]) -> Any:
    config = configs.load(CLASSIFIER)
    config.data.image_size = network["image_size"]
    config.classifier.widen_factor = network["channel_multiplier"]
    config.classifier.blocks_per_group = network["blocks_per_group"]
    config.classifier.num_classes = network["num_outputs"]
    return config


CASES = [
    pytest.param(path, id=path.stem) for path in golden_cases.files("score_sde_classifier", "*.npz")
]


def tree_of(z: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for entry in z["tensors_json"]:
        array = by_rule(entry["name"], tuple(entry["shape"]))
        assert zlib.crc32(array.tobytes()) == entry["crc32"]
        flat[entry["name"]] = array
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.golden
@pytest.mark.parametrize("path", CASES)
def test_logits_and_their_gradients_are_the_originals(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Read from a file in the form of the published one; the gradient is what guidance adds."""
    z = golden_cases.load(path)
    config = config_of(z["config_json"])
    module, shape = experiment.network(config), experiment.image_shape(config)
    opened = sources.open_source(write_flax(tmp_path / "checkpoint_1", tree_of(z)))
    assert isinstance(opened, FlaxParameters)
    assert opened.fits(module, shape)
    params = opened.weights(module, shape).params
    sigma, sde = jnp.asarray(z["labels"]), VESDE()
    t = sde.time_of_log_snr(-2 * jnp.log(sigma))
    network = functools.partial(module.apply, {"params": params})
    log_prob = models.class_log_prob(sde, network)
    guided = controllable.guided(
        lambda x, t: jnp.zeros_like(x), controllable.of_class(log_prob, jnp.asarray(z["y"]))
    )
    logits, gradient = quick_jit(lambda x: (network(x, sigma), guided(x, t)))(z["x"])
    for found, expected in ((logits, z["out"]), (gradient, z["gradx"])):
        assert np.abs(found - expected).max() <= 2 * TOLERANCE * np.abs(expected).max()


def test_the_official_classifier_has_its_parameters_and_fits_its_config_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configs.load(CLASSIFIER)
    module, shape = experiment.network(config), experiment.image_shape(config)
    shapes = official.parameter_shapes(module, shape)
    assert sum(np.prod(shape) for shape in shapes.values()) == 38_913_242
    blank = {place: np.broadcast_to(np.float32(0), s) for place, s in shapes.items()}
    opened = FlaxParameters(pathlib.Path(), flax.traverse_util.unflatten_dict(blank))
    monkeypatch.setattr(official, "parameter_shapes", lambda *_: shapes)  # which takes seconds
    assert convert.fitting_configs(opened) == [CLASSIFIER]


def test_the_official_classifier_guides_after_its_import(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config(
        training__objective="classifier",
        training__sde="vesde",
        data__centered=False,
        data__num_channels=3,
        classifier__name="wrn_score_sde",
        classifier__widen_factor=1,
        classifier__blocks_per_group=1,
    )
    module, shape = experiment.network(config), experiment.image_shape(config)
    shapes = official.parameter_shapes(module, shape)
    params = {"/".join(place): by_rule("/".join(place), s) for place, s in shapes.items()}
    path = write_flax(tmp_path / "file", flax.traverse_util.unflatten_dict(params, sep="/"))
    convert.import_run(config, str(path), tmp_path / "guide")
    assert "classes, of noisy images" in (out := capsys.readouterr().out)
    assert "control.guide=" in out
    config.training.objective = "dsm"
    prior = prior_from_config(config, experiment.build(config))
    guide = guides.load_guide(str(tmp_path / "guide"), prior, models.CLASSIFIER)
    kernel = np.ravel(guide.params["init_conv"]["kernel"])
    np.testing.assert_array_equal(kernel[-27 * 16 :], np.ravel(params["init_conv/kernel"]))
    config.control.guide, config.control.method = str(tmp_path / "guide"), "classifier"
    assert classes.classifier(prior, config.control).num_classes == 10
    with pytest.raises(ValueError, match=r"is for colours, and the images have 1 channel"):
        module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))
