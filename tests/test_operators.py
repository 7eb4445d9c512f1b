"""The task "operator": every name, the user's own functions, and which methods serve them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from control import measurements, operators
from control import run as control_run
from control.operators import OPERATORS
from control.run import NOISY, control
from runtime import experiment
from tests.marks import but_slow
from tests.test_control import run, settings

NONLINEAR = {"clipping", "phase_retrieval", "jpeg"}


def posed(**changes: Any) -> Any:
    config = settings(task="operator", num_images=1, **changes)
    return control_run.pose(config, experiment.build(config))


@pytest.mark.parametrize("name", but_slow(OPERATORS, ["average_pool", "clipping"]))
def test_operators_are_known_to_be_linear_or_not(name: str) -> None:
    """Only what is taken as exact is served by in-filling; what needs singular values refuses."""
    problem, prior, options = posed(operator=name, noise_std=0.1)
    source = operators.operator_of(prior, options)
    linear = operators.is_linear(source.operator, prior.image_shape)
    assert linear == (name not in NONLINEAR)
    y = problem.conditions["y"]
    picture = problem.columns_before["measured"]
    assert picture.shape == (1, 8, 8, 1)
    assert np.isfinite(measurements.shown(y, prior)).all()
    if not linear:
        message = f"needs a linear operator, and control.operator='{name}' is none; posterior"
        for method in ("ddrm", "ddnm"):
            with pytest.raises(ValueError, match=message):
                posed(operator=name, method=method, noise_std=0.1)
        for method in ("daps", "twisted"):
            with pytest.raises(ValueError, match=f"{method}'.* needs a positive control.noise_std"):
                posed(operator=name, method=method)
    if name in (*NONLINEAR, "gaussian_blur"):
        with pytest.raises(ValueError, match="takes a measurement as exact"):
            posed(operator=name, method="infill")


OWN = """
import jax.numpy as jnp
from jax import lax

NUMBER = 3

def edges(x):
    return x[:, 1:] - x[:, :-1]

def squares(x):
    return x**2 + x

def steps(x):
    return jnp.round(4 * x) / 4

def others(x):
    return x - jnp.mean(x, 0, keepdims=True)

def one(x):
    return jnp.sum(x)

def whole(x):
    return jnp.asarray(x, int)

def log(x):
    return jnp.log(x)

def broken(x):
    return x.reshape(3)
"""


@pytest.fixture
def own(tmp_path: pathlib.Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_a_function_of_ones_own_is_measured_and_its_file_is_part_of_the_result(own: str) -> None:
    problem, _, _ = posed(operator=f"{own}:edges", noise_std=0.1)
    assert problem.conditions["y"].shape == (1, 7, 8, 1)
    (sha256,) = problem.sources.values()
    pathlib.Path(own).write_text(OWN + "# another\n")
    other, _, _ = posed(operator=f"{own}:edges", noise_std=0.1)
    assert other.sources != {"operator_sha256": sha256}
    assert posed(operator="clipping")[0].sources == {}
    with pytest.raises(ValueError, match="needs a linear operator"):
        posed(operator=f"{own}:squares", method="ddnm")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.py:absent", "own.py defines no function 'absent'; it defines broken, edges"),
        ("own.py:NUMBER", "own.py defines no function 'NUMBER'"),
        ("none.py:edges", "there is no file .*none.py$"),
        ("own.py:steps", "its derivative is 0, as that of rounding is, and .*stop_gradient"),
        ("own.py:others", "what it makes of an image depends on the others of the batch$"),
        ("own.py:one", r"it makes float32 \(\); it must make a JAX array of float32 \[2, ...\]"),
        ("own.py:whole", r"it makes int32 \(2, 8, 8, 1\); it must make"),
        ("own.py:log", "makes numbers that are not finite of images in their range$"),
        ("own.py:broken", r"called with images \(2, 8, 8, 1\) it raised TypeError: "),
        ("blur", r"unknown control.operator \(or file.py:function\) 'blur'; known: average_pool"),
    ],
)
def test_what_is_no_operator_is_refused_in_one_line(name: str, message: str, own: str) -> None:
    folder = pathlib.Path(own).parent
    given = str(folder / name) if ".py" in name else name
    config = settings(task="operator", operator=given)
    with pytest.raises(ValueError, match=message) as caught:
        control(config, folder / "run")
    assert "\n" not in str(caught.value)
    assert not (folder / "run").exists()


CASES = [
    *({"operator": "average_pool", "method": method, "noise_std": 0.1} for method in NOISY),
    *({"operator": "gaussian_blur", "method": m, "noise_std": 0.1} for m in ("ddrm", "daps")),
    *({"operator": "mask", "method": m} for m in ("ddrm", "ddnm", "diffpir", "infill")),
    *(
        {"operator": name, "method": method, "noise_std": 0.1, "langevin_steps": 3}
        for name in sorted(NONLINEAR)
        for method in ("posterior", "dps", "tmpd", "diffpir", "daps", "twisted")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_every_method_draws_images_for_every_kind_of_operator(
    case: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, arrays = run(tmp_path, monkeypatch, task="operator", particles=3, **case)
    assert np.isfinite(arrays["x"]).all()
    assert len(np.unique(arrays["x"].reshape(4, -1), axis=0)) == 4
    evaluations = {"twisted": 3 * 4}.get(case["method"], 4)
    assert summary["nfe"] == evaluations
    if "noise_std" not in case:
        assert summary["measurement_rmse"] < 1e-4


def test_measurements_that_are_no_images_are_shown_all_the_same() -> None:
    _, prior, _ = posed(operator="identity")
    draws = np.random.RandomState(0).uniform(0.0, 9.0, (2, 16, 16, 1)).astype(np.float32)
    shown = measurements.shown(draws, prior)
    assert shown.shape == (2, 8, 8, 1)
    assert -1.0 <= shown.min() < 0.0 < shown.max() <= 1.0
    np.testing.assert_array_equal(
        measurements.shown(draws[:, 0, :, 0], prior), np.zeros((2, 8, 8, 1))
    )
