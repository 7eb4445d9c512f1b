"""Command lines by chance end well: `tests/fuzz.py` in small and, slowly, in large."""

from __future__ import annotations

import pytest

from tests import fuzz


def failures(seed: int, count: int) -> list[str]:
    """The lines that ended otherwise than they may, with how."""
    return [
        f"{line.number}: {' '.join(line.arguments)}: {end.verdict}: {end.stderr[:3]}"
        for line, end in fuzz.ends_of_lines(seed, range(count))
        if not end.fine
    ]


def test_a_number_makes_a_line_and_every_kind_and_mode_comes() -> None:
    lines = [fuzz.line(0, number) for number in range(200)]
    assert lines == [fuzz.line(0, number) for number in range(200)]
    assert lines != [fuzz.line(1, number) for number in range(200)]
    assert {line.kind for line in lines} == set(fuzz.KINDS)
    text = " ".join(argument for line in lines for argument in line.arguments)
    assert all(f"--mode={mode} " in text for mode in fuzz.MODES)


@pytest.mark.parametrize(
    ("code", "stderr", "verdict"),
    [
        (0, [], "success"),
        (0, ["warning: slow", "training: 10%|#   | 1/10"], "success"),
        (1, ["warning: slow", "error: no such file"], "exit 1"),
        (2, ["error: unknown flag"], "exit 2"),
        (1, ["Traceback (most recent call last):", "error: x"], "2 lines"),
        (1, ["error: x", "error: y"], "2 lines"),
        (1, ["ValueError: x"], "a fault of the program"),
        (1, ["error: x; this is a fault of the program"], "a fault of the program"),
        (1, [], "0 lines"),
        (0, ["Traceback"], "success with more than warnings on stderr"),
        (-11, [], "exit code -11"),
        (3, ["error: x"], "exit code 3"),
    ],
)
def test_the_ends_that_are_accepted(code: int, stderr: list[str], verdict: str) -> None:
    end = fuzz.End(code, stderr, 1.0)
    assert end.verdict == verdict
    assert end.fine == (verdict in ("success", "exit 1", "exit 2"))
    assert not fuzz.End(code, stderr, fuzz.SECONDS + 1.0).fine


def test_command_lines_by_chance_succeed_or_are_refused_in_one_line() -> None:
    assert failures(seed=0, count=40) == []


@pytest.mark.slow
def test_many_command_lines_by_chance_succeed_or_are_refused_in_one_line() -> None:
    assert failures(seed=1, count=500) == []
