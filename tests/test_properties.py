"""Properties that hold for every value: SDEs of any parameters at any times, conversions of any
prediction, invariances of solvers, configs of any fields, files of any arrays and any cut.

Hypothesis draws the values, the same ones in every run; HYPOTHESIS_EXAMPLES=1000 draws more.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import configs
import sde_lib
from configs import schema
from configs.rules import Field
from diffusion import few_steps, flow_maps, grids, parametrisation
from diffusion.noise import recorded_noise
from diffusion.trajectory import Samples
from interop import flax_msgpack, formats, pth, pth_writer
from sde_lib import SDE
from tests import gaussians, marks

MORE = int(os.environ.get("HYPOTHESIS_EXAMPLES", "0"))


def examples(count: int) -> Callable[..., Any]:
    """`count` examples, or as many as HYPOTHESIS_EXAMPLES says; new ones only then."""
    return hypothesis.settings(
        max_examples=MORE or count,
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


# Every SDE by name, with any parameters that make sense of it.
PARAMETERS: dict[str, dict[str, st.SearchStrategy[float]]] = {
    "vpsde": {"beta_min": numbers(0.01, 1.0), "beta_max": numbers(2.0, 30.0)},
    "subvpsde": {"beta_min": numbers(0.01, 1.0), "beta_max": numbers(2.0, 30.0)},
    "cosine_vpsde": {},
    "vesde": {"sigma_min": numbers(1e-3, 0.1), "sigma_max": numbers(1.0, 400.0)},
    "edm": {"sigma_min": numbers(1e-3, 0.1), "sigma_max": numbers(1.0, 400.0)},
    "sigma_power": {"sigma_base": numbers(1.5, 50.0)},
    "rectified": {},
    "flow_ot": {"sigma_min": numbers(1e-3, 0.1)},
    "trigonometric": {},
    "interpolant": {
        "time_power": numbers(1.0, 3.0),
        "data_power": numbers(1.0, 3.0),
        "noise_power": numbers(1.0, 3.0),
    },
}


@st.composite
def sdes(draw: st.DrawFn) -> SDE:
    name = draw(st.sampled_from(list(PARAMETERS)))
    parameters: dict[str, Any] = {k: draw(v) for k, v in PARAMETERS[name].items()}
    return sde_lib.SDES[name](**parameters)


def ordered_times(count: int) -> st.SearchStrategy[list[float]]:
    """Shares of T in the middle of the process, in order and apart."""
    shares = st.lists(st.integers(1, 19), min_size=count, max_size=count, unique=True)
    return shares.map(lambda chosen: [0.05 * share for share in sorted(chosen)])


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with jax.enable_x64(True):
        yield


def test_every_sde_is_drawn() -> None:
    assert set(PARAMETERS) == set(sde_lib.SDES)


@given(sdes(), ordered_times(3))
@examples(30)
def test_transitions_compose_and_end_at_the_marginals(sde: SDE, shares: list[float]) -> None:
    r, s, t = (jnp.asarray([share * sde.T], float) for share in shares)
    (a_ts, v_ts), (a_sr, v_sr), (a_tr, v_tr) = (
        sde.transition(*pair) for pair in ((t, s), (s, r), (t, r))
    )
    np.testing.assert_allclose(a_tr, a_ts * a_sr, rtol=1e-8)
    np.testing.assert_allclose(v_tr, v_ts + a_ts**2 * v_sr, rtol=1e-7)
    np.testing.assert_allclose(sde.sigma(t) ** 2, v_ts + a_ts**2 * sde.sigma(s) ** 2, rtol=1e-7)
    assert float(v_ts[0]) > 0.0


@given(sdes(), ordered_times(1))
@examples(30)
def test_rates_drift_and_diffusion_are_derivatives(sde: SDE, shares: list[float]) -> None:
    """By central differences; g^2 is the rate at which the variance of a transition begins."""
    t, h = jnp.asarray([shares[0] * sde.T], float), 1e-5 * sde.T
    alpha_rate, sigma_rate = sde.rates(t)
    for rate, function in ((alpha_rate, sde.alpha), (sigma_rate, sde.sigma)):
        slope = (function(t + h) - function(t - h)) / (2.0 * h)
        np.testing.assert_allclose(rate, slope, rtol=1e-5, atol=1e-9)
    x = jnp.asarray([[1.7]])
    np.testing.assert_allclose(
        sde.drift(x, t), x * alpha_rate / sde.alpha(t), rtol=1e-6, atol=1e-12
    )
    _, v = sde.transition(t + h, t - h)
    np.testing.assert_allclose(sde.diffusion(t) ** 2, v / (2.0 * h), rtol=1e-3)


@given(sdes(), ordered_times(1))
@examples(30)
def test_the_time_of_a_noise_level_is_that_of_the_level(sde: SDE, shares: list[float]) -> None:
    t = jnp.asarray([shares[0] * sde.T], float)
    np.testing.assert_allclose(sde.time_of_log_snr(sde.log_snr(t)), t, rtol=1e-6)


@given(sdes(), ordered_times(1), numbers(0.1, 3.0), numbers(-3.0, 3.0))
@examples(30)
def test_the_flow_of_gaussian_data_only_scales(
    sde: SDE, shares: list[float], std: float, x: float
) -> None:
    """Of N(0, std^2) the density at t is N(0, s^2), s^2 = alpha^2 std^2 + sigma^2, and the drift of
    the probability flow, f - g^2 score / 2, is (s' / s) x."""
    t = jnp.asarray([shares[0] * sde.T], float)
    images = jnp.asarray([[x]])
    flow = sde.reverse(lambda x, t: -x / variance(sde, t, std)[:, None], probability_flow=True)
    alpha_rate, sigma_rate = sde.rates(t)
    growth = sde.alpha(t) * alpha_rate * std**2 + sde.sigma(t) * sigma_rate
    expected = growth[:, None] / variance(sde, t, std)[:, None] * images
    np.testing.assert_allclose(flow.drift(images, t), expected, rtol=1e-6, atol=1e-9)


def variance(sde: SDE, t: Any, std: float) -> Any:
    return sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2


@given(sdes(), ordered_times(3), numbers(-2.0, 2.0), numbers(-2.0, 2.0))
@examples(40)
def test_ancestral_steps_of_one_data_point_compose(
    sde: SDE, shares: list[float], x0: float, x: float
) -> None:
    """From t to r at once, or by way of s: the same Gaussian, by the score of one x_0."""
    r, s, t = (jnp.asarray([share * sde.T], float) for share in shares)

    def step(x: Any, t: Any, s: Any) -> tuple[float, float]:
        score = -(x - sde.alpha(t) * x0) / sde.sigma(t) ** 2
        mean, std = sde.posterior(x[:, None], score[:, None], t, s)
        return float(mean[0, 0]), float(std[0])

    start = jnp.asarray([x], float)
    at_once, std_at_once = step(start, t, r)
    middle, std_middle = step(start, t, s)
    end, std_end = step(jnp.asarray([middle]), s, r)
    slope = step(jnp.asarray([middle + 1.0]), s, r)[0] - end
    np.testing.assert_allclose(end, at_once, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(math.hypot(std_end, slope * std_middle), std_at_once, rtol=1e-6)


KINDS = st.sampled_from(list(parametrisation.PREDICTIONS))


@given(sdes(), ordered_times(1), KINDS, KINDS, numbers(-2, 2), numbers(-2, 2), numbers(0.2, 2.0))
@examples(50)
def test_every_conversion_is_that_of_the_definitions(
    sde: SDE, shares: list[float], source: str, target: str, x0: float, z: float, sigma_data: float
) -> None:
    t = jnp.asarray([shares[0] * sde.T], float)
    level = parametrisation.level(sde, t, sigma_data)
    a, b = parametrisation.PREDICTIONS[source](level)
    # Two predictions determine the third where they are not the same combination: sigma noise is
    # all that x says of the noise where alpha is next to 0.
    determinant = level.alpha * b - level.sigma * a
    hypothesis.assume(abs(float(jnp.squeeze(determinant))) > 1e-3)

    def value(kind: str) -> Any:
        a, b = parametrisation.PREDICTIONS[kind](level)
        return jnp.reshape(a * x0 + b * z, (1, 1))

    x = jnp.reshape(level.alpha * x0 + level.sigma * z, (1, 1))
    found = parametrisation.convert(sde, x, t, value(source), source, target, sigma_data)
    np.testing.assert_allclose(found, value(target), rtol=1e-6, atol=1e-6 * _largest(level))


def _largest(level: parametrisation.Level) -> float:
    rates = (level.alpha_rate, level.sigma_rate, level.sigma)
    return max(1.0, *(float(jnp.abs(jnp.squeeze(jnp.asarray(v)))) for v in rates))


# Solvers. What they draw is a matter of the noise levels of their steps, and of nothing else.

# These step back, or ask for more than a score.
WITHOUT_A_FLOW = {"restart", *flow_maps.ASKERS}
SOLVERS = [
    name
    for name, method in few_steps.METHODS.items()
    if not method.stochastic and not method.noise_levels and name not in WITHOUT_A_FLOW
]
START = np.random.default_rng(0).standard_normal((4, 2))
MIXTURE = gaussians.two_modes((2,))


@dataclasses.dataclass(frozen=True)
class OtherClock(SDE):
    """The SDE whose time t is t^power of another's: the same noise levels at other times."""

    of: SDE = dataclasses.field(default_factory=sde_lib.VPSDE)
    power: float = 1.0

    def log_alpha(self, t: Any) -> Any:
        return self.of.log_alpha(t**self.power)

    def sigma(self, t: Any) -> Any:
        return self.of.sigma(t**self.power)

    def time_of_log_snr(self, log_snr: Any) -> Any:
        return self.of.time_of_log_snr(log_snr) ** (1.0 / self.power)


@dataclasses.dataclass(frozen=True)
class OtherUnit(SDE):
    """The SDE of data that are measured in other units: all noise is `factor` times as large."""

    of: SDE = dataclasses.field(default_factory=sde_lib.VESDE)
    factor: float = 1.0

    def log_alpha(self, t: Any) -> Any:
        return self.of.log_alpha(t)

    def sigma(self, t: Any) -> Any:
        return self.factor * self.of.sigma(t)

    def time_of_log_snr(self, log_snr: Any) -> Any:
        return self.of.time_of_log_snr(log_snr + 2.0 * math.log(self.factor))


def solutions(sde: SDE, factor: float = 1.0, end: float = 0.3) -> dict[str, jax.Array]:
    """What every solver draws in six steps, of a mixture in units of 1 / factor."""
    weights, means, stds = (jnp.asarray(v, float) for v in MIXTURE)
    score_fn = gaussians.Mixture(weights, factor * means, factor * stds).score_fn(sde)
    times = grids.time_grid(sde, "log_snr", 6, end)
    noise = recorded_noise(jnp.asarray(START, float)[None])
    without_noise = {"eta": 0.0, "tau": 0.0, "churn": 0.0}

    @jax.jit
    def run() -> dict[str, jax.Array]:
        found = {}
        for name in SOLVERS:
            method = few_steps.METHODS[name]
            settings = {k: v for k, v in without_noise.items() if k in method.settings}
            solver: Callable[..., Samples] = method.solver
            found[name] = solver(sde, score_fn, noise, times, denoise=False, **settings).x
        return found

    return run()


# Times are float32, of which the noise levels that they stand for keep four digits.
AS_TIMES: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@functools.cache
def vp_solutions() -> dict[str, jax.Array]:
    return solutions(sde_lib.VPSDE())


@functools.cache
def ve_solutions() -> dict[str, jax.Array]:
    return solutions(sde_lib.VESDE(sigma_max=10.0), end=0.5)


@pytest.mark.parametrize("power", [2.0, *marks.slow(0.5, 3.0)])
def test_solvers_do_not_look_at_the_clock(power: float) -> None:
    there = solutions(OtherClock(of=sde_lib.VPSDE(), power=power), end=0.3 ** (1.0 / power))
    for name, here in vp_solutions().items():
        if name.startswith("deis"):  # whose polynomials are of the time itself
            continue
        np.testing.assert_allclose(there[name], here, **AS_TIMES, err_msg=name)


@pytest.mark.parametrize("factor", [4.0, *marks.slow(0.1, 50.0)])
def test_solvers_do_not_look_at_the_unit(factor: float) -> None:
    sde = OtherUnit(of=sde_lib.VESDE(sigma_max=10.0), factor=factor)
    there = solutions(sde, factor, end=0.5)
    for name, here in ve_solutions().items():
        np.testing.assert_allclose(there[name] / factor, here, **AS_TIMES, err_msg=name)


# Configs.


def valid_values(field: Field) -> st.SearchStrategy[Any]:
    """Values of the default's type that the field's rule accepts."""
    kind = type(field.default)
    text = st.text(max_size=8)
    of_type: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-4, field.rule.below - 1),
        float: st.floats(-1e9, 1e9, width=32) | st.floats(0.0, 1.0, width=32),
        str: text,
        tuple: st.lists(st.integers(1, 9) | numbers(0.01, 0.2) | text, max_size=3).map(tuple),
    }
    return (st.just(field.default) | of_type[kind]).filter(_accepted_by(field))


