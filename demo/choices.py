"""The choices of the page: for each task its fields, their bounds, and which weights serve it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import ml_collections

import models
import sampling
from demo.fields import Field, When
from demo.weights import FIRST_IMAGES, FIRST_POINTS, Weights
from diffusion import few_steps, flow_maps
from generation import guides
from runtime import files
from runtime.errors import one_line
from runtime.workdir import stored_config

MOST_STEPS = 1000
MOST_EVALUATIONS = 5000  # of the score, for one image
MOST_IMAGES, MOST_POINTS = 64, 5000
FRAMES = 32  # states of a sampler that are shown, unless the config has a number
MOST_SHOWN = 2**23  # bytes of all of them
SMALL = 1024  # numbers in an image, of which many are drawn at a time
LARGEST_SEED = 2**32 - 1
ODE_SOLVERS = ("Dopri5", "Tsit5", "Bosh3", "Heun")
NOISE = "noise"  # the field of the task "field" that is none of the config


def bounded(value: int, low: int, high: int) -> int:
    """The value, or the bound that it is beyond."""
    return max(low, min(value, high))


# Samplers.


def methods(weights: Weights) -> tuple[str, ...]:
    """The samplers that serve the weights, the config's own first."""
    discrete = not weights.parts.continuous
    others = sampling.BETWEEN_LEVELS if discrete else set()
    names = [n for n in sampling.SAMPLERS if n not in others | flow_maps.ASKERS]
    own = weights.config.sampling.method
    return (own, *(name for name in names if name != own))


def sampler_fields(weights: Weights) -> list[Field]:
    """The fields of a sampler, which samples, classes and both sides of a comparison have."""
    config, parts = weights.config.sampling, weights.parts
    method = "sampling.method"
    with_steps = tuple(name for name in sampling.SAMPLERS if name != "ode")
    pc = {method: ("pc",)}
    corrected = {method: ("pc",), "sampling.corrector": ("langevin", "ald")}
    churned = tuple(name for name, entry in few_steps.METHODS.items() if "churn" in entry.settings)
    steps, most = config.num_steps or parts.sde.N, max(MOST_STEPS, parts.sde.N)
    predictor = config.predictor if config.predictor != "none" else "reverse_diffusion"
    fields = [
        Field(method, "sampler", config.method, names=methods(weights)),
        Field("sampling.num_steps", "steps", steps, 1, most, when={method: with_steps}),
        Field(
            "sampling.predictor",
            "predictor",
            predictor,
            names=tuple(name for name in sampling.PREDICTORS if name != "none"),
            when=pc,
        ),
        Field(
            "sampling.corrector",
            "corrector",
            config.corrector,
            names=tuple(sampling.CORRECTORS),
            when=pc,
        ),
        Field("sampling.snr", "signal to noise", float(config.snr), 0.01, 1.0, when=corrected),
        Field("sampling.eta", "eta", float(config.eta), 0.0, 1.0, when={method: ("ddim",)}),
        Field("sampling.churn", "churn", float(config.churn), 0.0, 100.0, when={method: churned}),
        Field(
            "sampling.solver",
            "solver",
            ODE_SOLVERS[0],
            names=ODE_SOLVERS,
            when={method: ("ode",)},
        ),
        Field(
            "sampling.rtol",
            "tolerance",
            1e-3,
            1e-6,
            0.1,
            when={method: ("ode",)},
            also=("sampling.atol",),
        ),
    ]
    return fields


def evaluations(config: ml_collections.ConfigDict) -> int:
    """Evaluations of the score for one image, about; 0 for adaptive steps."""
    options = config.sampling
    steps, each = options.num_steps, options.n_steps_each
    if options.method == "ode":
        return 0
    if options.method == "annealed_langevin":
        return int(steps * each)
    if options.method == "pc":
        return int(steps * (1 + (each if options.corrector != "none" else 0)))
    order = {"dpm_2": 2, "dpm_3": 3, "edm": 2, "heun": 2}
    return int(steps * order.get(options.method, 1))


def refuse_many(count: int) -> None:
    """Raises ValueError where one image would take too many evaluations."""
    if count > MOST_EVALUATIONS:
        raise ValueError(
            f"this takes {count} evaluations of the score for an image; the demo does up to "
            f"{MOST_EVALUATIONS}: take fewer steps"
        )


