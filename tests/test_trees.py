"""Zip files of images: read as the folder that was packed, and what is refused."""

import json
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

import data
from data.pictures import Fit


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))


def picture(path: pathlib.Path, seed: int, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(levels).save(path, **options)


def packed(folder: pathlib.Path, below: str = "", method=zipfile.ZIP_DEFLATED) -> pathlib.Path:
    """A zip file of everything in `folder`, beside it."""
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, below + path.relative_to(folder).as_posix())
    return target


def load(place, split="train", size=6, channels=3, **options):
    return data.load("folder", split, place, size, channels, **options)


def assert_equal(one: data.Dataset, two: data.Dataset) -> None:
    for left, right in zip(*(part.take(np.arange(len(part))) for part in (one, two)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert one.num_classes == two.num_classes
    assert one.fingerprint == two.fingerprint
    assert one.summary.partition(":")[2] == two.summary.partition(":")[2]


@pytest.mark.parametrize("ram_limit", [1 << 30, 0])
@pytest.mark.parametrize("below", ["", "photos/"])
@pytest.mark.parametrize("names", ["{k}/{i}.png", "{split}/{k}/{i:03}.jpg", "a/{k}.d/{i}.webp"])
def test_a_zip_file_is_the_folder_in_it(tmp_path, names, below, ram_limit):
    folder = tmp_path / "photos"
    for i in range(20):
        name = names.format(i=i, k="café" if i % 2 else "dogs", split="val" if i < 6 else "train")
        picture(folder / name, i)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("none")
    archive = packed(folder, below)
    for split in ("train", "test"):
        options = {"ram_limit": ram_limit}
        assert_equal(load(folder, split, **options), load(archive, split, **options))


def test_a_dataset_json_has_the_labels_of_both(tmp_path):
    folder = tmp_path / "set"
    labels = []
    for i in range(20):
        picture(folder / f"0000{i % 2}" / f"img{i:08}.png", i)
        labels.append([f"0000{i % 2}/img{i:08}.png", [0, 3, 10][i % 3]])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    train, test = load(packed(folder)), load(folder, "test")
    assert_equal(train, load(folder))
    assert_equal(test, load(folder.with_suffix(".zip"), "test"))
    assert train.num_classes == 3
    assert sorted([*train.labels, *test.labels]) == sorted(i % 3 for i in range(20))
    assert train.summary.endswith("labels of dataset.json")
    (folder / "dataset.json").write_text(json.dumps({"labels": None}))
    assert load(folder).num_classes == 1
    (folder / "dataset.json").write_text(json.dumps({"other": None}))
    assert load(folder).num_classes == 2
    (folder / "dataset.json").write_text(json.dumps({"labels": labels[1:]}))
    with pytest.raises(ValueError, match=r"dataset\.json has no label for 0+/img0+\.png$"):
        load(folder)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels[2:]}))
    with pytest.raises(ValueError, match=r"no label for 0.*\.png, nor for 1 other$"):
        load(folder)
    (folder / "dataset.json").write_text(json.dumps({"labels": [*labels, [labels[3][0], 7]]}))
    with pytest.raises(
        ValueError, match=r"dataset\.json has two labels for 00001/img00000003\.png"
    ):
        load(folder)
    (folder / "dataset.json").write_text(json.dumps({"labels": [["a.png", -1]]}))
    with pytest.raises(ValueError, match=r"the label of a.png is -1; labels are whole numbers"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b'{"labels": [["a.png", 1]', b"\xff\xfe\0", b"[" * 9999])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_dataset_json_that_is_no_json_is_refused(tmp_path, content, kind):
    folder = tmp_path / "set"
    for i in range(2):
        picture(folder / f"{i}.png", i)
    (folder / "dataset.json").write_bytes(content)
    place = folder if kind == "folder" else packed(folder)
    with pytest.raises(ValueError, match=r"dataset\.json, which would state labels, is no JSON \("):
        load(place)


def test_zip_files_without_images_or_files_of_other_kinds_are_refused(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"set\.zip has no images for the split 'train': it holds"):
        load(packed(folder))
    with pytest.raises(FileNotFoundError, match=r"there is no .*none\.zip"):
        load(tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"notes\.txt is neither a folder nor a zip file"):
        load(folder / "notes.txt")


def test_a_picture_of_a_zip_file_that_cannot_be_read_is_named(tmp_path):
    for i in range(4):
        picture(tmp_path / "set" / f"{i}.png", i)
        (tmp_path / "set" / f"{i + 4}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"set\.zip: \d\.png cannot be read: it is no image"):
        load(packed(tmp_path / "set"))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_crop_and_resampling_are_as_asked(tmp_path, kind):
    for i in range(4):
        picture(tmp_path / "set" / f"{i}.png", i)
    place = tmp_path / "set" if kind == "folder" else packed(tmp_path / "set")
    usual = load(place, size=3)
    crops = load(place, size=3, fit=Fit(crop=3))
    row = load(place, size=3, fit=Fit(crop=3), ram_limit=0).images.records
    picture_of_row = np.asarray(Image.open(tmp_path / "set" / row.names[0]))
    np.testing.assert_array_equal(crops.images[0], picture_of_row[4:7, 3:6])
    others = [load(place, size=3, fit=Fit(method=method)) for method in ("bicubic", "bilinear")]
    for method, other in zip((Image.Resampling.BICUBIC, Image.Resampling.BILINEAR), others,
                             strict=True):  # fmt: skip
        square = Image.fromarray(picture_of_row).resize((3, 3), method, (0, 1.5, 9, 10.5))
        np.testing.assert_array_equal(other.images[0], np.asarray(square))
    assert len({usual.fingerprint, crops.fingerprint, *(o.fingerprint for o in others)}) == 4
    paths = {load(place, size=3, fit=fit, ram_limit=0).images.records.source
             for fit in (Fit(), Fit(crop=3), Fit(method="bicubic"))}  # fmt: skip
    assert len(paths) == 3
    with pytest.raises(ValueError, match=r"has 12x9 pixels, fewer than data\.crop=10"):
        load(place, fit=Fit(crop=10))
    for unread in (place, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"^unknown data\.resize 'nearest'; known: bicubic"):
            load(unread, fit=Fit(method="nearest"))


def test_sets_with_a_size_of_their_own_are_not_cropped():
    with pytest.raises(ValueError, match=r"data set digits has its own crop and size; data.crop=3"):
        data.load("digits", "train", fit=Fit(crop=3))


def test_only_sets_of_sets_have_a_colon():
    for name in ("digits:8", "digits:"):
        with pytest.raises(ValueError, match=rf"dataset='{name}': digits is followed by nothing"):
            data.load(name, "train")
    for name in ("tfds:", "hf:", "hf"):
        with pytest.raises(ValueError, match=rf"dataset='{name}': .* is followed by a colon and"):
            data.load(name, "train")


@pytest.mark.parametrize("labels", [5, "abc", {"a.png": 1}, [["a.png"]], [{"a": 1}]])
def test_labels_of_another_form_are_refused(labels, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=r"dataset\.json: 'labels' is no list of pairs"):
        data.load("folder", "train", tmp_path, 4, 3)
