"""Zip files read at random: equal to what is unpacked, and which members are refused."""

import os
import stat
import struct
import zipfile
from concurrent import futures

import numpy as np
import pytest

from data.zip_file import ZipFile

CONTENTS = {"a.png": bytes(range(256)) * 9, "b/c.png": b"", "d.png": os.urandom(999)}


def write(path, contents=CONTENTS, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def patched(path, before: bytes, after: bytes, count: int = -1):
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after, count))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_by_many_threads(tmp_path, method):
    archive = ZipFile(write(tmp_path / "a.zip", method=method), tmp_path / "index")
    assert dict(zip(archive.names, map(archive.read, range(3)), strict=True)) == CONTENTS
    rows = np.random.default_rng(0).integers(0, 3, 400).tolist()
    with futures.ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(archive.read, rows))
    assert contents == [CONTENTS[archive.names[row]] for row in rows]
    again = ZipFile(tmp_path / "a.zip", tmp_path / "index")  # by the index on disk
    assert ([*again.names], again.read(2)) == ([*archive.names], archive.read(2))


def test_folders_and_links_are_no_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("folder")
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a.png", b"one")
    assert list(ZipFile(tmp_path / "a.zip", tmp_path / "index").names) == ["a.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no zip file"),
        (b"\x89PNG no zip file at all", "is no zip file"),
        (None, "is no zip file, or is damaged or cut off"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = write(tmp_path / "a.zip")
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(ValueError, match=message) as caught:
        ZipFile(path, tmp_path / "index")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ZipFile(tmp_path / "none.zip", tmp_path / "index")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_is_cut_while_it_is_read_is_refused(tmp_path, method):
    """The pages of a mapped file would be gone, and the process with them."""
    noise = np.random.default_rng(0).bytes(100_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("1", noise)
        file.writestr("2", noise)
    archive = ZipFile(tmp_path / "a.zip", tmp_path / "index")
    assert archive.read(0) == noise
    os.truncate(tmp_path / "a.zip", 60_000)
    for row in (0, 1):
        with pytest.raises(ValueError, match=r"a\.zip was cut off while it was read: it had \d+ b"):
            archive.read(row)


def test_two_members_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", b"two")
    with pytest.raises(ValueError, match="two members of one name"):
        ZipFile(tmp_path / "a.zip", tmp_path / "index")


def entry_of(path, name: bytes) -> int:
    """Where the entry of a member in the archive's directory begins."""
    return path.read_bytes().rindex(name) - 46


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (8, 1, r"a\.zip: a\.png is encrypted"),
        (10, zipfile.ZIP_LZMA, r"a\.zip: a\.png is compressed by the method 14"),
        (16, 7, r"a\.zip: a\.png is damaged: it does not match its checksum"),
        (24, 2**31, r"a\.zip: a\.png declares 2147483648 bytes, which \d+ cannot hold"),
        (24, 10, r"a\.zip: a\.png is damaged: it has another size than the 10 bytes"),
        (42, 2**31, r"a\.zip: a\.png is cut off"),
        (42, 5, r"a\.zip: a\.png is not where the archive's directory says"),
    ],
)
def test_members_that_are_not_as_declared_are_refused_by_name(tmp_path, field, value, message):
    path = write(tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    at = entry_of(path, b"a.png") + field
    form = "<H" if field in (8, 10) else "<I"
    struct.pack_into(form, content, at, value)
    path.write_bytes(content)
    archive = ZipFile(path, tmp_path / "index")
    with pytest.raises(ValueError, match=message) as caught:
        archive.read(0)
    assert "\n" not in str(caught.value)
    assert archive.read(2) == CONTENTS["d.png"]


def test_a_bomb_is_not_unpacked(tmp_path):
    archive = ZipFile(write(tmp_path / "a.zip", {"a.png": bytes(10**6)}), tmp_path / "index")
    with pytest.raises(ValueError, match="declares 1000000 bytes, which are not read at once"):
        archive.read(0, largest=10**5)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    struct.pack_into("<I", content, entry_of(tmp_path / "a.zip", b"a.png") + 24, 1000)
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(ValueError, match="another size than the 1000 bytes declared"):
        ZipFile(tmp_path / "b.zip", tmp_path / "index").read(0)
