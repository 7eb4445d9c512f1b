"""A config small enough to train in a test, and the command line inside this process."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

import main
import sampling
from configs import quickstart
from generation.generator import Generator
from runtime import devices, effects, experiment

OVERRIDES: dict[str, Any] = {
    "training.batch_size": 8,
    "training.n_iters": 6,
    "training.n_jitted_steps": 2,
    "training.log_freq": 2,
    "training.eval_freq": 2,
    "training.snapshot_freq": 100,
    "training.snapshot_freq_for_preemption": 2,
    "training.ema_rates": (0.9,),
    "training.ema_profiles": (0.05, 0.1),
    "training.ema_snapshot_freq": 2,
    "model.nf": 8,
    "model.ch_mult": (1,),
    "model.num_res_blocks": 1,
    "model.attn_resolutions": (),
    "model.dropout": 0.1,
    "optim.warmup": 2,
    "sampling.method": "pc",
    "sampling.predictor": "ancestral_sampling",
    "sampling.num_steps": 25,
    "sampling.num_samples": 6,
    "sampling.batch_size": 4,
    "sampling.num_frames": 3,
    "eval.batch_size": 8,
    "eval.num_samples": 8,
    "eval.bpd_num_images": 4,
    "eval.bpd_rtol": 1e-2,
    "eval.bpd_atol": 1e-2,
}


def config(**changes: Any) -> ConfigDict:
    """The quickstart's config with `OVERRIDES`; `changes` are `section__field=value`."""
    made = quickstart.get_config()
    made.update_from_flattened_dict(
        OVERRIDES | {name.replace("__", "."): value for name, value in changes.items()}
    )
    return made


def generator(config: ConfigDict, parts: experiment.Parts) -> Generator:
    """The generator of samples by the config's sampler."""
    return Generator(parts, sampling.from_config(config, devices.AXIS), config.sampling)


def arguments(workdir: pathlib.Path, mode: str, *more: str) -> list[str]:
    """The command line of the tiny run, as far as the mode reads it; `more` comes last and wins."""
    overrides = [
        f"--config.{name}={value}"
        for name, value in OVERRIDES.items()
        if effects.acts_in(name, mode)
    ]
    return [
        "main.py",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        f"--mode={mode}",
        *overrides,
        *more,
    ]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str]]:
    """Exit code of `python argv`, and what it wrote to stderr, progress bars aside, by line."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
        patch.setattr(sys, "argv", list(argv))  # ml_collections finds its overrides there
        flags.FLAGS.unparse_flags()
        code = 0
        try:
            main.main(list(argv))
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return code, [line for line in lines if line.strip() and "%|" not in line]
