"""Unknown entries of real-valued examples: masks, what is known, how near answers come."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import controllable
import sampling
from configs import defaults
from control import masks, methods, results, run
from control.methods import Measurement
from control.prior import prior_from_config
from control.problem import Problem
from data import entries
from data.standardisation import Standard
from diffusion.inverse import average_pool, masking
from diffusion.noise import image_noise
from evaluation import evaluate
from generation import answer_figures, value_figures
from generation.generator import Generator
from runtime import experiment
from runtime.experiment import Pixels
from sde_lib import VPSDE
from training import loop
from training.objective import objective_from_config

PIXELS = Pixels(0, True, False, Standard((1.0, 2.0), (3.0, 4.0)))


@pytest.mark.parametrize(
    ("kind", "shape", "known"),
    [
        ("half", (4,), [1, 1, 0, 0]),
        ("2:", (4,), [0, 0, 1, 1]),
        ("0:1,-1:", (5, 2), [1, 0, 0, 0, 1]),
        ("box", (8, 1), [1, 1, 1, 0, 0, 1, 1, 1]),
    ],
)
def test_masks_of_values_know_what_they_say(
    kind: str, shape: tuple[int, ...], known: list[int]
) -> None:
    mask = masks.make_mask_of_values(kind, 0.06, 0, shape)
    assert mask.shape == (shape[0], *[1] * (len(shape) - 1))
    np.testing.assert_array_equal(mask.ravel(), known)


def test_random_places_are_a_share_of_all_and_files_are_taken_as_they_are(
    tmp_path: pathlib.Path,
) -> None:
    random = masks.make_mask_of_values("random", 0.25, 3, (16, 2))
    assert random.shape == (16, 1)
    assert (random == 0).sum() == 4
    assert masks.make_mask_of_values("half", 0.5, 0, (4, 4, 2)).shape == (4, 4, 1)
    mask = np.array([[1, 0], [0, 1], [1, 1]])
    np.save(tmp_path / "mask.npy", mask)
    stored = masks.make_mask_of_values(str(tmp_path / "mask.npy"), 0.5, 0, (3, 2))
    np.testing.assert_array_equal(stored, mask)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("theta", "is none of half, box, random, nor slices of the first axis that are known"),
        ("0:4", "there is nothing to paint"),
        ("4:", "control.mask='4:': '4:' is none of the 4 places"),
        ("lost.npy", "nor slices of the first axis .* nor an .npy file"),
    ],
)
def test_masks_that_say_nothing_are_refused(kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        masks.make_mask_of_values(kind, 0.25, 0, (4,))


def test_a_mask_of_another_shape_is_refused(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "mask.npy", np.eye(3))
    with pytest.raises(ValueError, match=r"the mask is \(3, 3\), which does not fit"):
        masks.make_mask_of_values(str(tmp_path / "mask.npy"), 0.25, 0, (4,))


def test_means_of_neighbours_are_those_of_a_series() -> None:
    x = jnp.arange(12.0).reshape(1, 6, 2)
    np.testing.assert_allclose(average_pool(3)(x)[0, :, 0], np.array([2.0, 8.0]))
    with pytest.raises(ValueError, match="factor 4 does not divide images of 6 pixels"):
        average_pool(4)(x)
    with pytest.raises(ValueError, match="factor 2 does not divide images of 3 pixels"):
        average_pool(2)(jnp.zeros((1, 3)))


def test_scores_of_gaussian_answers_are_those_in_closed_form() -> None:
    """The CRPS of N(m, s^2) is s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y - m) / s."""
    rng = np.random.default_rng(0)
    mean, std, truth = 0.3, 2.0, np.full((1, 1), 1.7)
    x = mean + std * rng.normal(size=(1, 40_000, 1))
    numbers = results.closeness(x, truth, np.ones((1, 1), bool))
    z = (1.7 - mean) / std
    cdf, density = 0.5 * (1 + math.erf(z / 2**0.5)), math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    expected = std * (z * (2 * cdf - 1) + 2 * density - 1 / math.sqrt(math.pi))
    assert numbers["crps"] == pytest.approx(expected, abs=0.02)
    assert numbers["rmse"] == pytest.approx(1.4, abs=0.05)
    few = rng.normal(size=(4000, 5, 1)), rng.normal(size=(4000, 1))
    numbers = results.closeness(*few, np.ones((4000, 1), bool))
    assert numbers["crps"] == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)  # without bias
    assert "crps" not in results.closeness(few[0][:, :1], few[1], np.ones((4000, 1), bool))


def test_only_unknown_entries_count() -> None:
    originals = np.array([[1.0, 6.0], [4.0, -2.0]])
    mask = np.tile([1.0, 0.0], (2, 1))
    problem = Problem(
        lambda *_: None,  # type: ignore
        {"mask": mask},
        ["1", "2"],
        columns_after={"original": originals},
    )
    answers = np.repeat(np.asarray(PIXELS.to_model(originals)), 2, axis=0)
    answers[:, 0] += 100.0  # known, and wrong
    answers[:, 1] += [0.5, -0.5, 2.0, 2.0]
    numbers = results.nearness(problem, {"x": answers}, PIXELS)
    assert numbers["rmse"] == pytest.approx(math.sqrt(2.0), rel=1e-5)


@pytest.mark.parametrize("shape", [(2,), (16, 2), (8, 8, 1)])
def test_pictures_are_drawn_of_every_shape(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    originals, variants = rng.normal(size=(2, *shape)), rng.normal(size=(2, 5, *shape))
    measured = np.where(rng.random((2, *shape)) < 0.5, np.nan, originals)
    for picture in (
        answer_figures.answers(originals, measured, variants),
        value_figures.raster(variants[0]),
    ):
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert picture.min() < 100 < picture.max()


def vectors(tmp_path: pathlib.Path, **changes: Any) -> ConfigDict:
    """x_1 = x_0 + noise, in units in which nothing is near 1."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=4000)
    both = np.stack([first, 0.8 * first + 0.6 * rng.normal(size=4000)], 1)
    np.save(tmp_path / "pairs.npy", 1000.0 + 50.0 * both)
    config = defaults.points("arrays")
    defaults.vp(config, continuous=True)
    config.data.shape, config.data.data_dir = (2,), str(tmp_path / "pairs.npy")
    config.training.n_iters = config.training.snapshot_freq = config.optim.decay_steps = 600
    config.eval.bpd_num_images, config.eval.num_samples = 200, 500
    config.sampling.num_steps = config.sampling.num_samples = 20
    config.control.num_images, config.control.num_variants = 8, 200
    config.control.batch_size, config.control.mask = 1600, "0:1"
    config.update_from_flattened_dict({f"control.{k}": v for k, v in changes.items()})
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "colorize"}, r"draws images, .* valid values: inpaint, super_resolution, comp"),
        ({"task": "sdedit"}, "control.task='sdedit' draws images, and data.dataset='arrays'"),
        ({"mask": "box.png"}, "nor an .npy file"),
    ],
)
def test_what_values_cannot_have_is_refused(
    tmp_path: pathlib.Path, changes: dict[str, Any], words: str
) -> None:
    config = vectors(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        run.pose(config, experiment.build(config))


@pytest.mark.slow
def test_unknown_entries_are_drawn_from_their_conditional(tmp_path: pathlib.Path) -> None:
    """x_1 given x_0 is N(0.8 x_0, 0.6^2), in standard units: what `posterior` takes it for."""
    config = vectors(tmp_path, method="posterior")
    loop.train(config, tmp_path / "run")
    summary = run.control(config, tmp_path / "run")
    folder = tmp_path / "run" / "control" / "inpaint"
    with np.load(folder / "results.npz") as stored:
        drawn = stored["image"].reshape(8, 200, 2)
    known = (drawn[:, 0, 0] - 1000.0) / 50.0
    np.testing.assert_allclose(np.ptp(drawn[..., 0], axis=1), 0.0, atol=1.0)
    mean, std = (drawn[..., 1].mean(1) - 1000.0) / 50.0, drawn[..., 1].std(1) / 50.0
    np.testing.assert_allclose(mean, 0.8 * known, atol=0.2)
    np.testing.assert_allclose(std, 0.6, atol=0.12)
    assert 0 < summary["crps"] < 1
    assert json.loads((folder / "results.json").read_text())["coverage_80"] > 0.4


# --- entries that a network is told ---


def test_a_network_is_told_entries_and_says_nothing_of_them() -> None:
    seen = []

    def network(x: jax.Array, labels: jax.Array) -> jax.Array:
        seen.append(x)
        return x + labels[:, None]

    mask = entries.mask_of("1:", (3,), "training.known")
    told = entries.telling(network, mask, jnp.array([[7.0, 8.0, 9.0]]))
    output = told(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([10.0]))
    np.testing.assert_array_equal(seen[0], [[1.0, 8.0, 9.0]])
    np.testing.assert_array_equal(output, [[11.0, 0.0, 0.0]])


def test_a_loss_tells_the_network_and_learns_the_other_entries_alone() -> None:
    config = defaults.points("arrays")
    defaults.vp(config, continuous=True)
    config.data.shape, config.data.mean, config.data.std = (2,), (0.0, 0.0), (1.0, 2.0)
    config.training.known = "1:"
    parts = experiment.build(config)
    objective = objective_from_config(config, parts)
    seen = []

    def apply(params: Any, x: jax.Array, labels: jax.Array, **more: Any) -> jax.Array:
        seen.append(x)
        return params["params"] * jnp.ones_like(x)

    objective = dataclasses.replace(objective, apply=apply)
    images: Any = np.array([[3, 4], [5, 6]], np.float32)
    classes: Any = np.zeros(2, np.int32)

    def loss(params: jax.Array) -> jax.Array:
        key, numbers = jax.random.key(0), jnp.arange(2)
        return objective(params, images, classes, key, numbers, 2, train=True, flip=False)[0].sum()

    @jax.jit
    def computed() -> tuple[jax.Array, ...]:
        slope, each = jax.grad(loss)(jnp.ones(2)), jax.vmap(loss)(jnp.eye(2))
        return slope, each, loss(jnp.zeros(2)), seen[-1]

    slope, each, of_zero, x_t = (np.asarray(array) for array in computed())
    assert slope[0] != 0.0 == slope[1]
    np.testing.assert_allclose(each[1], of_zero, rtol=1e-6)
    np.testing.assert_allclose(x_t[:, 1], [2.0, 3.0])  # standardised, and without noise
    assert np.all(x_t[:, 0] != [3.0, 5.0])


class ExactConditional:
    """The score of x_0 in a pair of unit variances and correlation 0.8, told x_1, of VP."""

    def apply(self, variables: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        t = labels / 999.0
        alpha, sigma = VPSDE().alpha(t), VPSDE().sigma(t)
        score = -(x[:, 0] - alpha * 0.8 * x[:, 1]) / (0.36 * alpha**2 + sigma**2)
        return jnp.stack([score, jnp.full_like(score, jnp.nan)], -1)  # of x_1 it says nothing


def test_told_entries_give_the_posterior_of_the_others() -> None:
    config = defaults.points("arrays")
    defaults.vp(config, continuous=True)
    config.model.beta_min = 0.1
    config.data.shape, config.data.mean, config.data.std = (2,), (0.0, 0.0), (1.0, 1.0)
    config.training.known = config.control.mask = "1:"
    config.control.method, config.sampling.num_steps = "conditional", 40
    prior = prior_from_config(config, experiment.build(config))
    prior = dataclasses.replace(prior, module=ExactConditional())
    mask: Any = np.array([0, 1], np.float32)
    measurement = Measurement(
        masking(mask), lambda condition: controllable.in_painting(condition["y"], mask)
    )
    draw = methods.conditional(prior, config.control, measurement)
    y: Any = np.tile(np.array([0.0, 1.5], np.float32), (2000, 1))
    noise = image_noise(jax.random.split(jax.random.key(0), len(y)), (2,))
    x = jax.jit(
        lambda: draw(lambda labels, given: prior.score({}, labels, given), noise, {"y": y}).x
    )()
    np.testing.assert_allclose(x[:, 1], 1.5, rtol=1e-6)
    assert np.mean(x[:, 0]) == pytest.approx(1.2, abs=0.05)
    assert np.std(x[:, 0]) == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize(
    ("known", "changes", "words"),
    [
        ("", {"method": "conditional"}, "training.known is empty"),
        ("1:", {"method": "conditional"}, "control.mask='0:1' knows other entries than the netw"),
        ("0:1", {"method": "repaint"}, "this network is given some entries of every example"),
        ("0:9", {}, "training.known='0:9' is all of the 2 places of an example"),
        ("2:", {}, "training.known='2:': '2:' is none of the 2 places"),
        ("x", {}, "training.known='x' is none of slices of the first axis"),
    ],
)
def test_entries_that_do_not_fit_are_refused(
    tmp_path: pathlib.Path, known: str, changes: dict[str, Any], words: str
) -> None:
    config = vectors(tmp_path, **changes)
    config.training.known = known
    with pytest.raises(ValueError, match=words):
        run.pose(config, experiment.build(config))


def test_whole_examples_are_not_drawn_where_some_entries_are_told(tmp_path: pathlib.Path) -> None:
    config = vectors(tmp_path)
    config.training.known = "1:"
    parts = experiment.build(config)
    with pytest.raises(ValueError, match="so it draws the others alone"):
        Generator(parts, sampling.from_config(config), config.sampling)
    with pytest.raises(ValueError, match="so it draws the others alone"):
        evaluate.refuse(config, parts)
