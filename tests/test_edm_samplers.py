"""EDM's samplers through the sampler of a config, against trajectories of EDM's own code."""

from __future__ import annotations

import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import sampling
import sde_lib
from diffusion import few_steps, grids, heun
from diffusion.noise import recorded_noise
from diffusion.trajectory import denoised
from tests import edm_cases, gaussians, golden_cases, test_sampling

case = functools.lru_cache(maxsize=1)(edm_cases.case)
VP = grids.VPBetas(0.1, 19.9).noise(np.array([1e-3, 1.0]))  # EDM's own range for its VP grid
RANGES = {"vp": (VP[0], VP[1]), "ve": (0.02, 100), "iddpm": (0.002, 81), "edm": (0.002, 80)}
GRIDS = {"edm": "karras", "ve": "log_snr", "vp": "vp", "iddpm": "iddpm"}


def runs() -> list[Any]:
    """The pickle and the name of every run."""
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in edm_cases.PICKLES
        if not path.stem.endswith("_old")
        for name in edm_cases.runs_of(path)
    ]


def config_of(net: edm_cases.Case, run: dict[str, Any]) -> ConfigDict:
    """The config of a run: noise levels in the units of the network's images."""
    config, kwargs = net.config.copy_and_resolve_references(), dict(run["kwargs"])
    discretization = kwargs.get("discretization", "edm")
    smallest, largest = RANGES[discretization]
    smallest = max(kwargs.get("sigma_min", smallest), float(net.meta["sigma_min"]))
    largest = min(kwargs.get("sigma_max", largest), float(net.meta["sigma_max"]))
    unit = 0.5 if config.training.sde == "vesde" else 1.0
    if config.training.sde == "edm":  # whose process ends where the sampler begins
        config.model.sigma_max = float(largest)
    config.sampling.update(
        {
            "method": kwargs.get("solver", "heun"),
            "num_steps": kwargs["num_steps"],
            "time_grid": GRIDS[discretization],
            "sigma_min": float(smallest * unit),
            "sigma_max": float(largest * unit),
            "rho": float(kwargs.get("rho", 7)),
            "schedule": kwargs.get("schedule", "linear"),
            "scaling": kwargs.get("scaling", "none"),
            "alpha": float(kwargs.get("alpha", 1)),
            "churn": float(kwargs.get("S_churn", 0)),
            "churn_min": kwargs.get("S_min", 0) * unit,
            "churn_max": min(float(kwargs.get("S_max", math.inf)), 1e9) * unit,
            "churn_noise": float(kwargs.get("S_noise", 1)),
        }
    )
    return config


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name"), runs())
def test_runs_are_those_of_edm(path: pathlib.Path, name: str) -> None:
    """Their samples, from the same latents and noise, and how often they ask the network."""
    net, z = case(path), case(path).numbers
    config = config_of(net, net.meta["runs"][name])
    latents = edm_cases.channels_last(z["latents"])
    draws = latents[None]
    if f"{name}/noise" in z.files:
        draws = jnp.concatenate([draws, edm_cases.channels_last(z[f"{name}/noise"])])
    classes = net.classes(len(latents))
    sampler, sde = sampling.from_config(config), sde_lib.from_config(config)
    with jax.disable_jit():  # but for the network, compiled once
        samples = sampler(
            sde, lambda x, t: net.compiled_score(x, t, classes), recorded_noise(draws)
        )
    made, expected = samples.x, np.moveaxis(z[f"{name}/out"], 1, -1)
    made = 2 * made - 1 if config.training.sde == "vesde" else made
    assert int(samples.nfe) == net.meta["runs"][name]["nfe"]
    assert np.abs(made - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.golden
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem) for p in golden_cases.files("edm") if "u" in np.load(p)]
)
def test_noise_levels_of_a_chain_are_rounded_as_in_edm(path: pathlib.Path) -> None:
    """To the nearest; what EDM rounds to no noise at all becomes the smallest level."""
    z = np.load(path)
    sde = sde_lib.CosineVPSDE(len(z["u"]) - 1)
    np.testing.assert_allclose(grids.discrete_noise(sde), z["u"][-2::-1], rtol=5e-4)
    rounded = grids.rounded_noise(sde, z["round_in"], True)
    expected = np.maximum(z["round_out"], grids.discrete_noise(sde)[0])
    np.testing.assert_allclose(rounded, expected, rtol=5e-4)


