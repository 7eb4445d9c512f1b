"""LMDB environments: LSUN's layout, and what is none."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from data import lmdb_file
from tests import golden_cases
from tests.official_files import write_lmdb as write


@pytest.mark.parametrize(
    "folder", golden_cases.folders("data/*_lmdb", "data.mdb"), ids=lambda path: path.stem
)
def test_pictures_of_lsun_are_those_of_the_library(folder, tmp_path):
    golden = golden_cases.load(folder.with_name(f"{folder.name}_expected.npz"))
    entries = lmdb_file.LmdbFile(folder, tmp_path)
    for row in range(len(entries)):
        picture = np.asarray(Image.open(io.BytesIO(entries[row])).convert("RGB"))
        np.testing.assert_array_equal(picture, golden[f"{row}/rgb"])


def test_entries_are_in_the_order_of_their_keys_and_the_index_is_kept(tmp_path, monkeypatch):
    folder = write(tmp_path / "a_lmdb", {b"22": b"two", b"11": b"one", b"33": b"x" * 9000})
    entries = lmdb_file.LmdbFile(folder, tmp_path / "index")
    assert [entries[row] for row in range(3)] == [b"one", b"two", b"x" * 9000]
    del entries
    monkeypatch.setattr(lmdb_file.LmdbFile, "_list_keys", None)
    again = lmdb_file.LmdbFile(folder, tmp_path / "index")
    assert again[1] == b"two"
    assert isinstance(again.keys, np.memmap)


def test_another_file_at_the_same_place_has_another_index(tmp_path):
    folder = write(tmp_path / "a_lmdb", {b"11": b"one"})
    assert len(lmdb_file.LmdbFile(folder, tmp_path / "index")) == 1
    write(folder, {b"22": b"two"})
    assert len(lmdb_file.LmdbFile(folder, tmp_path / "index")) == 2


def test_what_is_no_lmdb_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no data.mdb"):
        lmdb_file.LmdbFile(tmp_path, tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"no LMDB at all" * 1000)
    with pytest.raises(ValueError, match="is no LMDB, or is damaged"):
        lmdb_file.LmdbFile(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="has no entries"):
        lmdb_file.LmdbFile(write(tmp_path / "empty_lmdb", {}), tmp_path)
    odd = write(tmp_path / "odd_lmdb", {b"1": b"", b"22": b""})
    with pytest.raises(ValueError, match="keys of different lengths"):
        lmdb_file.LmdbFile(odd, tmp_path)


def test_two_may_read_one_environment_at_once(tmp_path):
    folder = write(tmp_path / "a_lmdb", {b"11": b"one", b"22": b"two"})
    first = lmdb_file.LmdbFile(folder, tmp_path / "index")
    second = lmdb_file.LmdbFile(folder, tmp_path / "index")
    del first
    assert second[1] == b"two"


@pytest.mark.parametrize("share", [0.9, 0.5, 0.03])
def test_a_file_that_is_cut_off_is_refused(share, tmp_path):
    """To read on past its end would end the process by a signal."""
    pairs = {b"%040d" % i: bytes(3000) for i in range(100)}
    folder = write(tmp_path / "a_lmdb", pairs)
    data = folder / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"data\.mdb is cut off: it has \d+ bytes"):
        lmdb_file.LmdbFile(folder, tmp_path / "index")


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path):
    folder = write(tmp_path / "a_lmdb", {b"%040d" % i: bytes(3000) for i in range(100)})
    file = lmdb_file.LmdbFile(folder, tmp_path / "index")
    assert file[99] == bytes(3000)
    os.truncate(folder / "data.mdb", 20_000)
    with pytest.raises(ValueError, match=r"data\.mdb was cut off while it was read: it had \d+ by"):
        file[99]


@pytest.mark.parametrize("content", [b"", b"no index", b"\x93NUMPY"])
def test_a_damaged_index_is_made_anew(content, tmp_path):
    folder = write(tmp_path / "a_lmdb", {b"11": b"one"})
    lmdb_file.LmdbFile(folder, tmp_path / "index")
    (index,) = (tmp_path / "index").iterdir()
    index.write_bytes(content)
    assert lmdb_file.LmdbFile(folder, tmp_path / "index")[0] == b"one"
