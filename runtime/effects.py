"""Options without effect: fields that what is asked does not read, and how that is said.

A field that is not in `EFFECTS` always acts, in the modes that `MODES` gives its section.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import ml_collections
from absl import logging

import configs
import data
import models
import sampling
from configs import schema
from diffusion import few_steps
from runtime import control_effects, training_effects
from runtime.fields_read import network_has, sde_reads

Config: TypeAlias = ml_collections.ConfigDict
WITH_WEIGHTS = ("sample", "eval", "control", "export", "demo")
WITH_SAMPLES = ("train", "sample", "eval", "control", "plan", "demo")
AS = {"reproduce": "eval"}  # modes that read what another does
# Fields of which a mode says itself whether they act, when its source has given what they act with.
LATER = {"reproduce": ("sampling.guide_scale",)}

# The modes in which fields act, by patterns of their names; the first that fits. Sections that are
# not here describe the run, and are the same in every mode.
MODES: dict[str, tuple[str, ...]] = {
    "sampling.num_samples": ("sample",),
    "sampling.num_frames": ("sample", "eval", "demo"),
    "sampling.guide*": ("sample", "eval", "demo"),
    **{  # of a pipeline's scheduler
        f"sampling.{name}": (*WITH_SAMPLES, "export")
        for name in ("method", "corrector", "n_steps_each", "snr", "eps")
    },
    "sampling.*": WITH_SAMPLES,
    "eval.ema": WITH_WEIGHTS,
    "eval.checkpoint": WITH_WEIGHTS,
    "eval.batch_size": ("train", "eval", "stats", "plan"),
    "eval.bpd_rtol": ("eval", "plan", "demo"),
    "eval.bpd_num_probes": ("eval", "plan", "demo"),
    "eval.bpd_num_repeats": ("eval", "plan"),
    "eval.bpd_probe": ("eval", "plan", "demo"),
    "eval.bpd_solver": ("eval", "demo"),
    "eval.features*": ("eval", "stats"),
    "eval.resize": ("eval", "stats"),
    "eval.repeat_grey": ("eval", "stats"),
    "eval.inception_path": ("eval", "stats"),
    "eval.stats_*": ("eval", "stats"),
    "eval.*": ("eval",),
    "control.*": ("control", "demo"),
}


class Effect(NamedTuple):
    """A condition under which fields act.

    Attributes:
      fields: their dotted names, or patterns of these, separated by spaces.
      acts: of a config and the mode.
      words: the condition, completing "it acts where ..."
    """

    fields: str
    acts: Callable[[Config, str], bool]
    words: str


def value_is(name: str, *values: Any) -> Callable[[Config, str], bool]:
    """The condition that the field `name` has one of these values."""
    section, _, field = name.partition(".")
    return lambda config, mode: config[section][field] in values


def setting(fields: str, name: str, *values: Any) -> Effect:
    """Fields that act where another has one of these values."""
    return Effect(fields, value_is(name, *values), f"{name} is {' or '.join(map(str, values))}")


def samplers(config: Config, mode: str) -> set[str]:
    """The methods of sampling that a run would use."""
    several = config.eval.samplers if mode == "eval" else ()
    return {name.partition(":")[0] for name in several} or {config.sampling.method}


def control_method(config: Config) -> str:
    """The method of --mode=control: `control.method`, or the task's own."""
    own = {"inpaint": "repaint", "colorize": "repaint", "class": "classifier_free"}
    own |= dict.fromkeys(("interpolate", "reconstruct", "attribute"), "flow")
    own |= {"sdedit": "sdedit", "prompt": "similarity", "reward": "steering"}
    method: str = config.control.method or own.get(config.control.task, "posterior")
    return method


def method_is(fields: str, *methods: str, in_control: tuple[str, ...] = ()) -> Effect:
    """Fields of section `sampling` that these methods read; in control, those `in_control` too."""

    def acts(config: Config, mode: str) -> bool:
        by_task = mode == "control" and control_method(config) in in_control
        return by_task or bool(samplers(config, mode) & set(methods))

    return Effect(fields, acts, f"sampling.method is {' or '.join(methods)}")


