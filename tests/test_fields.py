"""Series and fields that are drawn: their laws, and the conditional of a gap."""

from __future__ import annotations

import numpy as np

import data
from data.fields import Burgers, OscillatingSeries


def test_series_have_the_covariance_that_they_say() -> None:
    series = data.load("oscillating_series", "train", shape=(128, 1)).images[..., 0]
    empirical = series.T.astype(np.float64) @ series / len(series)
    np.testing.assert_allclose(empirical, OscillatingSeries.covariance(), atol=0.05)
    assert OscillatingSeries.covariance()[3, 3] == 1.0 + 0.1**2
    np.testing.assert_allclose(OscillatingSeries.covariance()[0, 16], np.exp(-2.0 / 9.0))


def test_a_gap_given_the_rest_is_gaussian_with_the_mean_and_covariance_of_it() -> None:
    """Errors of the mean are uncorrelated with what is known, and as wide as it says."""
    series = data.load("oscillating_series", "test", shape=(128, 1)).images[..., 0]
    known = np.ones(128, bool)
    known[40:60] = False
    mean, covariance = OscillatingSeries.conditional(series.astype(np.float64), known)
    error = series[:, ~known] - mean
    assert np.abs(error.T @ series[:, known] / len(series)).max() < 0.12
    white = np.linalg.solve(np.linalg.cholesky(covariance), error.T)
    np.testing.assert_allclose(np.cov(white), np.eye(20), atol=0.2)
    inverse = np.linalg.inv(OscillatingSeries.covariance())
    np.testing.assert_allclose(covariance, np.linalg.inv(inverse[40:60, 40:60]), atol=1e-9)


def test_fields_solve_burgers_equation() -> None:
    coefficients = np.random.default_rng(0).uniform(-1.0, 1.0, (100, 2, 3))
    h = 1e-4
    before, now, after = np.moveaxis(
        Burgers.solve(coefficients, np.array([0.5 - h, 0.5, 0.5 + h])), 1, 0
    )
    waves = np.arange(Burgers.GRID // 2 + 1)
    spectrum = np.fft.rfft(now)
    slope = np.fft.irfft(1j * waves * spectrum, Burgers.GRID)
    curvature = np.fft.irfft(-(waves**2) * spectrum, Burgers.GRID)
    rate = (after - before) / (2.0 * h)
    residual = rate + now * slope - Burgers.VISCOSITY * curvature
    assert np.abs(residual).max() < 1e-4 * np.abs(rate).max()


def test_fields_begin_with_waves_of_these_amplitudes_and_stay_accurate() -> None:
    rng = np.random.default_rng(1)
    coefficients = rng.uniform(-1.0, 1.0, (2, 2, 3))
    coefficients[1] = [[1, 1, 1], [1, 1, 1]]  # the corner where phi spans most
    x = 2.0 * np.pi * np.arange(128) / 128
    k = np.arange(1, 4)
    first = (coefficients[:, 0] / k) @ np.cos(np.outer(k, x))
    first += (coefficients[:, 1] / k) @ np.sin(np.outer(k, x))
    u = Burgers.solve(coefficients, np.array([0.0, 4.0]))
    np.testing.assert_allclose(u[:, 0], first, atol=2e-4)
    np.testing.assert_allclose(u.mean(2), 0.0, atol=1e-4)  # momentum is kept
    assert np.all(np.square(u[:, 1]).sum(1) < np.square(u[:, 0]).sum(1))  # and energy lost


def test_a_field_is_solved_from_amplitudes_even_in_minus_one_to_one() -> None:
    u = np.random.default_rng(2).random((3, 6))
    images, _ = Burgers.place(u)
    times = Burgers.LAST * np.arange(1, 33) / 32
    expected = Burgers.solve(2.0 * u.reshape(3, 2, 3) - 1.0, times)[:, :, ::4]
    np.testing.assert_allclose(images.reshape(3, 32, 32), expected, atol=1e-9)


def test_fields_are_the_same_for_ever() -> None:
    fields = data.load("burgers", "test", shape=(32, 32, 1))
    assert (len(fields), fields.image_shape) == (1000, (32, 32, 1))
    assert np.all(np.isfinite(fields.images))
    later, earlier = fields.images[:, -1], fields.images[:, 0]
    assert np.mean(later**2) < np.mean(earlier**2)