def _accepted_by(field: Field) -> Callable[[Any], bool]:
    def accepted(value: Any) -> bool:
        try:
            return bool(field.rule.holds(value))
        except TypeError:  # what is in a tuple may be of any type, and rules compare numbers
            return False

    return accepted


@st.composite
def changed_configs(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(schema.fields())), max_size=6, unique=True))
    return {name: draw(valid_values(schema.fields()[name])) for name in names}


@given(changed_configs())
@examples(50)
def test_a_config_survives_being_stored(changes: dict[str, Any]) -> None:
    config = schema.base()
    config.update_from_flattened_dict(changes)
    stored = json.loads(json.dumps(config.to_dict()))
    again = configs.from_stored(stored)
    kept = {k: v for k, v in changes.items() if k not in NOT_KEPT}
    for name, value in kept.items():
        section, _, field = name.rpartition(".")
        found = (again[section] if section else again)[field]
        assert found == value, name
        assert type(found) is type(value), name


# Earlier runs could name attention at heights that the network does not have: it is left out.
NOT_KEPT = ("model.attn_resolutions",)

# Files.

DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.int64, np.uint8])


@st.composite
def trees(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(
        st.lists(st.text("abc_", min_size=1, max_size=6), min_size=1, max_size=3, unique=True)
    )
    shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, max_side=5)
    return {name: draw(arrays_of.arrays(draw(DTYPES), shapes)) for name in names}


