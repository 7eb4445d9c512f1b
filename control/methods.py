"""Methods that answer measurements y = A x_0 + noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import controllable
from control.problem import (
    Condition,
    Config,
    Draw,
    ScoreOf,
    sampler,
    times,
)
from diffusion import inverse
from diffusion.noise import Noise
from diffusion.trajectory import Samples
from sde_lib import SDE


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What the methods of inverse problems need.

    Attributes:
      operator: A.
      shape: of an image.
      known: from a condition to what is known exactly; None where nothing is (A A' is singular).
    """

    operator: inverse.Operator
    shape: tuple[int, int, int]
    known: Callable[[Condition], controllable.Constraint] | None


def exactly(
    config: Config, measurement: Measurement
) -> Callable[[Condition], controllable.Constraint]:
    """What is known exactly; refuses tasks and measurements of which that cannot be said."""
    if measurement.known is None or config.control.noise_std > 0:
        raise ValueError(
            f"control.method={config.control.method!r} takes a measurement as exact; with "
            f"control.noise_std={config.control.noise_std:g} control.task={config.control.task!r} "
            "is served by posterior and dps"
        )
    return measurement.known


def infill(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`controllable.infilled`, with any sampler."""
    known, sample = exactly(config, measurement), sampler(config)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        given = known(condition)
        samples = sample(sde, controllable.infilled(sde, score_of(None), given), noise)
        return samples._replace(x=given.impose(samples.x, given.values))

    return draw


def replace(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`controllable.pc_infill`, with the predictor and corrector of `config.sampling`."""
    known, options = exactly(config, measurement), config.sampling
    if options.predictor == options.corrector == "none":
        raise ValueError(
            "control.method='replace' is predictor-corrector sampling, and sampling.predictor and "
            "sampling.corrector are both 'none'; try --config.sampling.predictor=ancestral_sampling"
        )
    if options.num_steps not in (0, sde.N) and not config.training.continuous:
        raise ValueError(
            f"sampling.num_steps is {options.num_steps}, but a network that was trained with "
            f"discrete labels has {sde.N} noise levels, and 'replace' takes them all: use 0"
        )
    sde = dataclasses.replace(sde, N=options.num_steps) if options.num_steps else sde
    sample = functools.partial(
        controllable.pc_infill,
        predictor=options.predictor,
        corrector=options.corrector,
        snr=options.snr,
        n_steps_each=options.n_steps_each,
        denoise=options.noise_removal,
        eps=options.eps or None,
        probability_flow=options.probability_flow,
        official=config.control.official,
    )
    return lambda score_of, noise, condition: sample(sde, score_of(None), noise, known(condition))


def repaint(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`controllable.repaint`."""
    known, grid = exactly(config, measurement), times(config, sde)
    jump, repeats = config.control.jump, config.control.repeats
    controllable.travel(len(grid) - 1, jump, repeats)
    return lambda score_of, noise, condition: controllable.repaint(
        sde, score_of(None), noise, grid, known(condition), jump=jump, repeats=repeats
    )


def posterior(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`inverse.posterior_guided`, with any sampler."""
    sample, options = sampler(config), config.control

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        guided = inverse.posterior_guided(
            sde,
            score_of(None),
            measurement.operator,
            condition["y"],
            noise_std=options.noise_std,
            iterations=options.iterations,
            damping=options.damping,
            scale=options.scale,
        )
        return sample(sde, guided, noise)

    return draw


def dps(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`inverse.dps`."""
    grid, scale = times(config, sde), config.control.scale
    return lambda score_of, noise, condition: inverse.dps(
        sde, score_of(None), noise, grid, measurement.operator, condition["y"], scale=scale
    )


Method = Callable[[Config, SDE, Measurement], Draw]

METHODS: dict[str, Method] = {
    "infill": infill,
    "replace": replace,
    "repaint": repaint,
    "posterior": posterior,
    "dps": dps,
}
