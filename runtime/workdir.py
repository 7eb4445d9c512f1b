"""A run's folder: its config, its checkpoints, and which weights of them are meant."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections

import configs
import data
import models
from configs import schema
from configs.stored import config_differences
from runtime import devices, ema, errors, experiment, files, hosts
from runtime.arrays import fingerprint, unflatten
from runtime.checkpoints import Checkpoints
from runtime.ema_snapshots import Snapshots
from runtime.stored_step import Restored

# Fields in which a run and its resumption may differ: how long, how often, and what comes after.
FREE_TO_CHANGE = (
    "training.n_iters",
    "training.*_freq*",
    "training.snapshot_sampling",
    "training.n_jitted_steps",
    "training.loggers",
    "training.shard_state",
    "data.data_dir",
    "data.cache",
    "model.normalization",  # of earlier runs: it has no effect, and must now be the network's
    "classifier.*",
    "clip.*",
    "control.*",
    "sampling.*",
    "eval.*",
)

# What a run and its other modes write into the folder of the run.
RESERVED = (
    *("checkpoints", "ema", "samples", "samples_in_training", "control"),
    *("tensorboard", "wandb", "mlflow", "profile", "guide"),
)

CONFIG = "config.json"
CONFIG_ADVICE = (
    "if you know the run's config, remove the file, and --mode=train with that config writes it "
    "again"
)


def open_run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, training: bool = True
) -> Checkpoints:
    """The checkpoints of the run in this folder.

    Where no `training` goes on `experiment.SOURCE` may be another, of as many grey levels.

    Raises:
      ValueError: the folder holds a run whose config, in config.json or else in its newest
        checkpoint, differs in what matters; says in what. Its config.json is damaged. The folders
        of several hosts are not of one run. The same on all processes.
    """
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep_latest=2,
        keep_best=1,
        keep_every=config.training.snapshot_freq,
    )
    with hosts.together():
        _refuse_other_run(config, workdir, checkpoints, training)
    checkpoints.steps_anywhere()  # of one run
    return checkpoints


def _refuse_other_run(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    training: bool,
) -> None:
    path, old = _config_of(workdir, checkpoints)
    if old:
        guide_fields = () if models.has_samples(config) else ("classifier.*", "clip.*")
        free = [name for name in FREE_TO_CHANGE if name not in guide_fields]
        free += [] if training else experiment.SOURCE
        new = configs.complete(config.to_dict())
        differences = config_differences(old, new, free) + _other_levels(old, new, free)
        if differences:
            raise ValueError(
                f"{path} belongs to another run: {errors.abridged(differences, '; ', 4)}; use its "
                "config or another --workdir"
            )


def _config_of(
    workdir: pathlib.Path, checkpoints: Checkpoints
) -> tuple[pathlib.Path, Mapping[str, Any] | None]:
    """The config of the run in a folder, if it has one, as of today, and where that stands."""
    path = workdir / CONFIG
    exists = path.exists()
    stored = _stored_sections(path) if exists else checkpoints.config()
    complete = configs.complete(stored) if stored else None
    return path if exists else checkpoints.directory, complete


def _other_levels(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str]
) -> list[str]:
    """A line where a data set that is free to change has other grey levels than the run's."""
    names = [str(config["data"]["dataset"]) for config in (old, new)]
    shapes = [config["data"]["shape"] for config in (old, new)]
    stored, given = map(data.grey_levels, names, shapes)
    if stored == given or "data.dataset" not in free:
        return []
    return [
        f"data.dataset: {names[0]!r} (stored) != {names[1]!r} (given), which have {stored} and "
        f"{given} grey levels (points have 0)"
    ]


