"""Options without effect in what is asked are said, in one line each."""

from __future__ import annotations

import fnmatch
import pathlib
from typing import Any

import pytest

import configs
import main
from configs import command_line, schema
from control.run import TASKS
from runtime import control_effects, effects
from tests import tiny


@pytest.mark.parametrize(
    ("name", "mode", "overrides", "words"),
    [
        (
            "quickstart",
            "train",
            {"training.directions": "gaussian"},
            "objective is ssm or",
        ),
        ("quickstart", "eval", {"eval.resize": "pytorch"}, "compared by Inception"),
        ("quickstart", "eval", {"eval.stats_path": "x.npz"}, "compared by Inception"),
        ("quickstart", "eval", {"eval.inception_path": "x.pth"}, "compared by Inception"),
        ("toy/two_moons_edm", "train", {"data.data_dir": "/data"}, "data.dataset has images"),
        ("toy/two_moons_edm", "train", {"model.remat": True}, "a network that has it"),
        ("quickstart", "control", {"control.guide": "runs/x"}, "control.method is classifier or"),
        ("quickstart", "control", {"control.factor": 4}, "control.task is super_resolution"),
        ("quickstart", "control", {"control.jump": 4, "control.method": "dps"}, "is repaint"),
        ("digits/classifier", "train", {"model.normalization": "none"}, "trains a score"),
        ("digits/classifier", "train", {"model.nf": 16}, "trains a score"),
        ("quickstart", "train", {"classifier.dropout": 0.5}, "training.objective is classifier or"),
        ("vp/cifar10_ddpmpp", "train", {"model.fir_kernel": (1, 1)}, "a network that has it"),
        ("vp/cifar10_ddpmpp", "train", {"model.sigma_max": 9.0}, "an SDE that reads it"),
        ("ve/cifar10_ncsnpp", "train", {"model.beta_max": 9.0}, "an SDE that reads it"),
        ("vp/cifar10_ddpmpp", "sample", {"sampling.snr": 0.2}, "corrector is langevin or ald"),
        ("vp/cifar10_ddpmpp", "sample", {"sampling.eta": 1.0}, "sampling.method is ddim"),
        ("vp/cifar10_ddpmpp", "sample", {"sampling.rtol": 0.1}, "sampling.method is ode or sde"),
        ("vp/cifar10_ddpmpp", "train", {"optim.decay_steps": 9}, "optim.schedule is cosine or"),
        ("vp/cifar10_ddpmpp", "eval", {"eval.bpd_rtol": 0.1}, "eval.enable_bpd is True"),
        ("vp/cifar10_ddpmpp", "eval", {"eval.end_ckpt": 30}, "eval.checkpoint is range"),
        (
            "quickstart",
            "train",
            {"control.task": "class", "eval.seeds": 2},
            "--mode=train does",
        ),
        ("quickstart", "stats", {"sampling.num_steps": 9}, "--mode=stats does not read"),
    ],
)
def test_an_override_that_cannot_act_is_named_with_where_it_acts(
    name: str, mode: str, overrides: dict[str, Any], words: str
) -> None:
    config = configs.load(name)
    config.update_from_flattened_dict(overrides)
    (line,) = effects.without_effect(config, mode, overrides)
    assert words in line
    assert all(override in line for override in list(overrides)[:1])
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "mode", "overrides"),
    [
        ("quickstart", "train", {"training.directions": "rademacher"}),  # the default
        ("quickstart", "train", {"training.objective": "ssm", "training.directions": "gaussian"}),
        ("quickstart", "eval", {"eval.samplers": ("ddim",), "sampling.eta": 1.0}),
        ("quickstart", "eval", {"eval.features": "inception", "eval.resize": "pytorch"}),
        ("vp/cifar10_ddpmpp", "stats", {"eval.features": "inception", "eval.resize": "pytorch"}),
        ("quickstart", "control", {"control.method": "replace", "sampling.predictor": "none"}),
        ("quickstart", "control", {"sampling.time_grid": "karras", "sampling.num_steps": 9}),
        ("vp/cifar10_ddpmpp", "train", {"model.attn_resolutions": (8,), "model.dropout": 0.5}),
        ("ve/cifar10_ncsnpp", "train", {"model.sigma_max": 9.0, "model.fir_kernel": (1, 1)}),
        ("ve/ncsn/cifar10", "train", {"model.num_classes": 12, "model.pytorch": True}),
        ("digits/classifier", "train", {"classifier.widen_factor": 2, "model.beta_max": 9.0}),
        ("quickstart", "train", {"sampling.method": "magic", "sampling.snr": 0.2}),  # refused
    ],
)
def test_an_override_that_acts_is_not_named(
    name: str, mode: str, overrides: dict[str, Any]
) -> None:
    config = configs.load(name)
    config.update_from_flattened_dict(overrides)
    assert effects.without_effect(config, mode, overrides) == []


@pytest.mark.parametrize("effect", effects.EFFECTS, ids=lambda effect: effect.fields[:40])
def test_every_condition_is_of_fields_and_can_be_asked_of_every_config(
    effect: effects.Effect,
) -> None:
    for pattern in effect.fields.split():
        assert fnmatch.filter(schema.fields(), pattern), f"there is no field {pattern}"
    for config in configs.shipped().values():
        for mode in main.MODES:
            assert effect.acts(config, mode) in (True, False)


def test_methods_of_control_are_those_of_its_tasks() -> None:
    config = schema.base()
    methods = {name for task in TASKS.values() for name in task.methods}
    for name, task in TASKS.items():
        config.control.task = name
        assert effects.control_method(config) == task.default
    assert set(control_effects.OWN_STEPS) <= methods
    fields = {
        name for pattern in effects.MODES for name in fnmatch.filter(schema.fields(), pattern)
    }
    assert fields >= {name for name in schema.fields() if name.startswith(("eval", "control"))}
    assert {mode for modes in effects.MODES.values() for mode in modes} <= main.MODES.keys()


def test_the_last_of_several_overrides_of_a_tuple_stands() -> None:
    """ml_collections joins them."""
    argv = [
        *("main.py", "--config=x.py", "--config.model.ch_mult=(1,2)", "--mode=train"),
        *("--config.model.ch_mult=(1,)", "-config.eval.seed", "3", "--config.model.fir"),
        *("--noconfig.model.fir", "--config.eval.seed=4", "surplus", "surplus"),
    ]
    assert command_line.ordered(argv) == [
        *("main.py", "--config=x.py", "--mode=train", "--config.model.ch_mult=(1,)"),
        *("--noconfig.model.fir", "--config.eval.seed=4", "surplus", "surplus"),
    ]


@pytest.mark.parametrize(
    ("mode", "flag", "words"),
    [
        ("train", "--source=x.pth", "--source has no effect in --mode=train; it acts in --mode=ev"),
        ("import", "--target=x", "--target has no effect in --mode=import; it acts in --mode=ex"),
        ("sample", "--eval_folder=x", "--eval_folder has no effect in --mode=sample; it acts in"),
        ("train", "--workdir=", "--workdir= is empty"),
        ("eval", "--eval_folder= ", "--eval_folder= is empty"),
        ("train", "--config.model.ch_mult=(0,)", "ch_mult is (0,); it must be"),
    ],
)
def test_flags_that_the_mode_does_not_read_are_refused(
    mode: str, flag: str, words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = () if mode != "import" else ("--source=absent.pth",)
    code, lines = tiny.run(capsys, *tiny.arguments(tmp_path / "run", mode, *source, flag))
    assert (code, len(lines)) == (1 if "ch_mult" in flag else 2, 1)
    assert words in lines[0].replace("error: ", "")
