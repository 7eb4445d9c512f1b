"""Teachers: trained runs whose probability flow makes the pairs that another run learns of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
from jax.typing import ArrayLike

from diffusion import grids, ode
from diffusion.coupling import Teacher
from diffusion.trajectory import denoised
from runtime import devices, experiment, files
from runtime.workdir import CONFIG, load_weights, stored_config

FIELD = "training.teacher"


def load(training: ml_collections.ConfigDict, student: experiment.Parts) -> Teacher:
    """The flow of the run in the folder `training.teacher`, from z to its image.

    It is followed by Heun's method in `training.teacher_steps` steps that are even in its time, of
    two evaluations each, and a last one that takes the noise away. The weights are those that its
    run evaluates, of its latest checkpoint: it is to be finished, for a student that resumes asks
    again. They become a part of the program that trains.

    Args:
      training: section of the student's config.
      student: that is to learn from it.

    Raises:
      ValueError: there is no run; it knows other images, or no images without a class; no score, or
        one at some levels only.
    """
    folder = training.teacher
    if not folder:
        raise ValueError(
            "config.training.coupling is 'reflow', which needs config.training.teacher, the folder "
            "of a trained run"
        )
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
    score_fn = parts.score(trained.params)
    reverse = parts.sde.reverse(score_fn, probability_flow=True)
    times = grids.time_grid(parts.sde, "uniform", training.teacher_steps)

    def velocity(t: ArrayLike, x: jax.Array) -> jax.Array:
        return reverse.drift(x, jnp.full(len(x), t))

    def carried(z: jax.Array) -> jax.Array:
        x = ode.heun_steps(velocity, parts.sde.prior_sampling(z), times)
        return denoised(parts.sde, score_fn, x, times[-1])

    return carried