def controlled_by(fields: str, *methods: str) -> Effect:
    """Fields of section `control` that these methods read."""
    words = f"control.method is {' or '.join(methods)}"
    return Effect(fields, lambda config, mode: control_method(config) in methods, words)


def measured_by(fields: str, task: str, operator: str) -> Effect:
    """Fields of section `control` that measure images; see `control_effects`."""

    def acts(config: Config, mode: str) -> bool:
        return control_effects.measures(config, task, operator)

    return Effect(fields, acts, control_effects.words(task, operator))


def compared_by(*networks: str) -> Callable[[Config, str], bool]:
    """The condition that images are compared by the features of one of these networks."""

    def acts(config: Config, mode: str) -> bool:
        if mode == "eval" and not config.eval.enable_sampling:
            return False
        by_default = (
            config.data.num_channels == 3
            and data.grey_levels(config.data.dataset, config.data.shape) > 0
        )
        auto = "inception" if by_default else ""
        return (auto if config.eval.features == "auto" else config.eval.features) in networks

    return acts


def has_steps(config: Config, mode: str) -> bool:
    return mode == "control" or bool(samplers(config, mode) - {"ode"})


def has_grid(config: Config, mode: str) -> bool:
    methods = samplers(config, mode)
    return mode == "control" or bool(methods & {"sde", *few_steps.METHODS})


def settings_of_few_steps() -> dict[str, list[str]]:
    """The methods that read each setting of solvers with few steps."""
    entries = few_steps.METHODS.items()
    names = dict.fromkeys(name for _, entry in entries for name in entry.settings)
    return {name: [m for m, entry in entries if name in entry.settings] for name in names}


OF_NETWORK = (
    "conditional nf ch_mult num_res_blocks attn_resolutions attn_each_up_block attn_num_groups "
    "resamp_with_conv fir fir_kernel skip_rescale resblock_type progressive progressive_input "
    "progressive_combine embedding_type fourier_scale init_scale interpolation pytorch remat "
    "num_classes dropout nonlinearity normalization scale_by_sigma dtype prediction "
    "class_embedding augment_dim head_channels num_heads num_groups learned_variance "
    "attention_order patch_size"
)
OF_SDE = (
    *("sigma_min", "sigma_max", "sigma_base", "beta_min", "beta_max", "time_power", "data_power"),
    "noise_power",
)
SAMPLES = "num_samples seeds keep_samples samplers metrics bootstrap memorisation_images"


def score_only(config: Config, mode: str) -> bool:
    return models.has_samples(config)


def prefixed(section: str, fields: str) -> str:
    return " ".join(f"{section}.{field}" for field in fields.split())