def settled(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config with the numbers that standardise real-valued examples, where it names none.

    They are the run's own, in its config.json, once training has written them there, and no data
    set is needed; before that those of the training examples.
    """
    section = config.data
    if not section.shape or section.mean or section.std:
        return config
    configs.check(config)
    path = workdir / CONFIG
    stored = configs.complete(_stored_sections(path) if path.exists() else {})["data"]
    if stored["mean"] and tuple(stored["shape"]) != tuple(section.shape):
        raise ValueError(
            f"{path}: the run has data.shape={tuple(stored['shape'])}, and this config "
            f"{tuple(section.shape)}; add --config.data.shape='{tuple(stored['shape'])}'"
        )
    if stored["mean"]:
        mean, std = stored["mean"], stored["std"]
    else:
        mean, std = data.standard(section) or data.Standard()
    config = config.copy_and_resolve_references()
    config.data.mean, config.data.std = tuple(mean), tuple(std)
    return config


def results_folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """The folder `name`, --eval_folder, in a run's folder, for results of an evaluation.

    Raises:
      ValueError: it is not inside the run's folder, or it holds what the run itself writes.
    """
    folder = workdir / name
    inside = (
        folder.resolve().relative_to(workdir.resolve()).parts
        if files.contains(workdir, folder)
        else ()
    )
    if not inside:
        raise ValueError(
            f"--eval_folder={name!r} is not inside {workdir}; it must be the name of a folder there"
        )
    if inside[0] in RESERVED:
        raise ValueError(
            f"--eval_folder={name!r} is where the run keeps its {inside[0]}; name another"
        )
    return folder


def stored_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of the run in a folder, as a run of today reads it.

    Raises:
      FileNotFoundError: there is no config.json.
      ValueError: it is damaged, or holds no config; names the file.
    """
    path = workdir / CONFIG
    config = configs.from_stored(_stored_sections(path))
    try:
        configs.check(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _stored_sections(path: pathlib.Path) -> dict[str, Any]:
    """The sections of the config in a file, each with its fields by name."""
    stored = files.read_json(path, CONFIG_ADVICE)
    for name, section in schema.base().items():
        if isinstance(section, ml_collections.ConfigDict):
            fields = stored.get(name, {})
            if not isinstance(fields, dict):
                raise ValueError(f"{path} is damaged: its {name!r} is {fields!r}; {CONFIG_ADVICE}")
    return stored


class Trained(NamedTuple):
    """Weights of one run.

    Attributes:
      params: the weights.
      step: of the training that they are from.
      label: what they are called in tables.
      sha256: their `arrays.fingerprint`, by which all that is made with them and kept is named.
      dataset: the name of the data set that they were trained on; "" where nobody knows.
      folder: where that lay, if it was a user's own.
    """

    params: Any
    step: int
    label: str
    sha256: str
    dataset: str = ""
    folder: str = ""


def restore(
    config: ml_collections.ConfigDict, parts: experiment.Parts, workdir: pathlib.Path
) -> Trained:
    """`load_weights` with a copy of them on every device."""
    trained = load_weights(config, parts.module, parts.image_shape, workdir)
    return trained._replace(params=devices.replicate(trained.params))


def load_weights(
    config: ml_collections.ConfigDict,
    module: Any,
    image_shape: tuple[int, ...],
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
    choice = weights_choice(config.eval.ema)
    checkpoints = open_run(config, workdir, training=False)
    restored = checkpoints.restore(step=config.eval.checkpoint)
    _, stored = _config_of(workdir, checkpoints)
    if stored is None and restored.config_json != "{}":  # of a host that has nothing
        stored = configs.complete(json.loads(restored.config_json))
    dataset = str(stored["data"]["dataset"]) if stored else ""
    folder = str(stored["data"]["data_dir"]) if stored and data.is_users_own(dataset) else ""
    init = functools.partial(models.init, module, image_shape=image_shape)
    template = jax.eval_shape(init, jax.random.key(0))
    if isinstance(choice, PostHocAverage):
        snapshots = Snapshots(workdir / "ema")
        trained = _post_hoc_weights(config, choice, restored, template, snapshots)
        return trained._replace(dataset=dataset, folder=folder)
    trees = _stored_trees(config)
    name = ema.rate_name(choice) if isinstance(choice, float) else choice
    if name not in trees:
        own = () if config.model.ema_half_life else (config.model.ema_rate,)
        rates = ", ".join(f"{r:g}" for r in (*own, *config.training.ema_rates)) or "none"
        raise ValueError(
            f"eval.ema is {config.eval.ema!r}, but this run kept the averages of rate {rates} only "
            "(model.ema_rate, training.ema_rates)"
        )
    prefix, label = trees[name]
    params = unflatten(template, restored.state, prefix=prefix)
    return Trained(params, restored.step, label, fingerprint(params), dataset, folder)


class PostHocAverage(NamedTuple):
    """A power-function average that was perhaps not tracked; step None is the checkpoint's."""

    width: float
    step: int | None


def weights_choice(text: str) -> str | float | PostHocAverage:
    """The meaning of `eval.ema`: "" or "raw", a rate, or a relative width with perhaps a step.

    Raises:
      ValueError: none of these.
    """
    if text in ("", "raw"):
        return text
    match = re.fullmatch(r"(posthoc:)?([\d.e-]+)(@\d+)?", text)
    with contextlib.suppress(ValueError):  # of float()
        if match and match[1]:
            return PostHocAverage(float(match[2]), int(match[3][1:]) if match[3] else None)
        if match and not match[3]:
            return float(text)
    raise ValueError(
        f"eval.ema is {text!r}; valid values: '', 'raw', a rate such as '0.9999', "
        "'posthoc:0.1' or, at another step, 'posthoc:0.1@5000'"
    )


def _stored_trees(config: ml_collections.ConfigDict) -> dict[str, tuple[str, str]]:
    """Place in a checkpoint and label of each tree of weights that the run stores, by its name."""
    trees = {"raw": ("params", "raw weights"), "": ("ema_params", "EMA weights")}
    for rate in config.training.ema_rates:
        name = ema.rate_name(rate)
        trees[name] = f"averages/{name}", f"EMA weights of rate {rate:g}"
    if not config.model.ema_half_life:
        trees.setdefault(ema.rate_name(config.model.ema_rate), trees[""])
    return trees


def _post_hoc_weights(
    config: ml_collections.ConfigDict,
    average: PostHocAverage,
    restored: Restored,
    template: Any,
    snapshots: Snapshots,
) -> Trained:
    """The weights of a power-function average, from snapshots and the restored checkpoint."""
    step = restored.step if average.step is None else average.step
    if step > restored.step:
        raise ValueError(
            f"eval.ema is {config.eval.ema!r}, but the run has come to step {restored.step} only"
        )
    state = restored.state if step == restored.step else None
    reconstruction = snapshots.reconstruct(template, step, average.width, state)
    label = (
        f"post-hoc EMA of width {average.width:g} (from {reconstruction.sources} averages, "
        f"error of its profile {100 * reconstruction.error:.2g} %)"
    )
    params = reconstruction.params
    return Trained(params, step, label, fingerprint(params))
