"""Decoded images on disk: equal to fresh ones, whatever happened to either."""

import os
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

import data
from data import decoded
from data.folder import ImageFolder
from data.images import File
from data.pictures import Request


def picture(path: pathlib.Path, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(levels).save(path)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Twenty images, and what opens them."""
    (tmp_path / "set").mkdir()
    for i in range(20):
        picture(tmp_path / "set" / f"{i:02}.png", i)
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    monkeypatch.setattr(decoded, "SMALLEST", 0)
    return Opener(tmp_path / "set", monkeypatch)


class Opener:
    """Opens the folder anew; `reads` are the rows that were decoded since."""

    def __init__(self, folder: pathlib.Path, monkeypatch):
        self.folder = folder
        self.reads: list[int] = []
        record = ImageFolder.record

        def counted(pictures: ImageFolder, row: int) -> File:
            self.reads.append(row)
            return record(pictures, row)

        monkeypatch.setattr(ImageFolder, "record", counted)

    def __call__(self, **options) -> data.Dataset:
        self.reads.clear()
        options = {"ram_limit": 0, "cache": True} | options
        return data.load("folder", "train", self.folder, 4, 3, **options)


def everything(dataset: data.Dataset) -> np.ndarray:
    return dataset.take(np.arange(len(dataset)))[0]


def test_a_set_is_decoded_once_for_all_processes_and_in_any_order(opened):
    fresh = everything(opened(cache=False))
    first = opened()
    rows = np.array([3, 3, 17, 0])
    images, labels = first.take(rows)
    np.testing.assert_array_equal(images, fresh[rows])
    np.testing.assert_array_equal(labels, first.labels[rows])
    assert sorted(opened.reads) == [0, 3, 17]
    np.testing.assert_array_equal(everything(first), fresh)
    assert len(opened.reads) == 18
    for ram_limit in (0, 1 << 30):
        again = opened(ram_limit=ram_limit)
        assert again.in_memory == bool(ram_limit)
        np.testing.assert_array_equal(everything(again), fresh)
        assert opened.reads == []
    assert first.fingerprint == opened(cache=False).fingerprint


def test_pictures_that_changed_are_decoded_again(opened):
    before = opened()
    everything(before)
    names = before.images.records.pictures.names
    picture(opened.folder / names[5], 99)
    os.utime(opened.folder / names[7], ns=(1, 1))
    after = opened()
    images = everything(after)
    assert sorted(opened.reads) == [5, 7]
    np.testing.assert_array_equal(images, everything(opened(cache=False)))


def test_a_damaged_or_half_written_image_is_decoded_again(opened, tmp_path):
    fresh = everything(opened())
    (folder,) = (tmp_path / "prepared" / "decoded").iterdir()
    with (folder / "pixels").open("r+b") as file:
        file.seek(2 * 48)
        file.write(b"\xff\x00\xff")
    with (folder / "checksums").open("r+b") as file:
        file.seek(4 * 11)
        file.write(bytes(4))
    np.testing.assert_array_equal(everything(opened()), fresh)
    assert sorted(opened.reads) == [2, 11]
    for file in folder.iterdir():
        os.truncate(file, file.stat().st_size // 2)
    np.testing.assert_array_equal(everything(opened()), fresh)
    assert sorted(opened.reads) == list(range(9, 18))


def test_two_that_write_at_once_agree(opened):
    one, two = opened(), opened()
    np.testing.assert_array_equal(one.take(np.arange(10))[0], two.take(np.arange(10))[0])
    np.testing.assert_array_equal(everything(one), everything(two))


@pytest.mark.parametrize("where", ["pixels", "checksums"])
def test_a_disk_that_fills_stops_no_run(opened, monkeypatch, caplog, where):
    fresh = everything(opened(cache=False))
    dataset = opened()
    files = {
        "pixels": dataset.images.records._pixels,
        "checksums": dataset.images.records._checksums,
    }
    pwrite = os.pwrite

    def full(file: int, content: bytes, offset: int) -> int:
        if file == files[where] and offset >= len(content):
            raise OSError(28, "No space left on device")
        return pwrite(file, content, offset)

    monkeypatch.setattr(decoded, "os", types.SimpleNamespace(**vars(os) | {"pwrite": full}))
    for _ in range(2):
        np.testing.assert_array_equal(everything(dataset), fresh)
    assert caplog.text.count("No space left on device") == 1


def test_without_room_nothing_is_kept(opened, monkeypatch, caplog, tmp_path):
    usage = types.SimpleNamespace(free=decoded.RESERVE)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda folder: usage)
    everything(opened())
    everything(opened())
    assert len(opened.reads) == 18
    assert "decoded images are not kept" in caplog.text
    assert list((tmp_path / "prepared" / "decoded").iterdir()) == []


def test_small_sets_and_pixels_as_they_are_need_no_copy(opened, monkeypatch, tmp_path):
    request = Request(opened.folder, "train", 4, 3)
    pictures = ImageFolder(request)
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "SMALLEST", 0)
        patch.setattr(pictures, "decode", None)
        assert decoded.cached(pictures, "train", tmp_path) is pictures
    monkeypatch.undo()
    assert decoded.cached(pictures, "train", tmp_path) is pictures  # of 48 bytes each