def frames(weights: Weights) -> int:
    """The states of a sampler that are shown: fewer of large images."""
    own = weights.config.sampling.num_frames or FRAMES
    return bounded(own, 2, max(2, MOST_SHOWN // math.prod(weights.parts.image_shape)))


# Tasks: their fields, and why weights cannot serve them.


def sample_fields(weights: Weights) -> list[Field]:
    """The fields of samples."""
    is_image = weights.parts.levels > 0
    room = MOST_SHOWN // (frames(weights) * math.prod(weights.parts.image_shape))
    most = bounded(room, 1, MOST_IMAGES) if is_image else MOST_POINTS
    fields = [
        *sampler_fields(weights),
        Field(
            "sampling.num_samples",
            "images" if is_image else "points",
            min(16, most) if is_image else 2000,
            1,
            most,
        ),
        _seed("sampling.seed"),
    ]
    if is_image:
        few = most if math.prod(weights.parts.image_shape) <= SMALL else 4
        fields.append(Field("sampling.batch_size", "at a time", min(16, few), 1, most))
    if weights.config.sampling.guide:
        scale = float(weights.config.sampling.guide_scale)
        fields.append(Field("sampling.guide_scale", "guidance", scale, 0.0, 20.0))
    return fields


def _seed(name: str) -> Field:
    return Field(name, "seed", 0, 0, LARGEST_SEED)


def _steps(weights: Weights, when: When) -> Field:
    own = weights.config.sampling.num_steps or weights.parts.sde.N
    return Field("sampling.num_steps", "steps", bounded(own, 1, 100), 1, MOST_STEPS, when=when)


def measured_fields(weights: Weights) -> list[Field]:
    """The fields of in-painting and colourisation."""
    method, damped = "control.method", {"control.method": ("posterior", "dps")}
    repaint = {method: ("repaint",)}
    config = weights.config.control
    return [
        Field(method, "method", "repaint", names=("repaint", "posterior", "dps")),
        _steps(weights, {}),
        Field("control.jump", "jump", config.jump, 1, 100, when=repaint),
        Field("control.repeats", "repeats", config.repeats, 1, 20, when=repaint),
        Field("control.scale", "guidance", float(config.scale), 0.0, 20.0, when=damped),
        Field("control.num_variants", "answers", 4, 1, 8),
        _seed("control.seed"),
    ]


def interpolation_fields(weights: Weights) -> list[Field]:
    """The fields of interpolation."""
    method = "control.method"
    names = ("flow", "ddim") if weights.parts.continuous else ("ddim",)
    flow = {method: ("flow",)}
    return [
        Field(method, "codes by", names[0], names=names),
        _steps(weights, {method: ("ddim",)}),
        Field("sampling.rtol", "tolerance", 1e-3, 1e-6, 0.1, when=flow, also=("sampling.atol",)),
        Field("control.num_variants", "between", 7, 1, 12),
        Field("control.temperature", "temperature", 1.0, 0.0, 2.0),
    ]


def class_fields(weights: Weights) -> list[Field]:
    """The fields of images of a class."""
    parts, config = weights.parts, weights.config.control
    names = [n for n in ("classifier_free",) if parts.num_labels and parts.unconditional]
    names += [n for n in ("conditional",) if parts.num_labels]
    names += [n for n in ("classifier",) if config.guide]
    scaled = {"control.method": ("classifier_free", "classifier")}
    scale = float(config.scale) if config.scale != 1.0 else 2.0
    return [
        Field("control.method", "guidance by", names[0] if names else "", names=tuple(names)),
        *sampler_fields(weights),
        Field("control.scale", "guidance", scale, 0.0, 20.0, when=scaled),
        Field("control.num_variants", "of each", 2, 1, 8),
        _seed("control.seed"),
    ]


def likelihood_fields(weights: Weights) -> list[Field]:
    """The fields of likelihoods."""
    is_image = weights.parts.levels > 0
    most = FIRST_IMAGES if is_image else FIRST_POINTS
    tolerance = float(weights.config.eval.bpd_rtol)
    return [
        Field("eval.bpd_num_images", "test images" if is_image else "test points", most, 1, most),
        Field("eval.bpd_rtol", "tolerance", tolerance, 1e-6, 0.1, also=("eval.bpd_atol",)),
        _seed("eval.seed"),
    ]


def field_fields(weights: Weights) -> list[Field]:
    """The fields of the score field."""
    del weights
    return [Field(NOISE, "noise", 0.2, 0.01, 10.0)]


def no_images(weights: Weights) -> str:
    """Why weights cannot fill in or interpolate images; "" if they can."""
    if not weights.parts.levels:
        return f"{weights.name} draws points of the plane: this needs images"
    if not weights.parts.unconditional:
        return f"{weights.name} was told the class of every image: it draws images of a class only"
    return ""


def no_colour(weights: Weights) -> str:
    """Why weights cannot colour."""
    channels = weights.parts.image_shape[-1]
    grey = f"colour needs colour: the images of {weights.name} are grey" if channels != 3 else ""
    return no_images(weights) or grey


def no_classes(weights: Weights) -> str:
    """Why weights draw no class that is asked for."""
    if not weights.parts.levels:
        return f"{weights.name} draws points of the plane: this needs images"
    guide = weights.config.control.guide
    if guide:
        try:
            guides.described(guide, weights.parts, models.CLASSIFIER)
        except (ValueError, OSError) as error:
            return one_line(error)
    elif not weights.parts.num_labels:
        return (
            f"{weights.name} was not told classes, and no classifier guides it "
            "(--config.control.guide)"
        )
    return ""


def num_classes(weights: Weights) -> int:
    """The classes that the network is told, or that its guide tells apart; 0: none."""
    guide = weights.config.control.guide
    if weights.parts.num_labels or not guide:
        return weights.parts.num_labels
    return int(stored_config(files.as_path(guide)).classifier.num_classes)


def no_field(weights: Weights) -> str:
    """Why weights have no score field to look at."""
    if weights.parts.levels or weights.parts.image_shape != (1, 1, 2):
        return f"{weights.name} draws images: a field of arrows is of points of the plane"
    return ""


def no_likelihood(weights: Weights) -> str:
    """Why weights have no likelihood."""
    if not weights.parts.continuous:
        return f"{weights.name} knows its noise levels alone: a likelihood asks for all times"
    return ""


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the page.

    Attributes:
      title: of its tab.
      fields: what can be set, with the values of these weights.
      refusal: why these weights cannot serve it, in one line; "" if they can.
    """

    title: str
    fields: Callable[[Weights], list[Field]]
    refusal: Callable[[Weights], str] = lambda weights: ""


TASKS = {
    "sample": Task("Sample", sample_fields),
    "class": Task("Classes", class_fields, no_classes),
    "inpaint": Task("In-paint", measured_fields, no_images),
    "colorize": Task("Colourise", measured_fields, no_colour),
    "interpolate": Task("Interpolate", interpolation_fields, no_images),
    "field": Task("Score field", field_fields, no_field),
    "likelihood": Task("Likelihood", likelihood_fields, no_likelihood),
}
