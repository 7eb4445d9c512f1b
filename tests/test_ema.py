"""Moving averages: constant rates, power-function profiles, and those of other widths."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import ema
from runtime.ema_snapshots import Snapshots


def weights_of(rule: ema.Rule, count: int) -> np.ndarray:
    """[count]: how much each update is worth in the average after the last one."""
    w = np.asarray(jax.jit(jax.vmap(rule))(np.arange(1, count + 1)), np.float64)
    return w * np.append(np.cumprod(1 - w[:0:-1])[::-1], 1.0)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_a_profile_has_the_width_that_names_it(sigma_rel: float) -> None:
    """The standard deviation of the updates' weights, in units of the run, is sigma_rel; each is
    the integral of (gamma + 1) tau^gamma / t^(gamma + 1) over its update."""
    count, gamma = 5000, ema.gamma_of(sigma_rel)
    weights = weights_of(ema.power(sigma_rel), count)
    n = np.arange(1, count + 1)
    edges = (np.arange(count + 1) / count) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-3, atol=1e-9)
    mean = weights @ n
    assert np.sqrt(weights @ (n - mean) ** 2) / count == pytest.approx(sigma_rel, rel=1e-3)
    assert ema.width_of(gamma) == pytest.approx(sigma_rel, rel=1e-12)


def test_late_updates_keep_their_precision() -> None:
    """At n = 10^6 the plain formula of float32 is 3 % off."""
    rule, gamma = ema.power(0.1), ema.gamma_of(0.1)
    n = np.array([1, 2, 10**6], np.int32)
    exact = 1 - (1 - 1 / n.astype(np.float64)) ** (gamma + 1)
    np.testing.assert_allclose(jax.jit(jax.vmap(rule))(n), exact, rtol=1e-6)


def test_the_constant_rules() -> None:
    assert ema.constant(0.9)(5) == pytest.approx(0.1)
    assert ema.constant(0.999, warmup=True)(1) == pytest.approx(9 / 11)
    assert ema.constant(0.5, warmup=True)(100) == pytest.approx(0.5)
    moved = ema.update({"a": np.zeros(2)}, {"a": np.ones(2)}, 0.25)
    np.testing.assert_allclose(moved["a"], 0.25)


def test_inner_products_are_the_integrals() -> None:
    def profile(tau: np.ndarray, t: float, gamma: float) -> np.ndarray:
        return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)

    tau = (np.arange(200_000) + 0.5) / 200_000 * 10
    for case in [(4.0, 1.5, 9.0, 6.0), (9.0, 0.5, 4.0, 16.0), (10.0, 3.0, 10.0, 3.0)]:
        t1, gamma1, t2, gamma2 = case
        integral = np.mean(profile(tau, t1, gamma1) * profile(tau, t2, gamma2)) * 10
        assert ema.inner_product(*case) == pytest.approx(integral, rel=1e-4)


STEPS, EVERY, TRACKED = 1600, 100, (0.05, 0.1)


@pytest.fixture(scope="module")
def path() -> np.ndarray:
    """Parameters [STEPS, 3] on their way: a decay, a wave, a random walk; and a constant."""
    time = np.linspace(0, 1, STEPS)
    walk = np.cumsum(np.random.default_rng(0).standard_normal(STEPS)) / np.sqrt(STEPS)
    return np.stack([np.exp(-3 * time), np.sin(8 * time), walk, np.full(STEPS, 2.5)], 1)


@pytest.fixture(scope="module")
def averages(path: np.ndarray) -> dict[float, np.ndarray]:
    """Width -> the average of the path after each step [STEPS, 4], as training tracks it."""

    def tracked(sigma_rel: float) -> jax.Array:
        rule = ema.power(sigma_rel)

        def step(average: Any, updates: Any) -> Any:
            n, params = updates
            average = ema.update(average, params, rule(n))
            return average, average

        updates = jnp.arange(1, STEPS + 1), jnp.asarray(path, jnp.float32)
        return jax.lax.scan(step, jnp.zeros(4), updates)[1]

    widths = (*TRACKED, 0.07, 0.15, 0.2)
    made = jax.jit(lambda: [tracked(width) for width in widths])()
    return {width: np.asarray(average) for width, average in zip(widths, made, strict=True)}


@pytest.fixture(scope="module")
def folder(averages: dict, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    kept = tmp_path_factory.mktemp("run") / "ema"
    for step in range(EVERY, STEPS + 1, EVERY):
        rows = {ema.profile_name(width): {"w": averages[width][step - 1]} for width in TRACKED}
        Snapshots(kept).save(step, {**rows, "rate_0.9": {"w": np.zeros(4)}})
    return kept


TEMPLATE = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}


@pytest.mark.parametrize(
    ("step", "width", "tolerance"),
    [
        (STEPS, 0.05, 1e-6),  # tracked
        (900, 0.1, 1e-6),  # tracked, at an earlier snapshot
        (STEPS, 0.07, 1e-4),
        (STEPS, 0.15, 3e-4),
        (STEPS, 0.2, 3e-3),
        (1200, 0.07, 6e-4),
    ],
)
def test_reconstructed_averages_are_the_tracked_ones(
    step: int, width: float, tolerance: float, averages: dict, folder: pathlib.Path
) -> None:
    average = Snapshots(folder).reconstruct(TEMPLATE, step, width)
    assert average.sources == 2 * step // EVERY
    assert average.params["w"].dtype == np.float32
    error = np.abs(average.params["w"] - averages[width][step - 1])
    assert error.max() < tolerance
    assert error[3] < 2e-6, "what is constant stays as it is"


@pytest.mark.parametrize("width", [0.02, 0.05, 0.12, 0.28])
@pytest.mark.parametrize("step", [1000, 1050])
def test_coefficients_add_up_to_one(width: float, step: int) -> None:
    steps = np.repeat(np.arange(100, 1001, 100), 2)
    combination = ema.combination(steps, [0.05, 0.1] * 10, step, width)
    assert combination.coefficients.sum() == pytest.approx(1.0, abs=1e-9)
    if (step, width) == (1000, 0.05):
        np.testing.assert_allclose(combination.coefficients, np.eye(20)[18], atol=1e-9)
        assert combination.error < 1e-6
    else:
        assert 1e-3 < combination.error < 1.1


def test_the_error_is_the_distance_of_the_profiles() -> None:
    """Between the steps t = 0 and 10, on a fine grid."""
    steps, widths = [6.0, 10.0, 10.0], [0.1, 0.05, 0.1]
    combination = ema.combination(steps, widths, 10.0, 0.2)
    tau = (np.arange(100_000) + 0.5) / 100_000 * 10

    def profile(t: float, width: float) -> np.ndarray:
        gamma = ema.gamma_of(width)
        return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)

    stored = np.stack([profile(t, width) for t, width in zip(steps, widths, strict=True)])
    wanted = profile(10.0, 0.2)

    def distance(coefficients: np.ndarray) -> float:
        return float(np.linalg.norm(coefficients @ stored - wanted) / np.linalg.norm(wanted))

    assert combination.error == pytest.approx(distance(combination.coefficients), rel=1e-3)
    for direction in ([1, -1, 0], [0, 1, -1], [1, 0, -1]):  # the sum stays 1
        for sign in (0.01, -0.01):
            assert (
                distance(combination.coefficients + sign * np.array(direction)) > combination.error
            )


def test_a_checkpoint_serves_as_one_more_snapshot(averages: dict, folder: pathlib.Path) -> None:
    state = {"averages/sigma_rel_0.1/w": averages[0.1][1549], "params/w": np.zeros(4)}
    average = Snapshots(folder).reconstruct(TEMPLATE, 1550, 0.1, state)
    np.testing.assert_allclose(average.params["w"], averages[0.1][1549], atol=1e-6)
    assert average.sources == 31


def test_snapshots_are_whole_or_absent(averages: dict, tmp_path: pathlib.Path) -> None:
    kept = Snapshots(tmp_path / "ema")
    assert kept.steps() == []
    (tmp_path / "ema").mkdir()
    (tmp_path / "ema" / "7.npz.partial").write_bytes(b"PK what a killed process left")
    assert kept.steps() == []
    kept.save(10, {"sigma_rel_0.1": {"w": averages[0.1][9]}})
    assert [path.name for path in (tmp_path / "ema").iterdir()] == ["10.npz"]
    with np.load(tmp_path / "ema" / "10.npz", allow_pickle=False) as stored:
        assert stored["sigma_rel_0.1/w"].dtype == np.float32

    whole = (tmp_path / "ema" / "10.npz").read_bytes()
    at = whole.index(averages[0.1][9].tobytes())
    damaged = [whole[: len(whole) // 2], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]]
    for content in damaged:
        (tmp_path / "ema" / "10.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"snapshot .*10\.npz is damaged .*; remove it"):
            kept.reconstruct(TEMPLATE, 10, 0.1)


def test_what_is_not_there_is_said(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"no snapshot of a profile up to step 5 in .*: none\)"):
        Snapshots(tmp_path / "ema").reconstruct(TEMPLATE, 5, 0.1)
    with pytest.raises(ValueError, match=r"up to step 50 in .* \(steps: 100, 200, "):
        Snapshots(folder).reconstruct(TEMPLATE, 50, 0.1)
    with pytest.raises(ValueError, match=r"is 0\.3; it must be positive and at most 0\.289"):
        Snapshots(folder).reconstruct(TEMPLATE, STEPS, 0.3)
    with pytest.raises(ValueError, match=r"width 0\.005 at step 1599 .* off by \d+ %"):
        Snapshots(folder).reconstruct(TEMPLATE, 1599, 0.005)
    other = {"w": jax.ShapeDtypeStruct((5,), jnp.float32)}
    with pytest.raises(ValueError, match=r"does not fit: sigma_rel_0.05/w is float32\[4\]"):
        Snapshots(folder).reconstruct(other, STEPS, 0.1)
