"""Functions of a user's file by their names: what is loaded, and each refusal in one line."""

from __future__ import annotations

import hashlib
import pathlib

import pytest

from runtime import user_function

SOURCE = """import math

OFFSET = 2.0


def moved(x):
    return x + OFFSET


def other(x):
    return math.exp(x)
"""


def test_a_function_is_loaded_with_the_hash_of_its_file(tmp_path: pathlib.Path) -> None:
    """And anew where the file has changed."""
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    loaded = user_function.load(f"{path}:moved", "control.reward")
    assert loaded.function(1.0) == 3.0
    assert loaded.sha256 == hashlib.sha256(SOURCE.encode()).hexdigest()
    path.write_text(SOURCE.replace("2.0", "5.0"))
    again = user_function.load(f"{path}:moved", "control.reward")
    assert (loaded.function(1.0), again.function(1.0)) == (3.0, 6.0)
    assert again.sha256 != loaded.sha256
    assert user_function.is_named(f"{path}:moved")
    assert not user_function.is_named("brightness")


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (None, "moved", "there is no file"),
        (SOURCE, "absent", r"defines no function 'absent'; it defines moved, other$"),
        (SOURCE, "OFFSET", r"defines no function 'OFFSET'; it defines moved, other$"),
        ("x = 1\n", "moved", "it defines none"),
        ("def moved(x:\n", "moved", r"mine\.py, line 1: SyntaxError"),
        ("x = 1\n\ny = z\n", "moved", r"mine\.py, line 3: NameError: name 'z' is not defined"),
        ("import not_a_module\n", "moved", r"line 1: ModuleNotFoundError: No module named"),
    ],
)
def test_what_is_no_function_is_refused_in_one_line(
    source: str | None, name: str, message: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ValueError, match=message) as refusal:
        user_function.load(f"{path}:{name}", "control.reward")
    assert str(refusal.value).startswith("control.reward=")
    assert "\n" not in str(refusal.value)
