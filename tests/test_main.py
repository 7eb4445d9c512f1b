"""The command line: a user's mistake ends in one line, an exit code, and nothing harmed."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

from runtime.checkpoints import Checkpoints
from tests import tiny
from tests.test_training import use_devices
from training import loop


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.training.batchsize=8", "training.batchsize=8.*batch_size"),
        ("--config.modle.nf=8", "modle.*model"),
        ("--config.training.n_iters=many", "n_iters=many.*invalid literal"),
        ("--config.training.n_iters=1e3", "n_iters=1e3"),
        ("--mode=trian", "trian.*train"),
        ("--nonsense=1", "nonsense"),
        ("surplus", "unexpected argument 'surplus'"),
    ],
)
def test_an_unusable_command_line_exits_with_2(
    override: str,
    message: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = tiny.run(capsys, *tiny.arguments(tmp_path / "run", "train", override))
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mode", "override", "message"),
    [
        ("train", "--config.training.batch_size=7", "training.batch_size=7.*devices.*4"),
        ("train", "--config.training.sde=vpp", "subvpsde, trigonometric, vesde, vpsde"),
        ("train", "--config.data.dataset=imagenet", "checkerboard, cifar10, digits"),
        ("train", "--config.model.name=unet", "ncsnpp"),
        ("train", "--config.model.nonlinearity=gelu", "swish"),
        ("train", "--config.optim.lr=-1.0", "optim.lr is -1.0"),
        ("train", "--config.data.image_size=16", "8x8 pixels, not 16"),
        ("sample", "--config.sampling.predictor=euler", "euler_maruyama"),
        ("sample", "--config.sampling.method=magic", "ode, pc"),
        ("eval", "--config.eval.num_samples=8", "no checkpoint in"),
        ("eval", "--config.eval.bpd_dataset=dev", "dev.*train, test"),
    ],
)
def test_an_impossible_request_exits_with_1(
    mode: str,
    override: str,
    message: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = tiny.run(capsys, *tiny.arguments(tmp_path / "run", mode, override))
    assert code == 1
    assert len(lines) == 1, lines
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_damage_falls_back_and_says_so(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One flipped byte in the newest checkpoint: evaluation uses the one before, in one line."""
    use_devices(monkeypatch, 1)
    loop.train(tiny.config(), tmp_path)
    newest = tmp_path / "checkpoints" / "6"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    skip = ("--config.eval.enable_sampling=False", "--config.eval.enable_bpd=False")
    code, lines = tiny.run(capsys, *tiny.arguments(tmp_path, "eval", *skip))
    assert code == 0, lines
    assert any("6 is damaged" in line and "falling back" in line for line in caplog.messages)
    assert '"step": 4' in (tmp_path / "eval" / "results.json").read_text()
    asked = tiny.arguments(tmp_path, "eval", "--config.eval.checkpoint=6", *skip)
    code, lines = tiny.run(capsys, *asked)
    assert code == 1
    assert "damaged" in lines[-1]


def test_an_absent_config_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("main.py", "--mode=train", f"--workdir={tmp_path}", "--config=configs/absent.py")
    assert tiny.run(capsys, *argv) == (
        2,
        ["error: --config=configs/absent.py: there is no such file; see configs/"],
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("no\nsuch key"), "no such key"),
        (ValueError("'a' is not 'b'"), "'a' is not 'b'"),
        (OSError(), "OSError"),
    ],
)
def test_every_error_is_one_readable_line(error: Exception, line: str) -> None:
    assert tiny.main.one_line(error) == line


def test_help_is_short_and_names_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tiny.main.main(["main.py", "--help"])
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert all(mode in text for mode in tiny.main.MODES)
    assert len(text.splitlines()) < 40


@pytest.mark.slow
def test_the_discrete_chain_refuses_betas_above_one(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    loop.train(tiny.config(), tmp_path)
    few = tiny.arguments(tmp_path, "sample", "--config.sampling.num_steps=10")
    code, lines = tiny.run(capsys, *few)
    assert code == 1
    assert "N=10" in lines[-1]
    assert "below 1" in lines[-1]
    assert np.isfinite(Checkpoints(tmp_path / "checkpoints").restore().step)
