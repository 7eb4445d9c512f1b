"""Methods that solve inverse problems: samples of p(x_0 | y) for y = A x_0 + noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

import controllable
import sampling
from control.prior import Options, Prior
from control.problem import Condition, Draw, ScoreOf
from diffusion import daps as decoupled
from diffusion import inverse, moment_guidance, restoration
from diffusion import twisted as twisted_smc
from diffusion.noise import Noise
from diffusion.svd import SVD, decomposition
from diffusion.trajectory import Samples
from sde_lib import ScoreFn


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measurement of images.

    Attributes:
      operator: A.
      constraint: from a condition to the component of x_0 that an exact y determines; None where
        it is not taken as exact (A A' is singular, or nearly so, or A not linear).
      linear: whether A is.
    """

    operator: inverse.Operator
    constraint: Callable[[Condition], controllable.Constraint] | None
    linear: bool = True


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
            f"control.noise_std={options.noise_std:g} control.task={options.task!r} is served by "
            "posterior, dps, pigdm, tmpd, ddrm, ddnm, diffpir, daps and twisted"
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

    def guided(score: ScoreFn, y: Array) -> ScoreFn:
        return inverse.posterior_guided(
            *(prior.process, score, measurement.operator, y),
            noise_std=options.noise_std,
            iterations=options.iterations,
            damping=options.damping,
            scale=options.scale,
        )

    return any_sampler(prior, guided)


def pigdm(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`moment_guidance.pigdm`, with any sampler."""

    def guided(score: ScoreFn, y: Array) -> ScoreFn:
        return moment_guidance.pigdm(
            *(prior.process, score, measurement.operator, y),
            noise_std=options.noise_std,
            data_std=options.data_std,
            scale=options.scale,
        )

    return any_sampler(prior, guided)


def tmpd(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`moment_guidance.tmpd`, with any sampler."""

    def guided(score: ScoreFn, y: Array) -> ScoreFn:
        return moment_guidance.tmpd(
            *(prior.process, score, measurement.operator, y),
            noise_std=options.noise_std,
            scale=options.scale,
        )

    return any_sampler(prior, guided)


def any_sampler(prior: Prior, guided: Callable[[ScoreFn, Array], ScoreFn]) -> Draw:
    """Draws with the sampler of section `sampling`, from the score that y has `guided`."""
    sample = prior.sampler()
    return lambda score_of, noise, condition: sample(
        prior.sde, guided(score_of(None), condition["y"]), noise
    )


def dps(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`inverse.dps`, diffusion posterior sampling."""
    times, scale = prior.times(), options.scale
    return lambda score_of, noise, condition: inverse.dps(
        *(prior.process, score_of(None), noise, times, measurement.operator, condition["y"]),
        scale=scale,
    )


def ddrm(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`restoration.ddrm`, in the singular vectors of the operator."""
    times, svd = prior.times(), svd_of(prior, options, measurement)
    own = {"eta": options.eta} if options.eta else {}
    return lambda score_of, noise, condition: restoration.ddrm(
        *(prior.process, score_of(None), noise, times, svd, condition["y"]),
        noise_std=options.noise_std,
        **own,
    )


def ddnm(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`restoration.ddnm`: DDNM, and DDNM+ with noise."""
    times, svd = prior.times(), svd_of(prior, options, measurement)
    return lambda score_of, noise, condition: restoration.ddnm(
        *(prior.process, score_of(None), noise, times, svd, condition["y"]),
        noise_std=options.noise_std,
        eta=options.eta or None,
    )


def diffpir(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`restoration.diffpir`, whose weight of x0 is 1 / `control.scale`.

    Raises:
      ValueError: a scale of 0.
    """
    if not options.scale > 0:
        raise ValueError("control.method='diffpir' needs a positive control.scale")
    times = prior.times()
    return lambda score_of, noise, condition: restoration.diffpir(
        *(prior.process, score_of(None), noise, times, measurement.operator, condition["y"]),
        noise_std=options.noise_std,
        weight=1.0 / options.scale,
        eta=options.eta or None,
    )


def daps(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`daps.daps`, with exact draws of x_0 for linear operators and Langevin steps for others."""
    times, noise_std = prior.times(), options.noise_std
    svd = svd_of(prior, options, measurement) if measurement.linear else None
    if svd is None:
        require_noise(options, " and an operator that is not linear")

    def given(y: Array) -> decoupled.Conditional:
        if svd is not None:
            return decoupled.linear_conditional(svd, y, noise_std)
        return decoupled.langevin_conditional(
            measurement.operator, y, noise_std, steps=options.langevin_steps
        )

    return lambda score_of, noise, condition: decoupled.daps(
        *(prior.process, score_of(None), noise, times, given(condition["y"])),
        data_std=options.data_std,
        ode_steps=options.ode_steps,
    )


def twisted(prior: Prior, options: Options, measurement: Measurement) -> Draw:
    """`twisted.twisted`: `control.particles` for each image, of which one is returned."""
    require_noise(options)
    times = prior.times()
    centre = 0.0 if prior.pixels.centered else 0.5
    gain = twisted_smc.gain_of(measurement.operator, prior.image_shape, centre)
    return lambda score_of, noise, condition: twisted_smc.twisted(
        *(prior.process, score_of(None), noise, times, measurement.operator, condition["y"]),
        noise_std=options.noise_std,
        count=options.particles,
        data_std=options.data_std,
        gain=gain,
        threshold=options.resample_below,
    )


def svd_of(prior: Prior, options: Options, measurement: Measurement) -> SVD:
    """The decomposition of the measurement's operator.

    Raises:
      ValueError: an operator that is not linear, or is not decomposed.
    """
    if not measurement.linear:
        raise ValueError(
            f"control.method={options.method!r} needs a linear operator, and "
            f"control.operator={options.operator!r} is none; posterior, dps, pigdm, tmpd, diffpir, "
            "daps and twisted serve others"
        )
    try:
        return decomposition(measurement.operator, prior.image_shape)
    except ValueError as error:
        raise ValueError(f"control.method={options.method!r}: {error}") from error


def require_noise(options: Options, words: str = "") -> None:
    """Refuses a measurement without noise, of which a method needs the likelihood."""
    if not options.noise_std > 0:
        raise ValueError(
            f"control.method={options.method!r}{words} needs a positive control.noise_std"
        )
