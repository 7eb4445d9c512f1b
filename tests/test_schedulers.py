"""A diffusers scheduler becomes the SDE whose chain is the same to the last bit, or is refused."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from configs import schema
from diffusion.parametrisation import Level, coefficients
from interop import schedulers
from models.score import discrete_labels


def described(**fields: Any) -> dict[str, Any]:
    return {"_class_name": "DDPMScheduler", **fields}


def sde_of(values: dict[str, Any]) -> sde_lib.BetaSDE:
    config = schema.base()
    for name, value in values.items():
        section, field = name.split(".")
        setattr(config[section], field, value)  # of the field's type, or it is refused
    sde = sde_lib.from_config(config)
    assert isinstance(sde, sde_lib.BetaSDE)
    return sde


def diffusers_betas(schedule: str, start: float, end: float, steps: int) -> np.ndarray:
    """As in diffusers' DDPMScheduler: `torch.linspace`, and `betas_for_alpha_bar`."""
    if schedule == "linear":
        return np.linspace(start, end, steps)

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array(
        [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)]
    )


@pytest.mark.parametrize(
    ("schedule", "start", "end", "steps"),
    [
        ("linear", 1e-4, 0.02, 1000),
        ("linear", 0.0015, 0.0195, 1000),
        ("linear", 1e-3, 0.2, 100),
        ("squaredcos_cap_v2", 1e-4, 0.02, 1000),
        ("squaredcos_cap_v2", 1e-4, 0.02, 50),
    ],
)
def test_chains_are_the_same(schedule: str, start: float, end: float, steps: int) -> None:
    """betas and alphas_cumprod[k] at the label k that the network is told."""
    values = schedulers.config_values(
        described(
            beta_schedule=schedule, beta_start=start, beta_end=end, num_train_timesteps=steps
        ),
        fourier=False,
    )
    sde = sde_of(values)
    betas = diffusers_betas(schedule, start, end, steps)
    np.testing.assert_allclose(sde.step_betas(), betas, rtol=1e-9)
    np.testing.assert_allclose(sde.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-5)
    times = jnp.linspace(0.0, 1.0, steps)
    np.testing.assert_array_equal(discrete_labels(sde, times), np.arange(steps))
    assert values["training.continuous"] is False
    assert values["model.prediction"] == ""


@pytest.mark.parametrize(
    ("theirs", "ours"), [("epsilon", "noise"), ("v_prediction", "velocity"), ("sample", "x0")]
)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_predictions(theirs: str, ours: str, schedule: str) -> None:
    """x_0 from their output, as DDPMScheduler.step has it, by our coefficients."""
    values = schedulers.config_values(
        described(prediction_type=theirs, beta_schedule=schedule), fourier=False
    )
    assert values["model.prediction"] == ("" if ours == "noise" else ours)
    assert values["training.continuous"] is (ours != "noise")
    alpha, sigma = np.array(0.8), np.array(0.6)
    x_0, noise = np.float64(0.3), np.float64(-1.7)
    x = alpha * x_0 + sigma * noise
    output = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x_0, "sample": x_0}[theirs]
    of_x, of_output = coefficients(Level(alpha, sigma), ours, "x0")
    np.testing.assert_allclose(np.asarray(of_x) * x + np.asarray(of_output) * output, x_0)


def test_all_times_are_within_a_step_of_the_chain() -> None:
    """The network is told 999 t: its alpha there lies between those of the chain's two steps."""
    for schedule in ("linear", "squaredcos_cap_v2"):
        values = schedulers.config_values(
            described(prediction_type="v_prediction", beta_schedule=schedule), fourier=False
        )
        sde = sde_of(values)
        levels = np.arange(1, 999)
        log_alpha = np.asarray(sde.log_alpha(jnp.asarray(levels / 999, jnp.float32)))
        chain = 0.5 * np.log(np.asarray(sde.alphas_cumprod, np.float64))
        slack = 1e-4 + 2e-2 * np.abs(chain[levels])  # float32, and 1 - beta for exp(-beta)
        assert (log_alpha <= chain[levels - 1] + slack).all()
        assert (log_alpha >= chain[levels] - slack).all()


