"""Every exception ends in one line: a user's doing, a lack of memory, or a fault of the program."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

from runtime import endings, files, stop
from runtime.errors import Refused


class XlaRuntimeError(RuntimeError):
    """As jaxlib raises it."""

    __module__ = "jaxlib._jax"


class CheckpointError(Exception):
    """As a package raises it."""

    __module__ = "orbax.checkpoint"


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "code", "pattern"),
    [
        (Refused("no such\nmode"), 2, r"error: no such mode"),
        (ValueError("key \x1b[31mw\x00"), 1, r"error: key \\x1b\[31mw\\x00"),
        (ValueError("nf is 0"), 1, r"error: nf is 0"),
        (FileNotFoundError(2, "No such file", "a.npz"), 1, r"error: a\.npz: No such file"),
        (
            OSError(28, "No space left on device"),
            1,
            r"error: .*space.*tests/test_endings\.py:\d+.*",
        ),
        (stop.Stopped("stopped at step 3"), 143, r"stopped at step 3"),
        (KeyboardInterrupt(), 130, r"stopped; the same command goes on.*"),
        (CheckpointError("bad"), 1, r"error: tests/test_endings\.py:\d+: orbax's Check.*: bad"),
        (KeyError("w"), 1, r"error: .*fault of the program: KeyError in tests/test_endings\.py:.*"),
        (AssertionError(), 1, r"error: .*fault of the program: AssertionError.*--traceback.*"),
        (RecursionError("deep"), 1, r"error: .*fault of the program: RecursionError.*"),
    ],
)
def test_every_error_has_a_line_and_a_code(error: BaseException, code: int, pattern: str) -> None:
    ending = endings.ending(raised(error), "train")
    assert ending.code == code
    assert re.fullmatch(pattern, ending.line), ending.line


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 824 bytes."), "824 bytes"),
        (MemoryError("Unable to allocate 8.00 TiB for an array with shape (1,)"), "8.00 TiB"),
        (MemoryError("std::bad_alloc"), ""),
        (OSError(12, "Cannot allocate memory"), ""),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(error: BaseException, asked: str) -> None:
    line, code = endings.ending(raised(error), "train")
    assert code == 1
    assert asked in line
    assert re.search(r"out of memory: .*GiB.*training\.batch_size.*accumulation.*remat", line), line
    assert "control.batch_size" in endings.ending(raised(error), "control").line


def test_numpys_own_lack_of_memory_is_one() -> None:
    with pytest.raises(MemoryError) as lack:
        np.empty(1 << 60, np.uint8)
    assert "1.00 EiB were asked for" in endings.ending(lack.value, "sample").line


def test_a_full_disk_names_the_file(tmp_path: pathlib.Path) -> None:
    def write() -> None:
        with files.whole(tmp_path / "results.json"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"results\.json") as full:
        write()
    assert "results.json" in endings.ending(full.value).line
