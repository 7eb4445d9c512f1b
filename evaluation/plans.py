"""Which evaluations a config asks for: several checkpoints, several samplers."""

from __future__ import annotations

import pathlib

import ml_collections

import configs
import sampling
from runtime import devices
from runtime.workdir import open_run

Plan = dict[str, ml_collections.ConfigDict]


def planned(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Plan:
    """The configs of all evaluations that `config` asks for, by the names of their folders.

    Checkpoints `eval.begin_ckpt` to `eval.end_ckpt`, in units of `training.snapshot_freq` steps, as
    far as they are there (if `eval.checkpoint` is "range"), times `eval.samplers`.

    Raises:
      FileNotFoundError: none of the checkpoints is there.
      ValueError: a sampler that is unknown or cannot serve the config.
    """
    configs.check(config)
    plan: Plan = {}
    for step in checkpoints(config, workdir):
        plan |= variants(config, step)
    return plan


def variants(config: ml_collections.ConfigDict, checkpoint: str) -> Plan:
    """The configs of the evaluations of one checkpoint, by the names of their folders.

    There is one for each of `eval.samplers`, a method with its number of steps ("ddim:20") or
    without. Loss and likelihood, which know no sampler, are measured with the first one only.

    Raises:
      ValueError: a sampler that is unknown or cannot serve the config.
    """
    plan: Plan = {}
    for i, sampler in enumerate(config.eval.samplers or ("",)):
        variant = with_sampler(config, sampler, first=i == 0)
        variant.eval.checkpoint = checkpoint
        sampling.from_config(variant, devices.AXIS)
        name = f"step_{checkpoint}" if checkpoint.isdecimal() else checkpoint
        plan["_".join(filter(None, [name, sampler.replace(":", "_")]))] = variant
    return plan


def checkpoints(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[str]:
    """The values of `eval.checkpoint` that a range stands for, or its own.

    Raises:
      FileNotFoundError: none of the range's checkpoints is there.
    """
    if config.eval.checkpoint != "range":
        return [config.eval.checkpoint]
    first, last = config.eval.begin_ckpt, config.eval.end_ckpt
    frequency = config.training.snapshot_freq
    run = open_run(config, workdir, training=False)
    steps = {i * frequency for i in range(first, last + 1)}
    present = run.steps_anywhere()
    stored = [str(step) for step in present if step in steps]
    if not stored:
        raise FileNotFoundError(
            f"{run.directory} has none of the checkpoints of steps "
            f"{first * frequency} to {last * frequency} (eval.begin_ckpt to end_ckpt times "
            f"training.snapshot_freq); there are {present}"
        )
    return stored


def with_sampler(
    config: ml_collections.ConfigDict, sampler: str, first: bool
) -> ml_collections.ConfigDict:
    """The config of one evaluation with a sampler of `eval.samplers`, or its own sampler for "".

    Raises:
      ValueError: a sampler that is not "method" or "method:steps".
    """
    variant = config.copy_and_resolve_references()
    variant.eval.samplers = ()
    if sampler:
        method, _, count = sampler.partition(":")
        if count and not count.isdecimal():
            raise ValueError(
                f"eval.samplers has {sampler!r}; a sampler is a method such as 'ddim', or "
                "one with its steps, 'ddim:20'"
            )
        variant.sampling.method, variant.sampling.num_steps = method, int(count or 0)
        variant.eval.enable_loss = config.eval.enable_loss and first
        variant.eval.enable_bpd = config.eval.enable_bpd and first
    return variant
