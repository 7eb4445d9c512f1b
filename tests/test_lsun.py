"""LSUN: the pictures that the official pipeline gives, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

import data
from data import lsun
from tests import golden_cases
from tests.official_files import write_lmdb as write


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))


def webp(height: int, width: int, seed: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "path", golden_cases.files("data", "lsun*.npz"), ids=lambda path: path.stem
)
def test_squares_are_the_official_ones(path):
    golden = golden_cases.load(path)
    for name, expected in golden.items():
        number, _, kind = name.partition("/")
        if kind.startswith("crop_resize"):
            ours = lsun.square(golden[f"{number}/input"], expected.shape[0])
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("name", "category"), [("lsun_bedroom", "bedroom"),
                                                ("lsun_church", "church_outdoor")])  # fmt: skip
@pytest.mark.parametrize("ram_limit", [1 << 30, 0])
def test_splits_are_the_two_environments_in_the_order_of_their_keys(
    name, category, ram_limit, tmp_path
):
    pictures = {b"2" * 40: webp(9, 12, 0), b"1" * 40: webp(16, 8, 1), b"3" * 40: webp(8, 8, 2)}
    write(tmp_path / f"{category}_train_lmdb", pictures)
    write(tmp_path / f"{category}_val_lmdb", {b"1" * 40: webp(8, 8, 3)})
    train, test = (
        data.load(name, split, tmp_path, 8, 3, ram_limit=ram_limit) for split in ("train", "test")
    )
    images, _ = train.take(np.arange(3))
    for image, key in zip(images, sorted(pictures), strict=True):
        picture = np.asarray(Image.open(io.BytesIO(pictures[key])))
        np.testing.assert_array_equal(image, lsun.square(picture, 8))
    assert len(test) == 1
    assert train.fingerprint != test.fingerprint


def test_what_is_not_there_or_no_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*bedroom_train_lmdb; fetch and unpack"):
        data.load("lsun_bedroom", "train", tmp_path, 256, 3)
    write(tmp_path / "bedroom_train_lmdb", {b"1" * 40: b"no picture"})
    with pytest.raises(ValueError, match=r"bedroom_train_lmdb: entry 0 is no picture"):
        data.load("lsun_bedroom", "train", tmp_path, 256, 3)


@pytest.mark.parametrize(("size", "channels", "message"), [
    (256, 1, "must be positive and data.num_channels 3"), (128, 3, "are not rounded to levels"),
])  # fmt: skip
def test_sizes_that_cannot_be_served_are_refused(size, channels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.load("lsun_bedroom", "train", tmp_path, size, channels)
