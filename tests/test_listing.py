"""Lists of large folders that are kept: equal to new ones, and made anew when a folder changes."""

import collections
import json
import os
import pathlib
import shutil
import zipfile
import zlib

import pytest

import data
from data import listing, trees, zip_file
from data.folder import ImageFolder
from data.listing import Names
from data.pictures import Request
from tests.test_trees import packed


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Files whose names alone matter, and lists that are kept of few and of what changed now."""
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    monkeypatch.setattr(listing, "MANY", 0)
    monkeypatch.setattr(listing, "RECENT", 0.0)
    for i in range(40):
        write(tmp_path / "photos" / f"café{i % 3}" / f"{i:02}.png", i)
    (tmp_path / "photos" / "notes.txt").write_text("none")
    return tmp_path / "photos"


def write(path: pathlib.Path, size: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def opened(place, split="train") -> data.Dataset:
    return data.load("folder", split, place, 8, 3, ram_limit=0)


def kept(place) -> ImageFolder | None:
    """The data set by what is kept alone; None: it is not, or not any more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFolder, "_listing", lambda self: None)
        patch.setattr(os, "scandir", None)
        try:
            return ImageFolder(Request(place, "train", 8, 3))
        except AttributeError:
            return None


def names(place, split: str) -> list[str]:
    return [*opened(place, split).images.records.names]


def facts(dataset: data.Dataset):
    records = dataset.images.records
    return (
        [*records.names], records.labels.tolist(), dataset.num_classes, dataset.summary,
        dataset.fingerprint,
    )  # fmt: skip


