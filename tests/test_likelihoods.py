"""Likelihoods of a data set: their bound by noise level, and their calibration."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from configs.toy import two_moons_edm
from diffusion.probes import exact
from evaluation import batch_cache, evaluate, likelihoods
from evaluation.metrics.calibration import calibration
from evaluation.report import console, content, facts, quantities
from likelihood import drift_and_divergence
from runtime import experiment
from runtime.workdir import Trained
from sde_lib import VPSDE
from tests import gaussians
from tests.test_training import use_devices

MEAN, STD = 0.3, np.array([0.2, 0.9], np.float32)


def test_calibration_by_its_definition() -> None:
    found = calibration(np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 3.0]))
    assert found.difference == pytest.approx(4 / 3)
    assert found.stderr == pytest.approx(np.sqrt(7 / 9))
    assert found.z == pytest.approx(4 / np.sqrt(7))
    assert found.spread == pytest.approx(np.sqrt(10 / 3))
    assert np.isnan(calibration(np.ones(1), np.zeros(1)).z)
    with pytest.raises(ValueError, match=r"\(2,\) are not of the exact values \(3,\)"):
        calibration(np.ones(2), np.ones(3))


def test_a_trace_of_many_entries_is_exact_in_parts() -> None:
    """90 entries, more than are computed together, of a flow whose Jacobian is known."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(90, 90)).astype(np.float32) / 9
    x = rng.normal(size=(9, 10, 1)).astype(np.float32)

    def flow(t: Any, x: jax.Array) -> jax.Array:
        return t * jnp.sin(mix @ x.reshape(-1)).reshape(x.shape)

    @jax.jit
    def computed(x: jax.Array) -> Any:
        probes = exact(jax.random.split(jax.random.key(2), 1), x.shape)[:, 0]
        return drift_and_divergence(flow, 0.5, x, probes), flow(0.5, x)

    (drift, divergence), flowing = computed(x)
    np.testing.assert_allclose(drift, flowing, rtol=1e-6)
    expected = 0.5 * np.sum(np.diag(mix) * np.cos(mix @ x.reshape(-1)))
    np.testing.assert_allclose(divergence, expected, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Exact(experiment.Parts):
    """Parts whose network is the score of Gaussian points, in the first two of three units."""

    def score(self, params: Any, classes: Any = None, given: Any = None) -> Any:
        return gaussians.gaussian(MEAN, STD.reshape(1, 1, 2), (1, 1, 2)).score_fn(self.sde)


def test_points_of_a_gaussian_are_measured_by_level_and_calibrated(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nats are the density's; parts and ends are the bound; the estimate is calibrated.

    The two coordinates differ, so that a Gaussian probe has noise that the exact trace lacks.
    """
    use_devices(monkeypatch, 1)
    config = two_moons_edm.get_config()
    changes = {
        "bpd_bound": True, "bpd_bound_levels": 4, "bpd_bound_draws": 32, "bpd_probe": "gaussian",
        "calibration_images": 48, "bpd_rtol": 1e-4, "bpd_atol": 1e-4, "batch_size": 64,
    }  # fmt: skip
    config.eval.update(changes)
    rng = np.random.default_rng(0)
    images = (MEAN + STD * rng.standard_normal((64, 1, 1, 2))).astype(np.float32)
    points = data.Dataset("gaussian", "test", images, np.zeros(64, np.int32), 0, (1, 1, 2), 1)
    built = vars(experiment.build(config))
    parts = Exact(**built | {"dataset": lambda split: points, "sde": VPSDE()})
    store = batch_cache.Store(tmp_path, {})
    trained = Trained({}, 1, "", "")
    results = likelihoods.likelihood_results(config, parts, trained, tmp_path, store)
    store.close()
    density = gaussians.gaussian(MEAN, STD.reshape(1, 1, 2), (1, 1, 2))
    log_prob = jax.jit(lambda x, t: density.log_prob(parts.sde, x, t))
    logp = np.asarray(log_prob(images, np.full(64, 1e-5, np.float32)))
    assert results["nats_per_dim_calibration_exact"] == pytest.approx(
        -float(logp[:48].mean()) / 2, abs=2e-3
    )
    by_noise = results["nats_per_dim_bound_by_noise"]
    total = by_noise["ends"] + sum(by_noise["parts"])
    assert total == pytest.approx(results["nats_per_dim_bound"], abs=1e-5)
    assert len(by_noise["log_snr"]) == 5
    snr = np.exp(by_noise["log_snr"])[:, None]
    expected = -0.25 * np.diff(np.log1p(snr * STD**2).sum(1))
    errors = np.abs(np.array(by_noise["parts"]) - expected)
    assert (errors < 4 * np.array(by_noise["parts_stderr"]) + 1e-4).all()
    assert max(by_noise["parts_stderr"]) < 0.1 < max(expected) / 2
    assert (tmp_path / "bound_by_noise.png").stat().st_size > 5000
    assert 0.0 < results["nats_per_dim_calibration_spread"] < 2.0
    assert abs(results["nats_per_dim_calibration_z"]) < 4.0
    assert not (tmp_path / "shards").exists(), "both computations are tidied up"
    shown = dict(console.number_rows(results | {"examples": "points"}, "calibration"))
    exact_shown = f"exact {results['nats_per_dim_calibration_exact']:.4f}"
    assert exact_shown in shown["Nats/dim, estimate less exact trace"]
    assert "±" in shown["Nats/dim, estimate less exact trace"]
    made_by = {"made_by": {"eval": config.eval.to_dict()}, "examples": "points"}
    of_calibration = facts.FACTS["calibration"](results | made_by, content.settings_of(config))
    assert of_calibration["samples"].startswith("the first 48 test points, ")
    z = quantities.text(results["nats_per_dim_calibration_z"], 2)
    assert shown["Nats/dim, z-score of the estimate"].startswith(z)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"bpd_probe": "exact", "calibration_images": 4},
            "eval.calibration_images is 4, but eval.bpd_probe is 'exact'",
        ),
        (
            {"bpd_bound": True, "bpd_bound_levels": 5},
            "eval.bpd_bound_levels is 5; it must be a divisor of eval.bpd_bound_draws, 64, or 0",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    changes: dict[str, Any], words: str
) -> None:
    config = two_moons_edm.get_config()
    config.eval.update(changes | {"enable_bpd": True})
    with pytest.raises(ValueError, match=words):
        evaluate.refuse(config, experiment.build(config))