def test_schedulers_of_the_paper() -> None:
    ve = schedulers.config_values(
        {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 348, "num_train_timesteps": 2000}, True
    )
    assert ve == {
        "training.sde": "vesde",
        "training.continuous": True,
        "model.sigma_min": 0.01,
        "model.sigma_max": 348.0,
        "model.num_scales": 2000,
        "model.prediction": "",
    }
    vp = {"_class_name": "ScoreSdeVpScheduler", "num_train_timesteps": 1000}
    values = schedulers.config_values(vp, False)
    assert (values["training.sde"], values["training.continuous"]) == ("vpsde", True)
    assert (values["model.beta_min"], values["model.beta_max"]) == (0.1, 20.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "'EDMEulerScheduler'; served are DDPMScheduler, "),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name is 'FlowMatch"),
        ({"_class_name": None}, "_class_name is None"),
        ({"_class_name": ["DDPMScheduler"]}, "_class_name is "),
        ({"beta_schedule": "scaled_linear"}, "'scaled_linear'; served are linear, squaredcos"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'; served are epsilon, v_pred"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True; served is False"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas is \[0.1, 0.2\]; served is None"),
        ({"beta_start": "x"}, "beta_start is 'x'; needed is a positive number"),
        ({"beta_end": math.nan}, "beta_end is 'nan'"),
        ({"beta_start": 0.02, "beta_end": 1e-4}, "beta_start is 0.02 and beta_end 0.0001; served"),
        ({"beta_end": 1.0}, "beta_start is 0.0001 and beta_end 1; served are 0 <= beta_start <= b"),
        ({"beta_end": 20}, "beta_end 20; served are 0 <= beta_start <= beta_end < 1, and"),
        ({"beta_start": 0, "beta_end": 0}, "beta_end 0; .* and beta_end above 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is '0'; needed is a count"),
        (
            {"prediction_type": "v_prediction", "num_train_timesteps": 500},
            "num_train_timesteps is 500; with prediction_type 'v_prediction' served is 1000",
        ),
        (
            {"_class_name": "ScoreSdeVpScheduler", "num_train_timesteps": 1000, "beta_min": 30},
            "beta_min is 30 and beta_max 20; served are 0 <= beta_min <= beta_max < 1000",
        ),
        ({"_class_name": "ScoreSdeVpScheduler"}, "num_train_timesteps is 2000; with ScoreSdeVp"),
    ],
)
def test_others_are_refused_by_their_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        schedulers.config_values(described(**fields), fourier=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ends", [(348.0, 0.01), (1.0, 1.0), (0.0, 1.0)])
def test_noise_levels_that_do_not_grow_are_refused(ends: tuple[float, float]) -> None:
    fields = {"_class_name": "ScoreSdeVeScheduler", "sigma_min": ends[0], "sigma_max": ends[1]}
    with pytest.raises(ValueError, match=f"^sigma_min is {ends[0]:g} and sigma_max {ends[1]:g}; "):
        schedulers.config_values(fields, fourier=True)


def test_networks_of_noise_levels_are_told_noise_levels() -> None:
    with pytest.raises(ValueError, match="time_embedding_type is 'fourier'"):
        schedulers.config_values(described(), fourier=True)


def test_older_files_say_what_is_predicted_otherwise() -> None:
    values = schedulers.config_values(described(predict_epsilon=False), fourier=False)
    assert values["model.prediction"] == "x0"
    values = schedulers.config_values({"_class_name": "HeunDiscreteScheduler"}, fourier=False)
    assert (values["model.beta_min"], values["model.beta_max"]) == (0.85, 12.0)
