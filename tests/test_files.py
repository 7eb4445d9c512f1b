"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import socket

import numpy as np
import pytest

from runtime import errors, files


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "eval" / "results.json"
    value = {"frechet_distance": np.float32(1.5), "steps": np.arange(2), "seed": 0}
    files.write_json(path, value)
    assert json.loads(path.read_text()) == {"frechet_distance": 1.5, "steps": [0, 1], "seed": 0}
    value["self"] = value
    with pytest.raises(ValueError, match="Circular"):
        files.write_json(path, value)
    assert json.loads(path.read_text())["seed"] == 0
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_the_file(tmp_path):
    """Other files stay, and those that a live process of this machine, or another one, writes."""
    host, dead = socket.gethostname(), 2**22 + 1  # above the largest number of a process
    left = [tmp_path / f".results.{host}.{dead}.json", tmp_path / f".unet.{host}.{dead}"]
    left[0].write_text("{")
    left[1].mkdir()
    (left[1] / "config.json").write_text("{}")
    others = [
        tmp_path / f".results.{host}.{os.getppid()}.json",
        tmp_path / f".results.another.{dead}.json",
        tmp_path / f".others.{host}.{dead}.json",
    ]
    for path in others:
        path.write_text("{")
    files.write_json(tmp_path / "results.json", {})
    with files.whole(tmp_path / "unet") as folder:
        folder.mkdir()
    written = [tmp_path / "results.json", tmp_path / "unet"]
    assert sorted(tmp_path.iterdir()) == sorted([*others, *written])


def failure(path, make):
    with pytest.raises(OSError, match=": ") as failed, files.whole(path) as temporary:
        make(temporary)
    return errors.one_line(failed.value)


def test_what_cannot_be_written_is_named_by_its_own_name(tmp_path):
    """Not by the name that it has until it is whole; also where another path is to blame."""
    target = tmp_path / "export"
    absent = f"{target}: it cannot be written (No such file or directory)"
    assert failure(target, lambda path: (path / "config.json").write_text("{}")) == absent
    assert failure(target, lambda path: None) == absent
    other = f"{tmp_path}: this is a folder, and a file is needed"
    assert failure(target, lambda path: tmp_path.read_bytes()) == other
    (target / "x").mkdir(parents=True)
    refusal = f"{target}: it cannot be written (Is a directory)"
    assert failure(target, lambda path: path.write_text("")) == refusal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_a_read_only_disk_names_the_file(tmp_path, monkeypatch):
    """There even what is not there cannot be removed."""

    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(pathlib.Path, "unlink", read_only)
    line = f"{tmp_path / 'made_by.json'}: it cannot be written (Read-only file system)"
    assert failure(tmp_path / "made_by.json", lambda path: None) == line


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no JSON"),
        (b'{"step": ', "it is no JSON"),
        (b"\xff\xfe\x00", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[1]", "its JSON is no object, but a list"),
        (b"3", "its JSON is no object, but a int"),
    ],
)
def test_a_damaged_file_of_json_is_named_with_what_to_do(tmp_path, content, why):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as refusal:
        files.read_json(path, "remove it")
    text = str(refusal.value)
    assert text.startswith(f"{path} is damaged: ")
    assert text.endswith("; remove it")
    assert "\n" not in text
