"""CelebA: the images that the official pipeline gives, and what is refused."""

import pathlib

import numpy as np
import pytest

import data
from data import celeba, crops, decoded, transforms
from tests import golden_cases
from tests.test_lsun import encoded, noise
from tests.test_trees import packed

PICTURES = [noise(218, 178, i) for i in range(5)]


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def written(root: pathlib.Path, pictures=PICTURES, parts=(0, 1, 2, 0, 0)) -> pathlib.Path:
    """The pictures as the archive names them; PNG's levels are kept."""
    (root / celeba.FOLDER).mkdir(parents=True)
    names = [f"{i + 1:06}.jpg" for i in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        (root / celeba.FOLDER / name).write_bytes(encoded(picture, "PNG"))
    lines = [f"{name} {part}\n" for name, part in zip(names, parts, strict=True)]
    (root / celeba.PARTITION).write_text("".join(lines))
    return root


@pytest.mark.parametrize(
    "path", golden_cases.files("data", "celeba*.npz"), ids=lambda path: path.stem
)
def test_images_are_the_official_ones(path, tmp_path):
    golden = golden_cases.load(path)
    count = len(golden["input"])
    written(tmp_path, golden["input"], [0] * count)
    for name, expected in golden.items():
        if name.startswith("output"):
            dataset = data.load("celeba", "train", tmp_path, expected.shape[1], 3)
            images = dataset.take(np.arange(len(expected)))[0]
            np.testing.assert_allclose(images / 255, expected, rtol=1e-6)
            levels = np.clip(expected * 255, 0, 255).astype(np.uint8)  # the official evaluation
            np.testing.assert_array_equal(transforms.whole_levels(images, 256), levels)


@pytest.mark.parametrize("ram_limit", [1 << 30, 0])
@pytest.mark.parametrize("kind", ["folder", "zip", "the zip itself"])
def test_the_partition_has_the_splits(tmp_path, kind, ram_limit):
    root = written(tmp_path / "celeba")
    if kind != "folder":
        archive = packed(root / celeba.FOLDER, f"{celeba.FOLDER}/")
        (root / celeba.FOLDER).rename(tmp_path / "elsewhere")
        root = root if kind == "zip" else archive
    for split, rows in (("train", [0, 3, 4]), ("test", [1])):
        dataset = data.load("celeba", split, root, 16, 3, ram_limit=ram_limit)
        images, labels = dataset.take(np.arange(len(dataset)))
        assert images.dtype == np.float32
        assert labels.tolist() == [0] * len(rows)
        np.testing.assert_array_equal(images, [crops.face(PICTURES[row], 16) for row in rows])
    assert dataset.levels == 256


def test_decoded_images_are_kept_with_their_fractions(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "SMALLEST", 0)
    root = written(tmp_path / "celeba")
    expected = data.load("celeba", "train", root, 16, 3).images
    for _ in range(2):
        dataset = data.load("celeba", "train", root, 16, 3, ram_limit=0, cache=True)
        np.testing.assert_array_equal(dataset.take(np.arange(3))[0], expected)
        monkeypatch.setattr(crops, "face", None)  # what is kept is not decoded again


def test_a_partition_that_does_not_fit_is_refused(tmp_path):
    root = written(tmp_path)
    path = root / celeba.PARTITION
    lines = path.read_text().splitlines(keepends=True)

    def refused(message):
        with pytest.raises(ValueError, match=message) as caught:
            data.load("celeba", "train", root, 16, 3)
        assert "\n" not in str(caught.value)

    path.write_text("".join(lines[:3]))
    refused(r"names no 000004\.jpg of .*, nor 1 other \(5 images, 3 names\)")
    path.write_text("".join(lines) + "000009.jpg 1\n")
    refused(r"names an absent 000009\.jpg of [^,]* \(5 images, 6 names\)")
    path.write_text("".join(lines) + "000001.jpg 0\n000002.jpg 2\n")
    refused(r"line 7 says that 000002\.jpg is in part 2, and an earlier one in 1; fetch it again")
    path.write_text("".join(lines) + "000006.jpg 7\n")
    refused(r"line 6 is '000006\.jpg 7'; it should be a file's name and 0, 1 or 2")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"is here, but .*list_eval_partition\.txt is not"):
        data.load("celeba", "train", root, 16, 3)


def test_a_partition_may_have_a_mark_at_its_beginning_and_empty_lines_at_its_end(tmp_path):
    root = written(tmp_path)
    path = root / celeba.PARTITION
    expected = data.load("celeba", "train", root, 16, 3)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\n \n\n")
    for place in (root, path, root / celeba.FOLDER):
        again = data.load("celeba", "train", place, 16, 3)
        np.testing.assert_array_equal(again.images, expected.images)


def test_other_pictures_and_absent_files_are_named(tmp_path):
    root = written(tmp_path / "a", [noise(64, 64, 0), noise(64, 64, 1)], (0, 1))
    with pytest.raises(ValueError, match=r"000001\.jpg has 64x64 pixels, not 218x178"):
        data.load("celeba", "train", root, 16, 3)
    with pytest.raises(FileNotFoundError, match=r"no .*img_align_celeba\.zip; .*terms are to be"):
        data.load("celeba", "train", tmp_path / "b", 16, 3)
    with pytest.raises(ValueError, match=r"data set celeba: .*data\.num_channels 3, not 16 and 1"):
        data.load("celeba", "train", root, 16, 1)
