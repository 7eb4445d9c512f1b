"""A word while XLA compiles."""

from __future__ import annotations

import io
import sys
import time

import pytest
from tqdm import tqdm

from runtime import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_bar_counts_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=2, file=terminal) as bar:
        slow = progress.announced(lambda seconds: time.sleep(seconds), bar, "training")
        slow(1.2)
    assert "compiling, 1 s" in terminal.getvalue()


def test_elsewhere_it_is_one_line_of_the_first_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    with progress.progress(2, "training", "step") as bar:
        wait = progress.announced(time.sleep, bar, "training")
        wait(0.2)
        wait(0.2)
    assert capsys.readouterr().err.count("training: compiling") == 1


def test_a_quick_or_hidden_one_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress(2, "training", "step") as bar, progress.compiling(bar, "training"):
        pass
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    with progress.progress(2, "", "step") as bar, progress.compiling(bar, ""):
        time.sleep(0.05)
    assert "compiling" not in capsys.readouterr().err
