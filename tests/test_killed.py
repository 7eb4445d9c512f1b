"""`kill -9` at any moment of any mode: the same command again ends with the same files."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

from configs import load
from interop import convert
from tests import tiny
from tests.test_convert import save, tiny_checkpoint
from tests.test_training import ROOT, subprocess_environment
from training import loop

KILLS = 4  # of each case, spread over the moments at which it changes files
SPENT = ("seconds", "time", "per_second")  # what no two runs have in common


class Case(NamedTuple):
    """A command that writes.

    Attributes:
      options: of main.py; `{run}` and `{source}` stand for the folders of a run and of weights.
      folder: what it writes into, in the folder of the test, of which the run is `run`.
      trained: True if it needs a trained run.
      imported: True if it needs a run of a network that a diffusers folder can hold.
      setup: a function of `killed_process`.
      program: what is run.
    """

    options: tuple[str, ...]
    folder: str
    trained: bool = True
    imported: bool = False
    setup: str = "nothing"
    program: str = "main.py"


def case(mode: str, folder: str, *more: str, **attributes: Any) -> Case:
    """A mode of main.py with the tiny config."""
    _, *options = tiny.arguments(pathlib.Path("{run}"), mode, *more)
    return Case(tuple(options), folder, **attributes)


PARTS = ("--config.eval.enable_sampling=True", "--config.eval.enable_bpd=True")
SAMPLERS = '--config.eval.samplers=("ddim:3","ddim:5")'
CONTROL = {"task": "reconstruct", "method": "ddim", "num_images": 5, "batch_size": 2}
CHURCH: dict[str, Any] = {"model.nf": 8, "model.num_res_blocks": 1, "data.image_size": 8}
CHURCH |= {"model.ch_mult": "(1,)", "model.attn_resolutions": "()"}
CASES = {
    "sample": case("sample", "run/samples"),
    "eval": case("eval", "run/eval", *PARTS, "--config.eval.enable_loss=True"),
    "eval of several samplers": case(
        "eval",
        "run/eval",
        *(SAMPLERS, "--config.eval.checkpoint=6", "--config.eval.enable_loss=False"),
    ),
    "stats": Case(
        (
            "--mode=stats",
            "--config=configs/quickstart.py",
            "--config.eval.features=inception",
            "--config.eval.repeat_grey=True",
            "--config.eval.stats_images=64",
        ),
        "data/statistics",
        trained=False,
        setup="inception_is_small",
    ),
    "control": case(
        "control",
        "run/control",
        "--config.sampling.num_steps=3",
        *(f"--config.control.{name}={value}" for name, value in CONTROL.items()),
    ),
    "import": case("import", "run", "--source={source}", trained=False),
    "export": Case(
        (
            *("--mode=export", "--workdir={run}", "--target={exported}"),
            "--config=configs/ve/church_ncsnpp_continuous.py",
            *(f"--config.{name}={value}" for name, value in CHURCH.items()),
        ),
        "exported",
        trained=False,
        imported=True,
    ),
    "reproduction": Case(
        ("--workdir={run}", "--datasets=digits"),
        "run",
        trained=False,
        setup="study_is_small",
        program="benchmarks.reproduction",
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A trained run, which the tests copy."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    loop.train(tiny.config(), workdir)
    return workdir


class Command:
    """A case's command, in a folder that is made anew for each of its kills."""

    def __init__(self, case: Case, home: pathlib.Path, trained: pathlib.Path) -> None:
        self.case, self.home, self.trained = case, home, trained
        self.source = home.with_name("weights.pth")
        save(self.source, tiny_checkpoint(tiny.config()))
        data = home.with_name("data_sets")
        data.mkdir()
        self.data = data

    def prepare(self) -> None:
        """Removes what a run left."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        if self.case.trained:
            shutil.copytree(self.trained, self.home / "run")
        if self.case.imported:
            config = load("ve/church_ncsnpp_continuous")
            config.update_from_flattened_dict(
                CHURCH | {"model.ch_mult": (1,), "model.attn_resolutions": ()}
            )
            weights = tiny_checkpoint(config)
            del weights["optimizer"]
            source = save(self.home.with_name("church.pth"), weights)
            convert.import_weights(config, source, self.home / "run")
        shutil.copytree(self.data, self.home / "data", dirs_exist_ok=True)

    def __call__(
        self, moment: int = 0, delay: float = 0.0, number: int = signal.SIGKILL
    ) -> tuple[int, int, str]:
        """Runs it, with a signal at a moment.

        Returns:
          Its exit code, the number of moments, and what it printed.
        """
        places = {"run": self.home / "run", "source": self.source}
        places["exported"] = self.home / "exported" / "unet"
        options = []
        for option in self.case.options:
            for name, path in places.items():
                option = option.replace(f"{{{name}}}", str(path))
            options.append(option)
        log = self.home.with_name("moments")
        watched = self.home if self.case.folder != "data/statistics" else self.home / "data"
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "tests.killed_process"),
                *(str(watched), str(moment), str(delay), str(int(number)), str(log)),
                *(self.case.setup, self.case.program, *options),
            ],
            cwd=ROOT,
            env=subprocess_environment(
                SCORE_SDE_DATA=str(self.home / "data"),
                JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",  # compiled by the whole run only
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        return ended.returncode, int(log.read_text()), ended.stdout + ended.stderr


def content(folder: pathlib.Path) -> dict[str, Any]:
    """Every file of a folder: numbers, JSON without times, or bytes."""
    return {
        str(path.relative_to(folder)): content_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not skipped(path.relative_to(folder))
    }


def skipped(path: pathlib.Path) -> bool:
    """True for events and orbax's times of writing, compiled programs, and the lock of a run."""
    times = {"tensorboard", ".cache", "_CHECKPOINT_METADATA"}
    return bool(times & set(path.parts)) or path.name.endswith("lock")


def content_of(path: pathlib.Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in archive.items()}
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {n: without_times(v) for n, v in value.items() if not n.endswith(SPENT)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def undisturbed(command: Command) -> tuple[int, dict[str, Any]]:
    """Runs a command from its beginning to its end: its moments, and what it makes."""
    command.prepare()
    code, count, output = command()
    assert code == 0, output
    whole = content(command.home / command.case.folder)
    assert whole
    return count, whole


def goes_on(command: Command, whole: dict[str, Any], stop: str) -> None:
    """Runs a command again after a stop: it makes what it makes undisturbed."""
    code, _, output = command()
    assert code == 0, f"{stop}, then: {output}"
    again = content(command.home / command.case.folder)
    assert again.keys() == whole.keys(), stop
    for file, value in whole.items():
        assert again[file] == value, f"{file}, {stop}"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_moment_the_same_command_ends_with_the_same_files(
    name: str, trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(CASES[name], tmp_path / "home", trained)
    count, whole = undisturbed(command)
    assert count >= KILLS
    kills = 0
    for i, moment in enumerate(np.linspace(1, count, KILLS).round().astype(int)):
        command.prepare()
        code, _, output = command(moment, 0.003 * (i % 2))
        if code == -signal.SIGKILL:
            kills += 1
        else:
            assert code == 0, output
        goes_on(command, whole, f"killed at moment {moment} of {count}")
    assert kills >= KILLS - 1
    with capsys.disabled():
        print(f"\n{name}: {kills} kills over {count} moments, {KILLS} restarts equal")
