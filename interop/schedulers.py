"""scheduler_config.json of a diffusers pipeline, as fields of our configs: its SDE, its prediction;
and the scheduler of a config.

What a scheduler says of sampling (steps, solvers, thresholds) is not taken over. A network is told
the number k of its noise level, of which ours are the same ones: `alphas_cumprod[k]` is the product
of all `1 - beta_j` with j <= k, as in `sde_lib.BetaSDE`. So a network that predicts the noise is a
discrete one here, with not a digit changed. One that predicts the velocity or x_0 is one at all
times, t = k / 999, whose levels differ from the chain's by at most one step of its 1000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_collections

import sde_lib

ConfigValues = dict[str, Any]  # by dotted name, such as "model.beta_min"

# Schedulers of a chain of betas, with the values of the fields that their files leave out.
_CHAIN: dict[str, Any] = {
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
_NARROW = {**_CHAIN, "beta_start": 0.00085, "beta_end": 0.012}
CHAINS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler",
            "DDIMInverseScheduler", "PNDMScheduler", "LMSDiscreteScheduler",
            "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
            "DPMSolverMultistepInverseScheduler", "UniPCMultistepScheduler",
        ),
        _CHAIN,
    ),
    **dict.fromkeys(
        (
            "DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
        ),
        _NARROW,
    ),
}  # fmt: skip
# Fields that make another chain than beta_schedule says, unless they have this value.
OTHER_CHAINS = {"trained_betas": None, "rescale_betas_zero_snr": False, "use_flow_sigmas": False}
VE = {"num_train_timesteps": 2000, "sigma_min": 0.01, "sigma_max": 1348.0}
VP = {"num_train_timesteps": 2000, "beta_min": 0.1, "beta_max": 20.0}
PREDICTIONS = {"epsilon": "", "v_prediction": "velocity", "sample": "x0"}  # of a chain, as ours
READ = {"_class_name", "predict_epsilon", *_CHAIN, *OTHER_CHAINS, *VE, *VP}  # fields
BETA_SCHEDULES = {"vpsde": "linear", "cosine_vpsde": "squaredcos_cap_v2"}
SERVED = (
    "a pipeline holds vpsde and cosine_vpsde of noise with training.continuous=False and "
    "data.centered=True (DDPM, DDIM), and vesde of the score with training.continuous=True and "
    "data.centered=False (ScoreSdeVe)"
)


def config_values(description: Mapping[str, Any], fourier: bool) -> ConfigValues:
    """The config values of the SDE and the prediction that scheduler_config.json describes.

    Args:
      fourier: True of a network that embeds noise levels, False of one that embeds times.

    Raises:
      ValueError: an SDE or prediction that is none of ours; names the field and what could be
        served.
    """
    name = description.get("_class_name")
    if name == "ScoreSdeVeScheduler":
        return _variance_exploding(description)
    if not isinstance(name, str) or name not in {*CHAINS, "ScoreSdeVpScheduler"}:
        served = ", ".join([*CHAINS, "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"])
        raise ValueError(f"_class_name is {name!r:.60}; served are {served}")
    if fourier:
        raise ValueError(
            f"_class_name is {name!r}, which counts its noise levels; a network whose "
            "time_embedding_type is 'fourier' is served with ScoreSdeVeScheduler"
        )
    if name == "ScoreSdeVpScheduler":
        return _variance_preserving(description)
    return _chain(CHAINS[name] | dict(description))


def _variance_exploding(description: Mapping[str, Any]) -> ConfigValues:
    """Song et al.'s VE SDE (eq. 30), whose networks are told sigma."""
    fields = VE | dict(description)
    sigma_min, sigma_max = _number(fields, "sigma_min"), _number(fields, "sigma_max")
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min is {sigma_min:g} and sigma_max {sigma_max:g}; served are "
            "0 < sigma_min < sigma_max"
        )
    return {
        "training.sde": "vesde",
        "training.continuous": True,
        "model.sigma_min": sigma_min,
        "model.sigma_max": sigma_max,
        "model.num_scales": _count(fields),
        "model.prediction": "",
    }


def _variance_preserving(description: Mapping[str, Any]) -> ConfigValues:
    """Song et al.'s VP SDE (eq. 32), whose networks are told (N - 1) t."""
    fields = VP | dict(description)
    _at_all_times(fields, "ScoreSdeVpScheduler")
    beta_min, beta_max = _betas(fields, "beta_min", "beta_max", _count(fields))
    return {
        "training.sde": "vpsde",
        "training.continuous": True,
        "model.beta_min": beta_min,
        "model.beta_max": beta_max,
        "model.num_scales": _count(fields),
        "model.prediction": "",
    }


