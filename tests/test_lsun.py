"""LSUN: the pictures that the official pipeline gives, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

import data
from data import crops
from tests import golden_cases
from tests.official_files import write_lmdb as write
from tests.test_trees import packed


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(levels: np.ndarray, kind: str = "WEBP") -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind, lossless=True)
    return file.getvalue()


def webp(height: int, width: int, seed: int) -> bytes:
    return encoded(noise(height, width, seed))


@pytest.mark.parametrize(
    "path", golden_cases.files("data", "lsun*.npz"), ids=lambda path: path.stem
)
def test_squares_are_the_official_ones(path):
    golden = golden_cases.load(path)
    for name, expected in golden.items():
        number, _, kind = name.partition("/")
        if kind.startswith("crop_resize"):
            ours = crops.square(golden[f"{number}/input"], expected.shape[0])
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
        np.testing.assert_array_equal(image, crops.square(picture, 8))
    assert len(test) == 1
    assert train.fingerprint != test.fingerprint


def test_what_is_not_there_or_no_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*bedroom_train_lmdb; fetch and unpack"):
        data.load("lsun_bedroom", "train", tmp_path, 256, 3)
    write(tmp_path / "bedroom_train_lmdb", {b"1" * 40: b"no picture"})
    with pytest.raises(ValueError, match=r"bedroom_train_lmdb: entry 0 is no picture"):
        data.load("lsun_bedroom", "train", tmp_path, 256, 3)


@pytest.mark.parametrize("named", ["bedroom_train_lmdb", "bedroom_val_lmdb/data.mdb"])
def test_an_environment_itself_may_be_named(named, tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        write(tmp_path / f"bedroom_{split}_lmdb", {b"1" * 40: webp(9, 8, seed)})
    for split in ("train", "test"):
        one, two = (data.load("lsun_bedroom", split, p, 8, 3) for p in (tmp_path, tmp_path / named))
        np.testing.assert_array_equal(one.images, two.images)
    with pytest.raises(
        ValueError, match=r"is an LMDB that is none of data set lsun_church: .*_val"
    ):
        data.load("lsun_church", "train", tmp_path / named, 8, 3)


def test_channels_that_cannot_be_served_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be positive and data\.num_channels 3, not 256"):
        data.load("lsun_bedroom", "train", tmp_path, 256, 1)


@pytest.mark.parametrize(
    "path", golden_cases.files("data", "lsun*.npz"), ids=lambda path: path.stem
)
def test_images_of_128_pixels_are_the_official_ones_before_they_are_rounded(path, tmp_path):
    golden = golden_cases.load(path)
    numbers = sorted(name.partition("/")[0] for name in golden if name.endswith("/lsun128"))
    pictures = {f"{number:0>40}".encode(): encoded(golden[f"{number}/input"]) for number in numbers}
    write(tmp_path / "bedroom_train_lmdb", pictures)
    dataset = data.load("lsun_bedroom", "train", tmp_path, 128, 3)
    images, _ = dataset.take(np.arange(len(dataset)))
    assert (images.dtype, dataset.levels) == (np.float32, 256)
    for image, key in zip(images, sorted(pictures), strict=True):
        expected = golden[f"{key.decode().lstrip('0') or '0'}/lsun128"]
        np.testing.assert_allclose(image / 255, expected, rtol=1e-6)


def test_images_of_128_pixels_have_fractions_of_levels(tmp_path):
    write(tmp_path / "bedroom_train_lmdb", {b"1" * 40: encoded(noise(140, 150, 0))})
    dataset = data.load("lsun_bedroom", "train", tmp_path, 128, 3)
    np.testing.assert_array_equal(dataset.images[0], crops.unrounded(noise(140, 150, 0), 128))
    assert dataset.images.min() >= 0
    assert dataset.images.max() <= 255
    assert (dataset.images % 1).any()


@pytest.mark.parametrize("kind", ["folder", "zip", "sub-folders", "one zip"])
def test_exported_pictures_are_those_of_the_environment_in_its_order(kind, tmp_path):
    splits = {"train": range(12), "val": range(12, 15)}
    for split, numbers in splits.items():
        names = {f"{17 * i % 29:040x}": encoded(noise(9, 12, i)) for i in numbers}
        write(tmp_path / f"bedroom_{split}_lmdb", {k.encode(): v for k, v in names.items()})
        below = {"folder": f"a/bedroom_{split}", "zip": f"a/pack/bedroom_{split}"}
        folder = tmp_path / below.get(kind, f"a/{split}")
        for name, content in names.items():
            file = folder / name[-1] / name[-2] / f"{name}.webp"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if kind == "zip":
            packed(folder).rename(tmp_path / "a" / f"bedroom_{split}.zip")
    place = packed(tmp_path / "a") if kind == "one zip" else tmp_path / "a"
    for split in ("train", "test"):
        ours, theirs = (data.load("lsun_bedroom", split, p, 8, 3) for p in (place, tmp_path))
        np.testing.assert_array_equal(ours.images, theirs.images)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "bedroom_train").mkdir()
    (tmp_path / "bedroom_train" / "a.webp").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.webp is no picture that can be read"):
        data.load("lsun_bedroom", "train", tmp_path, 8, 3)
