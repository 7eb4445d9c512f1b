"""A file at random; one that is cut off meanwhile is an error in one line, and no signal."""

import os

import pytest

from data.random_access import RandomAccess


def test_bytes_are_those_of_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)))
    file = RandomAccess(path)
    content = bytes(range(200))
    assert len(file) == 200
    for span in (slice(0, 10), slice(190, 300), slice(None), slice(7, 7), slice(9, 3)):
        assert file[span] == content[span]


def test_short_reads_are_put_together(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)))
    file, pread = RandomAccess(path), os.pread
    monkeypatch.setattr(os, "pread", lambda number, count, at: pread(number, min(count, 7), at))
    assert file[3:50] == bytes(range(3, 50))


def test_a_file_that_became_shorter_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(200))
    file = RandomAccess(path)
    os.truncate(path, 120)
    assert file[:100] == bytes(100)
    with pytest.raises(ValueError, match=r"a was cut off while .*: it had 200 bytes, and has 120$"):
        file[100:130]


def test_a_file_that_is_replaced_is_read_as_it_was(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    file = RandomAccess(path)
    (tmp_path / "b").write_bytes(b"n")
    os.replace(tmp_path / "b", path)
    assert file[:] == b"old"