EFFECTS: tuple[Effect, ...] = (
    *(setting(fields, *where) for fields, where in training_effects.SETTINGS.items()),
    Effect("training.teacher", training_effects.has_teacher, training_effects.WITH_TEACHER),
    Effect("training.coupling", score_only, "the run trains a score, not a guide"),
    setting("model.ema_rate model.ema_warmup", "model.ema_half_life", 0.0),
    Effect(
        "model.ema_ramp_up",
        lambda config, mode: config.model.ema_half_life > 0,
        "model.ema_half_life is set",
    ),
    Effect(
        "training.ema_snapshot_freq",
        lambda config, mode: bool(config.training.ema_profiles),
        "training.ema_profiles has widths",
    ),
    Effect(prefixed("model", OF_NETWORK), score_only, "the run trains a score, not a guide"),
    *(
        Effect(f"model.{name}", network_has(f"model.{name}"), "model.name is a network that has it")
        for name in OF_NETWORK.split()
        if name != "prediction"
    ),
    *(
        Effect(f"model.{name}", sde_reads(f"model.{name}"), "training.sde is an SDE that reads it")
        for name in OF_SDE
    ),
    Effect(
        "model.fourier_scale",
        value_is("model.embedding_type", "fourier"),
        "model.embedding_type is fourier",
    ),
    setting("model.progressive_combine", "model.progressive_input", "input_skip"),
    Effect(
        "model.sigma_data",
        lambda config, mode: "edm" in (config.model.prediction, config.training.weighting),
        "model.prediction or training.weighting is edm",
    ),
    method_is(
        "sampling.predictor sampling.corrector sampling.probability_flow",
        "pc",
        in_control=("replace",),
    ),
    Effect(
        "sampling.method sampling.num_steps",
        lambda config, mode: mode != "eval" or not config.eval.samplers,
        "eval.samplers is empty",
    ),
    Effect(
        "sampling.method",
        lambda config, mode: (
            mode != "control" or control_method(config) not in control_effects.OWN_STEPS
        ),
        "control.method is one that any sampler serves",
    ),
    method_is("sampling.corrector_norm", "pc"),
    setting("sampling.corrector_norm", "sampling.corrector", "langevin"),
    method_is("sampling.snr", "pc", in_control=("replace",)),
    method_is("sampling.n_steps_each", "pc", "annealed_langevin", in_control=("replace",)),
    Effect(
        "sampling.snr sampling.n_steps_each",
        lambda config, mode: (
            config.sampling.corrector != "none" or "annealed_langevin" in samplers(config, mode)
        ),
        "sampling.corrector is langevin or ald",
    ),
    Effect(
        "sampling.guide_scale sampling.guide_interval",
        lambda config, mode: bool(config.sampling.guide),
        "sampling.guide names a run",
    ),
    method_is("sampling.step_size", "annealed_langevin"),
    method_is("sampling.solver sampling.rtol sampling.atol", "ode", "sde", in_control=("flow",)),
    method_is("sampling.variance sampling.clip", "ancestral"),
    *(method_is(f"sampling.{name}", *methods) for name, methods in settings_of_few_steps().items()),
    method_is("sampling.sigma_min sampling.sigma_max sampling.rho", "euler", "heun"),
    Effect(
        "sampling.rho",
        value_is("sampling.time_grid", "", "karras"),
        "sampling.time_grid is karras, or empty",
    ),
    Effect(
        "sampling.churn_*", lambda config, mode: config.sampling.churn > 0, "sampling.churn is set"
    ),
    Effect("sampling.num_steps", has_steps, "sampling.method is another than ode"),
    Effect("sampling.time_grid", has_grid, "sampling.method is sde or one of few steps"),
    setting(prefixed("eval", SAMPLES), "eval.enable_sampling", True),
    Effect(
        "eval.features",
        lambda config, mode: mode == "stats" or config.eval.enable_sampling,
        "eval.enable_sampling is True",
    ),
    Effect(
        "eval.resize eval.inception_path",
        compared_by("inception"),
        "images are drawn and compared by Inception's features (eval.features)",
    ),
    Effect(
        "eval.repeat_grey eval.stats_*",
        compared_by("inception", "dinov2", "clip"),
        "images are drawn and compared by Inception's features, or another network's "
        "(eval.features)",
    ),
    Effect(
        "eval.features_path",
        compared_by("dinov2", "clip"),
        "images are drawn and compared by features of dinov2 or clip (eval.features)",
    ),
    Effect(
        "eval.bpd_dataset eval.bpd_num_* eval.bpd_probe eval.bpd_bound* eval.calibration_images",
        lambda config, mode: mode in ("plan", "demo") or config.eval.enable_bpd,
        "eval.enable_bpd is True",
    ),
    Effect(
        "eval.bpd_rtol eval.bpd_atol eval.bpd_solver",
        lambda config, mode: (
            mode in ("plan", "demo") or config.eval.enable_bpd or config.eval.straightness_images
        ),
        "eval.enable_bpd is True, or eval.straightness_images is set",
    ),
    setting("eval.bpd_bound_draws eval.bpd_bound_levels", "eval.bpd_bound", True),
    setting("eval.begin_ckpt eval.end_ckpt", "eval.checkpoint", "range", "follow"),
    setting("eval.follow_minutes", "eval.checkpoint", "follow"),
    setting("eval.bpd_num_probes", "eval.bpd_probe", "rademacher", "gaussian"),
    Effect(
        "data.data_dir",
        lambda config, mode: data.grey_levels(config.data.dataset) > 0,
        "data.dataset has images: points are drawn where they are needed",
    ),
    Effect(
        "data.crop data.resize",
        lambda config, mode: config.data.dataset.partition(":")[0].lower() in data.fitting(),
        f"data.dataset has no size of its own: {', '.join(data.fitting())}",
    ),
    Effect("optim.clip_rule", lambda config, mode: config.optim.grad_clip > 0, "grad_clip is set"),
    *(measured_by(f, *names) for f, names in control_effects.OPERATORS.items()),
    setting("control.mask_share", "control.mask", "box", "random"),
    setting("control.operator", "control.task", "operator"),
    setting("control.noise_std", "control.task", *control_effects.TASKS),
    setting("control.interval", "control.task", "class", "prompt"),
    setting("control.classes", "control.task", "class", "attribute"),
    setting("control.num_examples", "control.task", "attribute"),
    setting("control.start", "control.task", "sdedit"),
    setting("control.temperature", "control.task", "reconstruct", "interpolate"),
    Effect(
        "control.num_images control.split",
        lambda config, mode: config.control.task not in ("class", "prompt", "reward"),
        "control.task has input images",
    ),
    Effect(
        "control.num_variants",
        lambda config, mode: config.control.task != "reconstruct",
        "control.task is another than reconstruct, which has one variant",
    ),
    *(controlled_by(f, *methods) for f, methods in control_effects.METHODS.items()),
    setting("control.reward", "control.task", "reward"),
    Effect(
        "control.scale",
        lambda config, mode: (
            config.control.task == "attribute" or control_method(config) in control_effects.SCALED
        ),
        "control.method is guidance, or control.task is attribute",
    ),
)