def write_pth(path: pathlib.Path, tree: dict[str, np.ndarray]) -> None:
    pth_writer.write(path, dict(tree))


def write_safetensors(path: pathlib.Path, tree: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tree, path)


def write_msgpack(path: pathlib.Path, tree: dict[str, np.ndarray]) -> None:
    path.write_bytes(serialization.msgpack_serialize(dict(tree)))


FILES: dict[str, tuple[Callable[..., None], Callable[[pathlib.Path], Any]]] = {
    "a.pth": (write_pth, pth.read),
    "a.safetensors": (write_safetensors, formats.read_safetensors),
    "checkpoint_1": (write_msgpack, flax_msgpack.restore),
}


@pytest.mark.parametrize("name", FILES)
@given(tree=trees())
@examples(40)
def test_any_arrays_are_read_as_they_were_written(name: str, tree: dict[str, np.ndarray]) -> None:
    write, read = FILES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        write(path, tree)
        found = read(path)
        assert set(found) == set(tree)
        for key, array in tree.items():
            assert np.asarray(found[key]).dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)


@functools.cache
def whole_file(name: str) -> bytes:
    tree = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b_c": np.ones((2,), np.int64)}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        FILES[name][0](path, tree)
        return path.read_bytes()


@pytest.mark.parametrize("name", FILES)
@given(share=numbers(0.0, 1.0))
@examples(30)
def test_a_file_that_is_cut_anywhere_is_refused_in_one_line(name: str, share: float) -> None:
    data = whole_file(name)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        path.write_bytes(data[: int(share * (len(data) - 1))])
        with pytest.raises((ValueError, OSError)) as refusal:
            FILES[name][1](path)
        assert len(str(refusal.value).splitlines()) == 1
