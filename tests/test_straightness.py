"""The straightness of flows, against Gaussian data, whose paths are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from jax import Array

from configs.flow import two_moons_rectified
from diffusion.straightness import Paths, straightness
from evaluation import evaluate
from evaluation.report import console, content, quantities
from runtime import experiment
from sde_lib import EDMSDE, SDE, RectifiedSDE, TrigonometricSDE
from tests import gaussians
from tests.marks import but_slow

MEAN, STD = 0.8, 0.3
KINDS: dict[str, SDE] = {
    "rectified": RectifiedSDE(),
    "trigonometric": TrigonometricSDE(),
    "edm": EDMSDE(sigma_max=5.0),
}


def exact(sde: SDE, z: np.ndarray, std: float, eps: float) -> np.ndarray:
    """By quadrature of the known map x(t) = alpha m + c r(t), r^2 = alpha^2 std^2 + sigma^2."""
    with jax.enable_x64(True):

        def r(t: Array) -> Array:
            return jnp.sqrt(sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2)

        ends = np.asarray(jax.vmap(r)(jnp.array([eps, sde.T])))
        alphas = np.asarray(sde.alpha(jnp.array([eps, sde.T])), np.float64)
        c = (z - alphas[1] * MEAN) / ends[1]
        slopes = jax.jit(lambda t: jnp.stack([jax.grad(sde.alpha)(t), jax.grad(r)(t)]))
        length = sde.T - eps
        way = (alphas[0] - alphas[1]) * MEAN + c * (ends[0] - ends[1])

        def error(t: float, c: float, way: float) -> float:
            fall, rise = np.asarray(slopes(jnp.float64(t)))
            return float((way + length * (fall * MEAN + c * rise)) ** 2) / length

        return np.array(
            [
                scipy.integrate.quad(error, eps, sde.T, args=pair, points=[2 * eps, 10 * eps])[0]
                for pair in zip(c, way, strict=True)
            ]
        )


def paths(sde: SDE, z: Any, std: float, eps: float) -> Paths:
    score_fn = gaussians.linear_score(sde, MEAN, std)
    found = jax.jit(lambda z: straightness(sde, score_fn, z, eps=eps))(jnp.asarray(z, jnp.float32))
    assert found.ok.all()
    return found


@pytest.mark.parametrize("kind", but_slow(KINDS, ["rectified"]))
def test_it_is_exact_for_gaussian_data(kind: str) -> None:
    """One pixel, and the mean over two that differ: the second is the average of both."""
    sde, eps = KINDS[kind], 0.01 * KINDS[kind].T
    z = sde.prior_std * np.array([-1.7, -0.2, 0.6, 2.1])
    expected = exact(sde, z, STD, eps)
    found = paths(sde, z[:, None], STD, eps)
    np.testing.assert_allclose(found.straightness, expected, rtol=2e-3, atol=3e-5)
    assert found.straightness.max() > 0.01, "the paths are curved"
    both = paths(sde, np.stack([z, z[::-1]], 1), STD, eps)
    np.testing.assert_allclose(
        both.straightness, (expected + expected[::-1]) / 2, rtol=2e-3, atol=3e-5
    )


def test_paths_to_one_point_are_straight_and_those_of_another_clock_are_not() -> None:
    """`x_t = (1 - t) m + t z` exactly; the trigonometric clock bends the same paths."""
    z = np.array([[-1.0], [0.5], [2.0]])
    assert paths(RectifiedSDE(), z, 0.0, 1e-3).straightness.max() < 1e-5
    assert paths(TrigonometricSDE(), z, 0.0, 1e-3).straightness.min() > 0.01


def test_a_path_that_is_given_up_is_said_to_be() -> None:
    sde = dataclasses.replace(RectifiedSDE())
    found = jax.jit(lambda z: straightness(sde, lambda x, t: x * jnp.nan, z))(jnp.ones((2, 1)))
    assert not found.ok.any()


def test_the_report_has_it_with_its_error_and_how_it_was_made() -> None:
    measured = {
        "straightness": 0.25, "straightness_stderr": 0.01, "straightness_images": 100,
        "straightness_nfe": 44.6,
    }  # fmt: skip
    options = {"bpd_solver": "Tsit5", "bpd_rtol": 1e-3, "bpd_atol": 1e-4}
    results = {"step": 7, "weights": "EMA weights", "seed": 0, "versions": {}}
    results |= {"made_by": {"eval": options}}
    number = quantities.numbers(results | measured)["straightness"]
    assert console.table(results | measured)[1:] == [
        ("Straightness of the flow", "0.2500 ± 0.0100  (100 paths, 45 NFE; 0 is straight)")
    ]
    config = two_moons_rectified.get_config()
    facts = content.number_content(number, config, None)["made_from"]
    assert facts["clock"] == "that of training.sde=rectified"
    assert facts["solver"] == "Tsit5, rtol 0.001, atol 0.0001"
    assert facts["NFE"] == "45 per path"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training.continuous": False}, "paths ask the network at all times"),
        ({"training.time": "fixed"}, "straightness_images is 5, but"),
        ({"training.objective": "classifier"}, "which has no score"),
    ],
)
def test_a_network_without_a_flow_is_refused(changes: dict[str, Any], words: str) -> None:
    config = two_moons_rectified.get_config()
    config.model.prediction, config.training.weighting = "", ""
    config.eval.straightness_images, config.eval.enable_bpd = 5, False
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=words):
        evaluate.refuse(config, experiment.build(config))
