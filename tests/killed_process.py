"""A run of the program that gets a signal at a chosen change of its files, as of `kill -9`.

    python -m tests.killed_process <folder> <moment> <delay> <signal> <log> <setup> main.py ...

Every file that is opened to be written, moved, made or removed below the folder is a moment; at the
one of that number (0: never) the process gets the signal, `delay` seconds after it began. The
number of all moments so far is in the file `log`.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import runpy
import sys
import threading
from typing import Any

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(folder: str, moment: int, delay: float, number: int, log: str) -> None:
    """Counts the moments from now on, and sends the signal at the one that is asked for."""
    numbers, file = itertools.count(1), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.pwrite(file, b"0", 0)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and arguments[2] & WRITING):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(folder):
            return
        count = next(numbers)  # threads of orbax count too
        os.pwrite(file, str(count).encode(), 0)
        if count == moment:
            later = threading.Timer(delay, os.kill, (os.getpid(), number))
            later.start() if delay else os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def inception_is_small() -> None:
    """Replaces Inception by a few mixtures of pixels, as the tests of the judge do."""
    import pytest

    from tests.test_judge import replace_inception

    replace_inception(pytest.MonkeyPatch())


def study_is_small() -> None:
    """Replaces the networks of the reproduction by the tests' own, and measures few cells."""
    from benchmarks.reproduction import cells, measure, sequential, study
    from tests import tiny

    def load(dataset: str, sde: str) -> Any:
        few = {"eval__bpd_num_repeats": 1, "sampling__num_frames": 0}
        return tiny.config(**few, training__sde=f"{sde}sde", training__snapshot_sampling=False)

    measure.load = load  # type: ignore[assignment]
    cells.SCALES["digits"] = cells.Scale(
        levels=24,  # the discrete betas of the VP SDE need 21
        images=80,  # a jackknife of 10 groups needs 20, and those of all levels are a quarter
        rows=("reverse diffusion",),
        columns=("P1000", "PC1000"),
        snrs=(0.1, 0.2),
        solvers={"vp": ("ddim",)},
        evaluations=(3,),
        examples=5,
    )
    study.LOOKS = sequential.LOOKS = (2, 3)  # type: ignore[assignment]
    study.EXACT_LOOKS = (2,)  # type: ignore[assignment]
    cells.PAPER_LEVELS = 48
    cells.FURTHER_SNRS = study.FURTHER_SNRS = ()  # type: ignore[assignment]


def forget_flags() -> None:
    """Removes the flags of main.py, which the tests' modules import, so that it can be run."""
    from absl import flags

    modules = flags.FLAGS.flags_by_module_dict()
    for flag in [*modules.get("main", []), *modules.get("runtime.config_flag", [])]:
        delattr(flags.FLAGS, flag.name)


def nothing() -> None:
    """Leaves all as it is."""


if __name__ == "__main__":
    folder, moment, delay, number, log, setup, program, *options = sys.argv[1:]
    root = pathlib.Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    from runtime import backend

    backend.prepare()
    globals()[setup]()
    forget_flags()
    watch(folder, int(moment), float(delay), int(number), log)
    sys.argv = [program, *options]
    if program.endswith(".py"):
        runpy.run_path(str(root / program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__")
