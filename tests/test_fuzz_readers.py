"""No file of a stranger's ends a reader otherwise than by a value, or by one line."""

from __future__ import annotations

import random
import sys

import pytest

from tests import fuzz_readers


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_inputs_that_once_were_faults(reader: str) -> None:
    """All that fuzzing has ever caught, and what a person thought of."""
    faults = {data: fuzz_readers.fault(reader, data) for data in fuzz_readers.seeds(reader)}
    assert not {what: data[:200] for data, what in faults.items() if what}


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_random_changes(reader: str) -> None:
    rng = random.Random(0)
    seeds = fuzz_readers.seeds(reader)
    for _ in range(200):
        data = fuzz_readers.mutated(rng.choice(seeds), rng)
        assert not fuzz_readers.fault(reader, data), data[:500]


def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would show nothing."""

    def read(data: bytes, folder: object) -> None:
        if data == b"lines":
            raise ValueError("one\ntwo")
        if data == b"line":
            raise ValueError("one")
        while data == b"hang":
            pass
        if data.startswith(b"k"):
            dict[bytes, int]()[data]

    monkeypatch.setitem(fuzz_readers.READERS, "odd", fuzz_readers.Reader(read, list))
    monkeypatch.setattr(fuzz_readers, "SECONDS", 0.05)
    ends = {name: fuzz_readers.fault("odd", name) for name in (b"", b"line", b"lines", b"hang")}
    assert list(ends.values()) == ["", "", "ValueError of several lines", "hang"]
    assert fuzz_readers.fault("odd", b"kxyz") == "KeyError at test_fuzz_readers.py:read"
    assert fuzz_readers.shortened("odd", b"kxyz") == b"k"


def test_without_atheris(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["fuzz_readers", "--reader=pth"])
    with pytest.raises(SystemExit, match=r"needs atheris: pip install -e '\.\[fuzz\]'"):
        fuzz_readers.main()
