"""Methods that solve inverse problems: samples of p(x_0 | y) for y = A x_0 + noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

import controllable
import sampling
from control.prior import Options, Prior
from control.problem import Condition, Draw, ScoreOf
from diffusion import inverse
from diffusion.noise import Noise
from diffusion.trajectory import Samples


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A linear measurement of images.

    Attributes:
      operator: A.
      constraint: from a condition to the component of x_0 that an exact y determines; None where
        it is not taken as exact (A A' is singular, or nearly so).
    """

    operator: inverse.Operator
    constraint: Callable[[Condition], controllable.Constraint] | None


Method = Callable[[Prior, Options, Measurement], Draw]


def exact_constraint(
    options: Options, measurement: Measurement
) -> Callable[[Condition], controllable.Constraint]:
    """The constraint of a measurement without noise.

    Raises:
      ValueError: a measurement with noise, or one that is never taken as exact.
    """
    if measurement.constraint is None or options.noise_std > 0:
        raise ValueError(
            f"control.method={options.method!r} takes a measurement as exact; with "
            f"control.noise_std={options.noise_std:g} control.task={options.task!r} "
            "is served by posterior and dps"
        )
    return measurement.constraint


def infill(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`controllable.infilled`, with any sampler."""
    constraint, sample = exact_constraint(options, measurement), prior.sampler()

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        known = constraint(condition)
        samples = sample(
            prior.sde, controllable.infilled(prior.process, score_of(None), known), noise
        )
        return samples._replace(x=known.impose(samples.x, known.values))

    return draw


def conditional(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """The score of the unknown entries given the known ones, which the network was trained to tell.

    Raises:
      ValueError: it was trained to know no entries (training.known), or others than those of
        `control.mask`.
    """
    constraint, sample, known = exact_constraint(options, measurement), prior.sampler(), prior.known
    ones = jnp.ones((1, *prior.image_shape))
    if known is None:
        raise ValueError(
            "control.method='conditional' needs a network that was trained to know the entries of "
            "control.mask, with training.known; training.known is empty"
        )
    if not np.array_equal(np.asarray(measurement.operator(ones)) > 0, known * ones > 0):
        raise ValueError(
            f"control.mask={options.mask!r} knows other entries than the network was trained to "
            "know; name those of training.known"
        )

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        values = constraint(condition)
        score = score_of(None, condition["y"])
        samples = sample(prior.sde, controllable.infilled(prior.process, score, values), noise)
        return samples._replace(x=values.impose(samples.x, values.values))

    return draw


def replace(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`controllable.pc_infill`, with the predictor and corrector of section `sampling`."""
    constraint, steps = exact_constraint(options, measurement), prior.options
    if steps.predictor == steps.corrector == "none":
        raise ValueError(
            "control.method='replace' is predictor-corrector sampling, and sampling.predictor and "
            "sampling.corrector are both 'none'; try --config.sampling.predictor=ancestral_sampling"
        )
    if steps.num_steps not in (0, prior.sde.N) and not prior.continuous:
        raise ValueError(
            f"sampling.num_steps is {steps.num_steps}, but a network that was trained with "
            f"discrete labels has {prior.sde.N} noise levels, and 'replace' takes them all: use 0"
        )
    sde = dataclasses.replace(prior.sde, N=steps.num_steps) if steps.num_steps else prior.sde
    sample = functools.partial(
        controllable.pc_infill,
        **sampling.pc_options(steps),
        denoise=steps.noise_removal,
        eps=steps.eps or None,
        official=options.official,
    )
    return lambda score_of, noise, condition: sample(
        sde, score_of(None), noise, constraint(condition)
    )


def repaint(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`controllable.repaint`."""
    constraint, times = exact_constraint(options, measurement), prior.times()
    jump, repeats = options.jump, options.repeats
    controllable.travel(len(times) - 1, jump, repeats)
    return lambda score_of, noise, condition: controllable.repaint(
        *(prior.process, score_of(None), noise, times, constraint(condition)),
        jump=jump,
        repeats=repeats,
    )


def posterior(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`inverse.posterior_guided`, with any sampler."""
    sample = prior.sampler()

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        guided = inverse.posterior_guided(
            prior.process,
            score_of(None),
            measurement.operator,
            condition["y"],
            noise_std=options.noise_std,
            iterations=options.iterations,
            damping=options.damping,
            scale=options.scale,
        )
        return sample(prior.sde, guided, noise)

    return draw


def dps(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`inverse.dps`, diffusion posterior sampling."""
    times, scale = prior.times(), options.scale
    return lambda score_of, noise, condition: inverse.dps(
        *(prior.process, score_of(None), noise, times, measurement.operator, condition["y"]),
        scale=scale,
    )
