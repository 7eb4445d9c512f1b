"""The shapes in the signatures of the mathematics, checked at run time."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "processes", [["vp"], pytest.param(["ve", "subvp"], marks=pytest.mark.slow)], ids=" ".join
)
def test_public_functions_keep_the_shapes_of_their_signatures(processes: list[str]) -> None:
    """In a process of its own, so that no other test pays for the checks."""
    command = [sys.executable, "-m", "tests.shape_checks", *processes]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip() == "checked"
