"""Real-valued examples: what is read, how it is standardised, and likelihoods in its own units."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import data
import likelihood
from configs import defaults
from data import transforms
from data.standardisation import Standard
from diffusion.probes import exact
from evaluation.features import Coordinates
from generation import examples
from runtime import experiment, files
from runtime.workdir import settled
from sde_lib import VPSDE

MEAN, STD = (3.0, -200.0), (0.5, 40.0)
STANDARD = Standard(MEAN, STD)


def config_of(path: pathlib.Path, **changes: Any) -> ConfigDict:
    config = defaults.points("arrays")
    config.data.data_dir, config.data.shape = str(path), (2,)
    config.update_from_flattened_dict({f"data.{k}": v for k, v in changes.items()})
    return config


def saved(path: pathlib.Path, values: np.ndarray, name: str = "images") -> pathlib.Path:
    np.savez(path, **{name: values})  # type: ignore[arg-type]
    return path


@pytest.fixture
def vectors(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    z = np.random.default_rng(0).normal(size=(500, 2))
    return saved(tmp_path / "vectors.npz", np.array(MEAN) + np.array(STD) * z)


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2", "<i4", "u1"])
@pytest.mark.parametrize("shape", [(3,), (6, 1), (2, 3, 2), (2, 2, 2, 2)])
def test_numbers_of_any_width_and_shape_are_read_as_they_are(
    vectors: pathlib.Path, kind: str, shape: tuple[int, ...]
) -> None:
    values = np.random.default_rng(1).integers(0, 200, (20, *shape)).astype(kind)
    stored = values[..., 0] if shape == (6, 1) else values  # a last axis of length 1 may be missing
    path = saved(vectors.with_name("numbers.npz"), stored)
    parts = [data.load("arrays", split, path, shape=shape) for split in ("train", "test")]
    rows = np.concatenate([part.take(np.arange(len(part)))[0] for part in parts])
    assert (rows.dtype, parts[0].levels, parts[0].image_shape) == (np.float32, 0, shape)
    order = [np.lexsort(x.reshape(20, -1).T) for x in (rows, values)]
    np.testing.assert_array_equal(rows[order[0]], values[order[1]].astype(np.float32))
    assert data.grey_levels("arrays", shape) == 0 < data.grey_levels("arrays")


def test_the_numbers_are_those_of_the_training_examples(vectors: pathlib.Path) -> None:
    config = config_of(vectors)
    train = data.from_config(config, "train").images.astype(np.float64)
    standard = experiment.build(config).pixels.standard
    assert standard is not None
    np.testing.assert_allclose(standard.mean, train.mean(0), rtol=1e-6)
    np.testing.assert_allclose(standard.std, train.std(0), rtol=1e-6)
    z = transforms.scale(train, 0, True, standard)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(transforms.inverse_scale(z, 0, True, False, standard), train, 1e-5)
    parts = experiment.build(config_of(vectors, mean=MEAN, std=STD))
    assert parts.pixels.standard == STANDARD
    np.testing.assert_allclose(parts.pixels.to_levels(parts.pixels.to_model(train)), train, 1e-5)


def test_a_channel_of_a_series_has_one_mean_over_all_places() -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(40, 16, 2)) + np.arange(16)[None, :, None]
    dataset = data.Dataset("x", "train", z.astype("f4"), np.zeros(40, np.int32), 0, (16, 2), 1)
    from data.standardisation import of_examples

    standard = of_examples(dataset)
    np.testing.assert_allclose(standard.mean, z.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(standard.std, z.std((0, 1)), rtol=1e-5)


def test_likelihoods_are_those_of_the_numbers_in_their_own_units() -> None:
    """With the score of standardised Gaussian data the density is that of the data themselves."""
    sde, kind = VPSDE(), examples.Values(STANDARD)
    x = jnp.array(MEAN) + jnp.array(STD) * jax.random.normal(jax.random.key(0), (6, 2))
    probes = exact(jax.random.split(jax.random.key(1), 6), (2,), 1)
    z = kind.continuous(x, jax.random.split(jax.random.key(2), 6))
    result = likelihood.log_likelihood(sde, lambda x, t: -x, z, probes, rtol=1e-5, atol=1e-5)
    exponent = -0.5 * np.square((np.asarray(x) - MEAN) / STD) - np.log(STD)
    expected = np.sum(exponent - 0.5 * np.log(2.0 * np.pi), -1)
    per_dim = kind.per_dim(result.logp, (2,))
    np.testing.assert_allclose(per_dim, -expected / 2, atol=1e-4)


def test_a_series_counts_its_channels_at_every_place() -> None:
    kind = examples.Values(STANDARD)
    shift = kind.per_dim(jnp.zeros(1), (7, 2))
    np.testing.assert_allclose(7 * 2 * shift, 7 * np.sum(np.log(STD)), rtol=1e-6)


def test_distances_are_of_standardised_numbers_and_points_stay_as_they_are() -> None:
    x = np.random.default_rng(3).normal(size=(5, 2)).astype("f4")
    scaled = np.array(MEAN) + np.array(STD) * x
    np.testing.assert_allclose(Coordinates(STANDARD).features(scaled), x, atol=1e-5)
    np.testing.assert_array_equal(Coordinates(None).features(x.reshape(5, 1, 1, 2)), x)


def test_a_run_keeps_its_numbers(vectors: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """They are in its config.json, and no data are needed then."""
    config = settled(config_of(vectors), tmp_path)
    files.write_json(tmp_path / "config.json", config.to_dict())
    vectors.unlink()
    again = settled(config_of(vectors), tmp_path)
    assert again.data.mean == config.data.mean
    assert again.data.std == config.data.std
    assert len(again.data.std) == 2
    images = defaults.points("two_moons")
    assert settled(images, tmp_path) is images


@pytest.mark.parametrize(
    ("values", "shape", "words"),
    [
        (np.zeros((5, 2), complex), (2,), r"examples of complex128\[5, 2\]; they must be real"),
        (np.zeros((5, 3)), (2,), r"has examples of \[3\], but data.shape=\(2,\)"),
        (np.zeros((5, 2, 1)), (2,), r"has examples of \[2, 1\], but data.shape=\(2,\)"),
        (np.zeros((0, 2)), (2,), "has no examples"),
        (np.zeros((1, 2)), (2,), r"has 1 example\(s\); a data set has two or more"),
        (np.array([[1, 2], [np.nan, 1], [1, np.inf]]), (2,), "2 examples with .*: rows 1, 2, cou"),
        (np.array([[1, 2], [1e39, 1.0]]), (2,), "1 example with .* too large for float32: rows 1,"),
        (np.array([[1, 2], [1, 4], [1, 5.0]]), (2,), r"channel 0 is 1 in all 2 examples \(1 such"),
    ],
)
def test_what_has_no_density_in_float32_is_refused(
    vectors: pathlib.Path, values: np.ndarray, shape: tuple[int, ...], words: str
) -> None:
    path = saved(vectors.with_name("other.npz"), values)
    with pytest.raises(ValueError, match=words):
        data.standard(config_of(path, shape=shape).data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (1.0,), "std": STD}, r"data.mean has 1 number\(s\) and config.data.std 2"),
        ({"std": (1.0, 0.0), "mean": MEAN}, r"config.data.std is .* a tuple of positive numbers"),
        ({"shape": ()}, r"they must be levels uint8 .*; data.shape makes real numbers of them"),
        ({"shape": (), "mean": (1.0,)}, r"data.shape is \(\); both must be \(\)"),
        ({"random_flip": True}, "config.data.random_flip is True, but arrays has points"),
        ({"dataset": "digits"}, r"data.shape=\(2,\) is the shape of .*, and digits has none; it"),
        ({"dataset": "two_moons"}, r"and two_moons has none; it must be \(\); those of arrays"),
    ],
)
def test_options_that_contradict_the_examples_are_refused(
    vectors: pathlib.Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        experiment.build(config_of(vectors, **changes)).dataset("train")
