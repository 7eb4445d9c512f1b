"""A run's folder: its config, its checkpoints, and which weights of them are meant."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import re
from typing import Any, NamedTuple

import jax
import ml_collections

import configs
import models
from configs.stored import config_differences
from runtime import devices, ema, experiment
from runtime.checkpoints import Checkpoints, unflatten
from runtime.ema_snapshots import Snapshots

# What may differ between a run and its resumption: how long, how often, and what comes after.
FREE_TO_CHANGE = (
    "training.n_iters",
    "training.*_freq*",
    "training.snapshot_sampling",
    "training.n_jitted_steps",
    "data.data_dir",
    "model.normalization",  # of earlier runs: it has no effect, and must now be the network's
    "classifier.*",
    "clip.*",
    "control.*",
    "sampling.*",
    "eval.*",
)


def open_run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Checkpoints:
    """The run's checkpoints.

    Raises:
      ValueError: the workdir holds a run whose config differs in what matters; says in what.
    """
    stored = workdir / "config.json"
    if stored.exists():
        earlier = configs.complete(json.loads(stored.read_text()))
        own = () if models.has_score(config) else ("classifier.*", "clip.*")
        free = [name for name in FREE_TO_CHANGE if name not in own]
        differences = config_differences(earlier, config.to_dict(), free)
        if differences:
            raise ValueError(
                f"{stored} belongs to another run: {'; '.join(differences)}; "
                "use its config or another --workdir"
            )
    return Checkpoints(
        workdir / "checkpoints",
        keep_latest=2,
        keep_best=1,
        keep_every=config.training.snapshot_freq,
    )


class Trained(NamedTuple):
    """Weights of one run, the step that they are from, and what they are called in tables."""

    params: Any
    step: int
    label: str


def restore(
    config: ml_collections.ConfigDict, parts: experiment.Parts, workdir: pathlib.Path
) -> Trained:
    """`load_weights` with a copy of them on every device."""
    found = load_weights(config, parts.module, parts.image_shape, workdir)
    return found._replace(params=devices.replicate(found.params))


def load_weights(
    config: ml_collections.ConfigDict,
    module: Any,
    image_shape: tuple[int, int, int],
    workdir: pathlib.Path,
) -> Trained:
    """The weights `config.eval.ema` of the checkpoint `config.eval.checkpoint`, in NumPy.

    The checkpoint is "latest", "best" or a step; the weights are "" for the average that training
    itself evaluates, "raw" for the parameters, "0.9999" for the average of that rate, or
    "posthoc:0.1" for a power-function average of that relative width (see `ema`), "posthoc:0.1@500"
    for that at another step than the checkpoint's.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it belongs to another config, or is damaged; weights that the run did not keep.
    """
    choice = chosen_weights(config.eval.ema)
    stored = open_run(config, workdir).restore(step=config.eval.checkpoint)
    init = functools.partial(models.init, module, image_shape=image_shape)
    template = jax.eval_shape(init, jax.random.key(0))
    if isinstance(choice, PostHoc):
        step = stored.step if choice.step is None else choice.step
        if step > stored.step:
            raise ValueError(
                f"eval.ema is {config.eval.ema!r}, but the run has come to step {stored.step} only"
            )
        state = stored.state if step == stored.step else None
        made = Snapshots(workdir / "ema").reconstruct(template, step, choice.width, state)
        label = (
            f"post-hoc EMA of width {choice.width:g} (from {made.sources} averages, "
            f"error of its profile {100 * made.error:.2g} %)"
        )
        return Trained(made.params, step, label)
    kept = {"raw": ("params", "raw weights"), "": ("ema_params", "EMA weights")}
    kept |= {
        ema.rate_name(rate): (f"averages/{ema.rate_name(rate)}", f"EMA weights of rate {rate:g}")
        for rate in config.training.ema_rates
    }
    kept.setdefault(ema.rate_name(config.model.ema_rate), kept[""])
    name = ema.rate_name(choice) if isinstance(choice, float) else choice
    if name not in kept:
        rates = ", ".join(f"{r:g}" for r in (config.model.ema_rate, *config.training.ema_rates))
        raise ValueError(
            f"eval.ema is {config.eval.ema!r}, but this run kept the averages of rate {rates} only "
            "(model.ema_rate, training.ema_rates)"
        )
    prefix, label = kept[name]
    return Trained(unflatten(template, stored.state, prefix=prefix), stored.step, label)


class PostHoc(NamedTuple):
    """A power-function average that was perhaps not tracked; None is the checkpoint's step."""

    width: float
    step: int | None


def chosen_weights(choice: str) -> str | float | PostHoc:
    """What `eval.ema` says: "" or "raw", a rate, or a relative width with perhaps a step.

    Raises:
      ValueError: none of these.
    """
    if choice in ("", "raw"):
        return choice
    found = re.fullmatch(r"(posthoc:)?([\d.e-]+)(@\d+)?", choice)
    with contextlib.suppress(ValueError):  # of float()
        if found and found[1]:
            return PostHoc(float(found[2]), int(found[3][1:]) if found[3] else None)
        if found and not found[3]:
            return float(choice)
    raise ValueError(
        f"eval.ema is {choice!r}; valid values: '', 'raw', a rate such as '0.9999', "
        "'posthoc:0.1' or, at another step, 'posthoc:0.1@5000'"
    )