def acts_in(name: str, mode: str) -> bool:
    """True if a mode reads the field, given a config in which it acts."""
    mode = AS.get(mode, mode)
    for pattern, modes in MODES.items():
        if fnmatch.fnmatch(name, pattern):
            return mode in modes
    return True


def warn(config: Config, mode: str, overrides: Mapping[str, Any]) -> None:
    """Warns of overrides `without_effect`, each in one line."""
    for line in without_effect(config, mode, overrides):
        logging.warning("%s", line)


def without_effect(config: Config, mode: str, overrides: Mapping[str, Any]) -> list[str]:
    """A line for each override that differs from its default and that nothing reads.

    Args:
      config: with the overrides.
      mode: of the program, "train".
      overrides: values from a command line, by the dotted names of their fields.

    Returns:
      Nothing of a config that is going to be refused.
    """
    defaults = schema.fields()
    names = [n for n, v in overrides.items() if n in defaults and v != defaults[n].default]
    other_modes = [name for name in names if not acts_in(name, mode)]
    lines = []
    if other_modes:
        listed = ", ".join(f"config.{name}" for name in other_modes)
        lines.append(f"--mode={mode} does not read {listed}")
    try:
        configs.check(config)
        sampling.from_config(config)
        for name in names:
            if name not in (*other_modes, *LATER.get(mode, ())):
                lines += idle(config, mode, name, overrides[name])
    except (ValueError, KeyError):
        return []
    return lines


def idle(config: Config, mode: str, name: str, value: Any) -> list[str]:
    """One line on a field, if there is a condition under which it acts, and that does not hold."""
    mode = AS.get(mode, mode)
    for effect in EFFECTS:
        fits = any(fnmatch.fnmatch(name, pattern) for pattern in effect.fields.split())
        if fits and not effect.acts(config, mode):
            return [f"config.{name}={value!r} has no effect: it acts where {effect.words}"]
    return []
