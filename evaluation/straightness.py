"""The straightness of a network's probability flow, over draws of the prior."""

from __future__ import annotations

import time
from typing import Any

import jax
import ml_collections
import numpy as np

from diffusion.noise import image_noise
from diffusion.straightness import straightness
from evaluation.likelihoods import standard_error
from runtime import devices, errors, experiment
from runtime.workdir import Trained

Results = dict[str, Any]


def refuse(
    options: ml_collections.ConfigDict, training: ml_collections.ConfigDict, parts: experiment.Parts
) -> None:
    """Refuses paths of a network that has no flow, by the sections `eval` and `training`.

    Raises:
      ValueError: no score; discrete labels; a class with every image.
    """
    parts.require_score()
    parts.require_unconditional()
    if not training.continuous or training.time == "fixed":
        raise ValueError(
            f"eval.straightness_images is {options.straightness_images}, but paths ask the "
            "network at all times, at which this one was not trained"
        )


def straightness_results(
    options: ml_collections.ConfigDict,
    sampling: ml_collections.ConfigDict,
    parts: experiment.Parts,
    trained: Trained,
) -> Results:
    """Mean and standard error of `diffusion.straightness` over `eval.straightness_images` draws.

    They are those of the samples of `sampling.seed`, from its first on; tolerances and solver are
    `eval.bpd_rtol`, `bpd_atol` and `bpd_solver`.

    Args:
      options: section `eval` of the config.
      sampling: section `sampling`.

    Raises:
      ValueError: the solver gave up on a path; says which.
    """
    count = options.straightness_images
    seed_key = jax.random.key(sampling.seed)

    def paths(params: Any, indices: jax.Array, _: None) -> dict[str, jax.Array]:
        noise = image_noise(devices.image_keys(seed_key, indices), parts.image_shape)
        found = straightness(
            parts.sde,
            parts.score(params),
            parts.sde.prior_sampling(noise(0)),
            rtol=options.bpd_rtol,
            atol=options.bpd_atol,
            solver=options.bpd_solver,
            eps=sampling.eps or None,
        )
        return {"straightness": found.straightness, "nfe": found.nfe, "ok": found.ok}

    began = time.monotonic()
    batch = devices.fitting_batch(min(options.batch_size, count))
    run = devices.ImageMap(paths, batch, "eval.batch_size")
    batches = [b for _, b in run(trained.params, np.arange(count), None, "straightness")]
    values = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    failed = ~values["ok"]
    tolerances = ("eval.bpd_rtol", options.bpd_rtol), ("eval.bpd_atol", options.bpd_atol)
    errors.refuse(
        np.flatnonzero(failed),
        errors.gave_up(options.bpd_solver, values["nfe"][failed], *tolerances),
    )
    return {
        "straightness": float(values["straightness"].mean()),
        "straightness_stderr": standard_error(values["straightness"]),
        "straightness_images": count,
        "straightness_nfe": float(values["nfe"].mean()),
        "straightness_seconds": time.monotonic() - began,
    }
