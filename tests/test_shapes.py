"""The shapes in the signatures of the mathematics, checked at run time."""

from __future__ import annotations

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_public_functions_keep_the_shapes_of_their_signatures() -> None:
    """In a process of its own, so that no other test pays for the checks."""
    command = [sys.executable, "-m", "tests.shape_checks"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip() == "checked"