def anew(place, tmp_path):
    """The facts of both splits of a folder of which nothing is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORE_SDE_DATA", str(tmp_path / "none"))
        patch.setattr(listing, "MANY", 10**9)
        return [facts(opened(place, split)) for split in ("train", "test")]


def test_names_are_those_that_were_given():
    texts = ["a/b.png", "", "caf\u00e9/\u4e2d.png", "\udcff.png", "line\nbreak", "x" * 300]
    names = Names.of(texts)
    assert ([*names], len(names), names[-1], names[0]) == (texts, 6, texts[-1], texts[0])
    with pytest.raises(IndexError):
        names[6]
    assert [*Names.of([])] == []


@pytest.mark.parametrize("splits", [False, True])
def test_a_second_opening_reads_no_folder_and_asks_for_no_file(
    photos, tmp_path, monkeypatch, splits
):
    if splits:
        shutil.copytree(photos, photos / "train")
        shutil.copytree(photos / "train", photos / "Val")
    expected = anew(photos, tmp_path)
    assert [facts(opened(photos, split)) for split in ("train", "test")] == expected
    monkeypatch.setattr(trees, "_entries", None)
    monkeypatch.setattr(trees.FolderTree, "size", None)
    for place in (photos, photos / ".." / "photos"):
        again = [facts(opened(place, split)) for split in ("train", "test")]
        assert [(*one[:3], one[4]) for one in again] == [(*one[:3], one[4]) for one in expected]
    assert not any((tmp_path / "prepared").rglob("*.part"))


@pytest.mark.parametrize("below", ["", "photos/"])
def test_a_second_opening_of_a_zip_file_goes_through_no_list_of_it(
    photos, tmp_path, monkeypatch, below
):
    archive = packed(photos, below)
    expected = [facts(opened(archive, split)) for split in ("train", "test")]
    assert [(one[0], one[1], one[2]) for one in anew(photos, tmp_path)] == [
        (one[0], one[1], one[2]) for one in expected
    ]
    with monkeypatch.context() as patch:
        patch.setattr(zip_file.zipfile, "ZipFile", None)
        patch.setattr(trees.ZipTree, "_names", None)
        patch.setattr(trees.ZipTree, "size", None)
        assert [facts(opened(archive, split)) for split in ("train", "test")] == expected
        content = opened(archive).images.records.record(3)
        assert content.data == bytes(int(expected[0][0][3][-6:-4]))
    write(photos / "café1" / "new.png")
    assert facts(opened(packed(photos, below)))[0] == anew(photos, tmp_path)[0][0]


def test_of_two_members_of_one_name_the_last_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("b/1.png", "b/./1.png", "b/2.png"):
            archive.writestr(name, name)
    tree = trees.ZipTree(tmp_path / "a.zip")
    assert tree.images("", collections.Counter()) == ["b/1.png", "b/2.png"]
    assert tree.file("b/1.png").data == b"b/./1.png"
    assert "b/2.png" in tree
    assert "2.png" not in tree


def test_the_checksum_is_that_of_the_list_as_one_text(photos):
    records = opened(photos).images.records
    rows = [
        (name, int(name[-6:-4]), int(label))
        for name, label in zip(records.names, records.labels, strict=True)
    ]
    assert records.checksum == zlib.crc32(f"{((8, 8, 3), rows)}".encode())


CHANGES = {
    "added": lambda root: write(root / "café1" / "new.png"),
    "removed": lambda root: (root / "café1" / "01.png").unlink(),
    "renamed": lambda root: (root / "café1" / "01.png").rename(root / "café1" / "x.png"),
    "moved": lambda root: (root / "café1" / "01.png").rename(root / "café2" / "01.png"),
    "other file": lambda root: write(root / "café2" / "notes.txt"),
    "new folder": lambda root: write(root / "birds" / "deep" / "1.png"),
    "folder renamed": lambda root: (root / "café1").rename(root / "birds"),
    "folder removed": lambda root: shutil.rmtree(root / "café1"),
    "link": lambda root: (root / "more").symlink_to(root.parent / "real", True),
    "labels": lambda root: (root / "dataset.json").write_text(json.dumps({"labels": None})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_folder_makes_a_new_list(photos, tmp_path, change):
    write(tmp_path / "real" / "linked.png")
    opened(photos)
    assert kept(photos) is not None
    CHANGES[change](photos)
    assert kept(photos) is None
    assert [facts(opened(photos, split)) for split in ("train", "test")] == anew(photos, tmp_path)
    assert kept(photos) is not None
    (place,) = (tmp_path / "prepared" / "index").iterdir()
    assert len([path for path in place.iterdir() if path.is_dir()]) == 1  # the older one is gone


def test_what_changes_in_a_linked_folder_or_in_the_labels_makes_a_new_list(photos, tmp_path):
    write(tmp_path / "real" / "linked.png")
    (photos / "more").symlink_to(tmp_path / "real", True)
    (photos / "dataset.json").write_text('{"labels": null}')
    opened(photos)
    assert kept(photos) is not None
    write(tmp_path / "real" / "second.png")
    assert kept(photos) is None
    opened(photos)
    (photos / "dataset.json").write_text('{"other": []}')
    assert kept(photos) is None
    assert opened(photos).num_classes == 4


def test_a_list_with_a_broken_link_is_kept_until_there_is_something_to_see(photos, tmp_path):
    (photos / "gone.png").symlink_to(tmp_path / "nowhere")
    opened(photos)
    records = kept(photos)
    assert records is not None
    assert "gone.png" not in [*records.names]
    write(tmp_path / "nowhere")
    assert kept(photos) is None
    assert "gone.png" in [name for split in ("train", "test") for name in names(photos, split)]


@pytest.mark.parametrize("name", ["lsun_church", "lsun_church/church_outdoor_train", "ffhq"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pictures_of_published_sets_are_not_listed_again(photos, tmp_path, monkeypatch, name, kind):
    name, _, below = name.partition("/")
    place = photos.rename(tmp_path / below) if below else photos
    if kind == "zip":
        place = packed(place)

    def first():
        folder = place.parent if below else place
        dataset = data.load(name, "train", folder, 8, 3, ram_limit=0)
        records = dataset.images.records
        return len(dataset), dataset.fingerprint, [records.stamp(row) for row in range(3)]

    expected = first()
    assert expected[0] >= 36
    with monkeypatch.context() as patch:
        patch.setattr(trees, "_entries", None)
        patch.setattr(trees.ZipTree, "_names", None)
        for tree in (trees.FolderTree, trees.ZipTree):
            patch.setattr(tree, "size", None)
        assert first() == expected
    with monkeypatch.context() as patch:
        patch.setattr(listing, "MANY", 10**9)
        patch.setenv("SCORE_SDE_DATA", str(tmp_path / "none"))
        assert first() == expected
    if kind == "folder":
        write(place / "café0" / "another.png")
        assert first()[:2] != expected[:2]


def test_little_or_what_may_change_unseen_is_not_kept(photos, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(listing, "RECENT", 60.0)
        opened(photos)
    assert kept(photos) is None
    with monkeypatch.context() as patch:
        patch.setattr(listing, "MANY", 41)
        opened(photos)
    assert kept(photos) is None
    opened(photos)
    assert kept(photos) is not None


@pytest.mark.parametrize(
    "name", ["folders.npy", "train_content.npy", "test_labels.npy", "words.npy"]
)
@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_a_damaged_list_is_made_again(photos, tmp_path, name, damage):
    opened(photos)
    (path,) = (tmp_path / "prepared" / "index").rglob(name)
    path.write_bytes(path.read_bytes()[:40]) if damage == "cut" else path.unlink()
    assert kept(photos) is None
    assert [facts(opened(photos, split)) for split in ("train", "test")] == anew(photos, tmp_path)


def test_a_file_that_is_rewritten_has_another_stamp(photos):
    opened(photos)
    one = kept(photos)
    assert one is not None
    before = one.stamp(0)
    write(photos / one.names[0], 99)
    two = kept(photos)
    assert two is not None
    assert two.names[0] == one.names[0]
    assert two.stamp(0) != before