def _chain(fields: Mapping[str, Any]) -> ConfigValues:
    """DDPM's chain: its betas are ours, times their number; see `sde_lib.BetaSDE.step_betas`."""
    for name, value in OTHER_CHAINS.items():
        if fields.get(name, value) != value:
            raise ValueError(f"{name} is {fields[name]!r:.60}; served is {value!r}")
    prediction = fields["prediction_type"]
    if fields.get("predict_epsilon") is False:  # what diffusers said before it had a type
        prediction = "sample"
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise ValueError(
            f"prediction_type is {prediction!r:.60}; served are {', '.join(PREDICTIONS)}"
        )
    if prediction != "epsilon":
        _at_all_times(fields, f"prediction_type {prediction!r}")
    steps = _count(fields)
    values: ConfigValues = {
        "training.continuous": prediction != "epsilon",
        "model.num_scales": steps,
        "model.prediction": PREDICTIONS[prediction],
    }
    match fields["beta_schedule"]:
        case "linear":
            beta_start, beta_end = _betas(fields, "beta_start", "beta_end", 1)
            return values | {
                "training.sde": "vpsde",
                "model.beta_min": _tidy(steps * beta_start),
                "model.beta_max": _tidy(steps * beta_end),
            }
        case "squaredcos_cap_v2":
            return values | {"training.sde": "cosine_vpsde"}
        case other:
            raise ValueError(
                f"beta_schedule is {other!r:.60}; served are linear, squaredcos_cap_v2"
            )


def unread(description: Mapping[str, Any]) -> list[str]:
    """Names of the fields that say something else than which SDE and prediction it is."""
    return sorted(name for name in description if name not in READ and name[:1] != "_")


def description(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """scheduler_config.json of a run whose process a pipeline of diffusers draws from.

    A chain is DDIM's where `sampling.method` says so, else DDPM's with the noise of
    `sampling.ancestral_sampling`; both begin at T. VE's has the corrector of `config.sampling`.

    Raises:
      ValueError: no pipeline draws from it; names the fields in the way, and what is served.
    """
    sde, name = sde_lib.from_config(config), config.training.sde.lower()
    exploding = name == "vesde"
    if name not in {"vesde", *BETA_SCHEDULES}:
        raise ValueError(f"training.sde is {config.training.sde!r}; {SERVED}")
    expected = {
        "training.continuous": (exploding,),
        "model.prediction": ("", "score" if exploding else "noise"),
        "data.centered": (not exploding,),
    }
    fields = config.to_dict()
    for field, values in expected.items():
        section, _, leaf = field.partition(".")
        if fields[section][leaf] not in values:
            raise ValueError(f"{field} is {fields[section][leaf]!r}; {SERVED}")
    if isinstance(sde, sde_lib.VESDE):
        return _exploding_scheduler(sde, config.sampling)
    assert isinstance(sde, sde_lib.VariancePreservingSDE)
    return _chain_scheduler(sde, BETA_SCHEDULES[name], config.sampling.method == "ddim")


def _exploding_scheduler(sde: sde_lib.VESDE, sampling: ml_collections.ConfigDict) -> dict[str, Any]:
    corrected = sampling.corrector == "langevin"
    return {
        "_class_name": "ScoreSdeVeScheduler",
        "num_train_timesteps": sde.N,
        "sigma_min": sde.sigma_min,
        "sigma_max": sde.sigma_max,
        "sampling_eps": sampling.eps or sde.sampling_eps,
        "snr": sampling.snr,
        "correct_steps": sampling.n_steps_each if corrected else 0,
    }


def _chain_scheduler(
    sde: sde_lib.VariancePreservingSDE, beta_schedule: str, ddim: bool
) -> dict[str, Any]:
    betas = sde.step_betas()  # refused where they would reach 1
    linear = isinstance(sde, sde_lib.VPSDE)
    return {
        "_class_name": "DDIMScheduler" if ddim else "DDPMScheduler",
        "num_train_timesteps": sde.N,
        "beta_schedule": beta_schedule,
        "beta_start": _tidy(float(betas[0])) if linear else _CHAIN["beta_start"],
        "beta_end": _tidy(float(betas[-1])) if linear else _CHAIN["beta_end"],
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "thresholding": False,
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        **({"set_alpha_to_one": True} if ddim else {"variance_type": "fixed_large"}),
    }


def _betas(fields: Mapping[str, Any], first: str, last: str, below: int) -> tuple[float, float]:
    """The ends of a chain's betas, none of which may fall, or add more noise than there can be."""
    low, high = _number(fields, first), _number(fields, last)
    if not 0.0 <= low <= high < below or not high:
        raise ValueError(
            f"{first} is {low:g} and {last} {high:g}; served are 0 <= {first} <= {last} < {below}, "
            f"and {last} above 0"
        )
    return low, high


def _at_all_times(fields: Mapping[str, Any], what: str) -> None:
    """Refuses a number of levels that is not the one by which our networks know all times."""
    if _count(fields) != 1000:
        raise ValueError(
            f"num_train_timesteps is {fields['num_train_timesteps']}; with {what} served is 1000"
        )


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"{name} is {str(value)[:60]!r}; needed is a positive number")
    return float(value)


def _count(fields: Mapping[str, Any]) -> int:
    value = fields["num_train_timesteps"]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**6:
        raise ValueError(f"num_train_timesteps is {str(value)[:60]!r}; needed is a count")
    return value


def _tidy(value: float) -> float:
    """The number without the rounding of its last digits: 1000 * 0.02 is 20."""
    return float(f"{value:.12g}") if math.isfinite(value) else value
