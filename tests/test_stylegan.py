"""CelebA-HQ and FFHQ: the pictures that the official pipeline gives, and what is refused."""

import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

import data
from tests import golden_cases
from tests.official_files import write_records as write
from tests.test_tfrecords import stylegan_files
from tests.test_trees import packed


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))


def folder_with(path: pathlib.Path, prefix: str, tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / f"{prefix}-r05.tfrecords").symlink_to(path.resolve())
    return tmp_path


@pytest.mark.parametrize("name", ["ffhq", "celebahq"])
@pytest.mark.parametrize("path", stylegan_files(), ids=lambda path: path.stem)
@pytest.mark.parametrize("ram_limit", [1 << 30, 0])
def test_images_are_the_official_ones_in_the_official_order(name, path, ram_limit, tmp_path):
    golden = golden_cases.load(path.with_name(f"{path.stem}_expected.npz"))
    folder = folder_with(path, name, tmp_path)
    train, test = (
        data.load(name, split, folder, 32, 3, ram_limit=ram_limit) for split in ("train", "test")
    )
    assert train.in_memory == bool(ram_limit)
    for dataset in (train, test):
        images, labels = dataset.take(np.arange(len(dataset)))
        np.testing.assert_array_equal(images, golden["images_nhwc"])
        assert not labels.any()
    assert train.summary.endswith("6 images, for training and testing alike")


def test_the_order_is_part_of_the_fingerprint(tmp_path):
    path = stylegan_files()[0]
    one = data.load("ffhq", "train", folder_with(path, "ffhq", tmp_path), 32, 3, ram_limit=0)
    other = tmp_path / "other"
    other.mkdir()
    write(other / "ffhq-r05.tfrecords", *[one.images.records.records[row] for row in range(5)])
    two = data.load("ffhq", "train", other, 32, 3, ram_limit=0)
    assert one.fingerprint.rpartition("/")[2] != two.fingerprint.rpartition("/")[2]


def test_the_file_itself_may_be_named(tmp_path):
    path = stylegan_files()[0]
    expected = data.load("ffhq", "train", folder_with(path, "ffhq", tmp_path), 32, 3)
    for place in (tmp_path / "ffhq-r05.tfrecords", path):
        np.testing.assert_array_equal(
            data.load("ffhq", "test", place, 32, 3).images, expected.images
        )


def test_an_absent_file_is_named_with_where_it_is_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*ffhq-r08\.tfrecords; make it .*--config\."):
        data.load("ffhq", "train", tmp_path, 256, 3)


@pytest.mark.parametrize(("size", "channels"), [(48, 3), (32, 1), (None, 3), (2, 3)])
def test_sizes_of_which_there_is_no_file_are_refused(size, channels, tmp_path):
    with pytest.raises(ValueError, match=r"data set ffhq: data\.image_size must be a power of two"):
        data.load("ffhq", "train", tmp_path, size, channels)


def test_a_record_of_another_size_or_kind_is_named(tmp_path):
    path = stylegan_files()[0]
    (tmp_path / "ffhq-r06.tfrecords").symlink_to(path.resolve())
    with pytest.raises(
        ValueError, match=r"record 0 has the shape \(32, 32, 3\), not \(64, 64, 3\)"
    ):
        data.load("ffhq", "train", tmp_path, 64, 3)
    write(tmp_path / "ffhq-r07.tfrecords", b"none")
    with pytest.raises(ValueError, match=r"ffhq-r07\.tfrecords: record 0: no tf\.train\.Example"):
        data.load("ffhq", "train", tmp_path, 128, 3)


@pytest.mark.parametrize("kind", ["zip", "named zip", "folder"])
def test_pictures_of_the_tools_zip_files_are_those_of_the_records(kind, tmp_path):
    path = stylegan_files()[0]
    records = data.load("ffhq", "train", folder_with(path, "ffhq", tmp_path), 32, 3)
    folder = tmp_path / "images"
    for i, image in enumerate(records.images):  # as StyleGAN2's and EDM's tools name them
        file = folder / f"{i // 4:05}" / f"img{i:08}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (folder / "dataset.json").write_text('{"labels": null}')
    place = folder
    if "zip" in kind:
        place = packed(folder, method=zipfile.ZIP_STORED)
    if kind == "named zip":
        (tmp_path / "place").mkdir()
        place.rename(tmp_path / "place" / "ffhq-32x32.zip")
        place = tmp_path / "place"
    for split in ("train", "test"):
        dataset = data.load("ffhq", split, place, 32, 3)
        np.testing.assert_array_equal(dataset.images, records.images)
        assert not dataset.labels.any()
    with pytest.raises(ValueError, match=r"\.png has 32x32 pixels, not 64x64"):
        data.load("ffhq", "train", folder, 64, 3)


def test_a_zip_file_without_images_is_no_set(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(FileNotFoundError, match=r"no .*ffhq-r05\.tfrecords; make it"):
        data.load("ffhq", "train", packed(tmp_path / "images"), 32, 3)