@pytest.mark.golden
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem) for p in golden_cases.files("edm") if "vp_t" in np.load(p)]
)
def test_noise_levels_of_vp_are_those_of_edm(path: pathlib.Path) -> None:
    z, betas = np.load(path), grids.VPBetas(0.1, 19.9)
    t = np.asarray(z["vp_t"], np.float64)
    error = 1e-7 / np.maximum(z["vp_sigma"], 1e-3) ** 2  # of exp(x) - 1 in their float32
    assert (np.abs(betas.noise(t) / z["vp_sigma"] - 1) <= error + 1e-6).all()
    np.testing.assert_allclose(betas.time(betas.noise(t)), t, rtol=1e-9)


def test_levels_of_vps_grid_are_those_of_even_times_from_1_to_a_thousandth() -> None:
    sde, share = sde_lib.VPSDE(), np.linspace(0.0, 1.0, 7)
    times = np.linspace(1.0, 1e-3, 7)
    expected = np.exp(-grids.half_log_snr(sde, times))
    found = grids.NOISE_GRIDS["vp"](share, expected[0], expected[-1], 7.0)
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # of the SDE's float32


def test_levels_of_iddpms_grid_are_those_of_its_chain_that_lie_between_the_ends() -> None:
    """From the largest down; an end that is a level of the chain, but for rounding, is in it."""
    chain = grids.discrete_noise(sde_lib.CosineVPSDE(1000))
    everything = np.linspace(0.0, 1.0, len(chain))
    for error in (-1e-4, 1e-4):
        ends = chain[-1] * (1 + error), chain[0] * (1 + error)
        found = grids.NOISE_GRIDS["iddpm"](everything, *ends, 7.0)
        np.testing.assert_array_equal(found, chain[::-1])
    few = grids.NOISE_GRIDS["iddpm"](np.array([0.0, 0.5, 1.0]), chain[500], chain[100], 7.0)
    np.testing.assert_array_equal(few, chain[[500, 300, 100]])


@pytest.mark.parametrize("sde", [sde_lib.VESDE(N=30), sde_lib.VPSDE(N=30)])
def test_a_discrete_network_is_told_the_nearest_level_of_its_chain(
    sde: sde_lib.VESDE | sde_lib.VPSDE,
) -> None:
    """x has alpha and sigma of the noise that is asked for; the network's own sigma and its label,
    in units of T, are those of the level. The chain's ends are the range."""
    chain = grids.discrete_noise(sde)
    assert grids.noise_range(sde, True) == (chain[-1], chain[0])
    noise = np.append(chain[[29, 12, 0]], 0.6 * chain[20] + 0.4 * chain[21])
    found = grids.levels_of_noise(sde, noise, True)
    numbers = np.array([29, 12, 0, 20])
    np.testing.assert_allclose(found.t, numbers / 29 * sde.T)
    np.testing.assert_allclose(found.lam, -np.log(noise))
    if isinstance(sde, sde_lib.VESDE):
        np.testing.assert_allclose(found.alpha, 1.0)
        np.testing.assert_allclose(found.sigma, chain[numbers])
    else:
        np.testing.assert_allclose(found.alpha**2 * (1 + noise**2), 1.0)
        np.testing.assert_allclose(found.sigma**2 * (1 + chain[numbers] ** -2), 1.0)


