"""Teachers: trained runs whose probability flow another run learns of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.typing import ArrayLike

from diffusion import grids, ode
from diffusion.coupling import Teacher
from diffusion.flow_maps import Denoiser
from diffusion.parametrisation import convert
from diffusion.trajectory import denoised
from runtime import devices, experiment, files
from runtime.workdir import CONFIG, load_weights, stored_config
from sde_lib import SDE, Images, Times, batch_mul

FIELD = "training.teacher"
LEVEL = 0.05  # by which a teacher may be asked beyond its noise levels, in units of a level


def pairs(training: ml_collections.ConfigDict, student: experiment.Parts) -> Teacher:
    """The flow of the run in the folder `training.teacher`, from z to its image.

    It is followed by Heun's method in `training.teacher_steps` steps that are even in its time, of
    two evaluations each, and a last one that takes the noise away.

    Raises:
      ValueError: no folder is named; what `opened` refuses.
    """
    if not training.teacher:
        raise ValueError(
            "config.training.coupling is 'reflow', which needs config.training.teacher, the folder "
            "of a trained run"
        )
    parts, params = opened(training.teacher, student)
    score_fn = parts.score(params)
    reverse = parts.sde.reverse(score_fn, probability_flow=True)
    times = grids.time_grid(parts.sde, "uniform", training.teacher_steps)

    def velocity(t: ArrayLike, x: jax.Array) -> jax.Array:
        return reverse.drift(x, jnp.full(len(x), t))

    def carried(z: jax.Array) -> jax.Array:
        x = ode.heun_steps(velocity, parts.sde.prior_sampling(z), times)
        return denoised(parts.sde, score_fn, x, times[-1])

    return carried


def denoiser(training: ml_collections.ConfigDict, student: experiment.Parts) -> Denoiser | None:
    """The E[x_0 | x] of the run in `training.teacher`, at the student's x and t; None: no folder.

    A teacher of another SDE is asked at its time with the same sigma / alpha, and at x on its own
    scale, where it knows the same images with the same noise.

    Raises:
      ValueError: it knows less noise, or only more, than the student's SDE has; what `opened`
        refuses.
    """
    if not training.teacher:
        return None
    parts, params = opened(training.teacher, student)
    sde, own = student.sde, parts.sde
    if sde != own:
        _check_levels(training.teacher, own, sde)
    score_fn = parts.score(params)

    def denoised_at(x: Images, t: Times) -> Images:
        there, scaled = t, x
        if sde != own:
            there = jnp.clip(own.time_of_log_snr(sde.log_snr(t)), own.training_eps, own.T)
            scaled = batch_mul(own.alpha(there) / sde.alpha(t), x)
        estimate = convert(own, scaled, there, score_fn(scaled, there), "score", "x0")
        return jax.lax.stop_gradient(estimate)

    return denoised_at


def _check_levels(folder: str, teacher: SDE, student: SDE) -> None:
    """Refuses a teacher that does not know all noise levels of the student's SDE."""
    (low, high), (first, last) = (
        [grids.noise_at(sde, t) for t in (sde.training_eps, sde.T)] for sde in (teacher, student)
    )
    if first < low * (1.0 - LEVEL) or last > high * (1.0 + LEVEL):
        raise ValueError(
            f"{FIELD}={folder!r} knows noise levels sigma / alpha from {low:.4g} to {high:.4g}, "
            f"and this run's SDE has {first:.4g} to {last:.4g}; take an SDE with no others, such "
            f"as training.sde=edm with model.sigma_min={low:.4g}, model.sigma_max={high:.4g}"
        )


def opened(folder: str, student: experiment.Parts) -> tuple[experiment.Parts, Any]:
    """The run in a folder and its weights.

    These are those that its run evaluates, of its latest checkpoint: it is to be finished, for a
    student that resumes asks again. They become a part of the program that trains.

    Args:
      student: that is to learn from it.

    Raises:
      ValueError: there is no run; it knows other images, or no images without a class; no score, or
        one at some levels only.
    """
    workdir = files.as_path(folder, FIELD)
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"{FIELD}={folder!r} holds no run: there is no {workdir / CONFIG}")
    stored = stored_config(workdir)
    parts = experiment.build(stored)
    parts.require_score()
    parts.require_unconditional()
    if not parts.continuous:
        raise ValueError(
            f"{FIELD}={folder!r} was trained with discrete labels (training.continuous is False), "
            "so it has no flow"
        )
    for what, of_teacher, of_student in (
        ("images of shape", parts.image_shape, student.image_shape),
        ("pixels in", parts.pixels, student.pixels),
    ):
        if of_teacher != of_student:
            raise ValueError(
                f"{FIELD}={folder!r} knows {what} {of_teacher}, and this run {of_student}"
            )
    trained = load_weights(stored, parts.module, parts.image_shape, workdir)
    if devices.is_primary():
        print(f"teacher: {folder}, step {trained.step}, {trained.label}", flush=True)
    return parts, trained.params