def test_heuns_steps_along_the_noise_itself_are_those_of_edm_in_every_sde() -> None:
    """Where sigma(t) = t and s = 1, and but for how steps are counted; for images in [0, 1], whose
    middle the prior has, as for those in [-1, 1]."""
    sde, z = sde_lib.VPSDE(), np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 2)))
    noise, score_fn = recorded_noise(z), gaussians.two_modes((2,)).score_fn(sde)
    levels = grids.NOISE_GRIDS["karras"](np.linspace(0, 1, 6), *grids.noise_range(sde, False), 7.0)
    ve = sde_lib.EDMSDE(sigma_max=200.0)
    score = gaussians.linear_score(ve, 0.3, 0.5)
    options: dict[str, Any] = {"schedule": "vp", "scaling": "vp"}

    @jax.jit
    def run() -> Any:
        times = grids.times_of(sde, -np.log(levels))
        return [
            (
                heun.heun(sde, score_fn, noise, levels).x,
                few_steps.edm(sde, score_fn, noise, times).x,
            ),
            (
                heun.heun(sde, score_fn, noise, levels, scaling="vp").x,
                denoised(
                    sde,
                    score_fn,
                    heun.heun(sde, score_fn, noise, levels, scaling="vp", denoise=False).x,
                    times[-1],
                ),
            ),
            (
                heun.heun(ve, score, noise, levels, **options).x,
                2 * heun.heun(
                    ve, lambda x, t: 2 * score(2 * x - 1, 2 * t), noise, levels / 2,
                    image_range=(0.0, 1.0), **options,
                ).x - 1,
            ),
        ]  # fmt: skip

    for made, expected in run():
        np.testing.assert_allclose(made, expected, atol=1e-3)


def test_eulers_steps_end_in_the_scale_of_the_sde() -> None:
    """y = x / alpha follows the noise, dy = e d(sigma / alpha); denoised, it is the image."""
    sde, z = sde_lib.VPSDE(), np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 2)))
    score_fn, levels = gaussians.two_modes((2,)).score_fn(sde), np.array([5.0, 2.0, 0.5])

    @jax.jit
    def run() -> Any:
        times, y, ends = grids.times_of(sde, -np.log(levels)), levels[0] * z[0], []
        for t, step in zip(times, np.append(levels[1:], 0.0) - levels, strict=True):
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            ends = [alpha * y, y - step * sigma * score_fn(alpha * y, jnp.full(4, t))]
            y = ends[1]
        noise = recorded_noise(z)
        return ends, [
            heun.heun(sde, score_fn, noise, levels, order=1, denoise=denoise).x
            for denoise in (False, True)
        ]

    for expected, made in zip(*run(), strict=True):
        np.testing.assert_allclose(made, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize(("schedule", "scaling"), [("linear", "vp"), ("ve", "none"), ("vp", "vp")])
def test_steps_have_their_order_along_every_schedule(
    method: str, schedule: str, scaling: str
) -> None:
    """Halving them divides the error by 2 or 4, down to a level where noise is still there."""
    sde, z = sde_lib.EDMSDE(), np.asarray(jax.random.normal(jax.random.key(0), (1, 8, 2)))
    mean, std = 0.3, 0.5
    score_fn = gaussians.linear_score(sde, mean, std)
    largest, smallest = 5.0, 0.5
    growth = math.sqrt((std**2 + smallest**2) / (std**2 + largest**2))
    exact = mean + growth * (largest * z[0] - mean)

    def error(steps: int) -> jax.Array:
        share = np.linspace(0, 1, steps)
        made = heun.heun(
            sde, score_fn, recorded_noise(z), grids.karras_noise(share, largest, smallest, 7.0),
            order=2 if method == "heun" else 1, schedule=schedule, scaling=scaling, denoise=False,
        ).x  # fmt: skip
        return jnp.abs(made - exact).max()

    coarse, fine = jax.jit(lambda: (error(17), error(33)))()
    measured = math.log2(float(coarse) / float(fine))
    assert abs(measured - (2 if method == "heun" else 1)) < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cubic"}, "unknown sampling.schedule 'cubic'; known: linear, ve, vp"),
        ({"scaling": "ve"}, "unknown sampling.scaling 've'; known: none, vp"),
        ({"time_grid": "quadratic"}, "unknown sampling.time_grid 'quadratic'; known: iddpm, ka"),
        ({"sigma_max": 100.0}, "sampling.sigma_max=100 is above the largest noise level of VESDE"),
        ({"sigma_min": 1e-3}, "sampling.sigma_min=0.001 is below the smallest noise level of VE"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min=3 must be below sampling.sigma_max=2"),
        ({"churn": -1.0}, "churn must be at least 0"),
    ],
)
def test_refusals_name_the_setting_and_the_valid_values(
    changes: dict[str, Any], message: str
) -> None:
    sde = sde_lib.VESDE()
    with pytest.raises(ValueError, match=message):
        sampling.from_config(test_sampling.config_of(method="heun", num_steps=3, **changes))(
            sde, gaussians.linear_score(sde, 0.0, 1.0), test_sampling.normal_noise(1)
        )
