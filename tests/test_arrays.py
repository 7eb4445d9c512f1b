"""Arrays of images: what is read, in which order, and what is refused."""

import numpy as np
import pytest

import data
from data import arrays, zip_file
from tests.test_zip_file import patched

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), np.uint8)
LABELS = np.arange(30, dtype=np.int64) % 5


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))


def load(path, split="train", size=4, channels=3, **options):
    return data.load("arrays", split, path, size, channels, **options)


def saved(path, compressed=False, **parts):
    (np.savez_compressed if compressed else np.savez)(path, **parts)
    return path


@pytest.mark.parametrize("ram_limit", [1 << 30, 0])
@pytest.mark.parametrize("kind", ["npz", "packed.npz", "npy", "folder"])
def test_arrays_of_every_kind_are_one_set(tmp_path, kind, ram_limit):
    path = tmp_path / f"photos.{kind}"
    if kind.endswith("npz"):
        saved(path, kind == "packed.npz", images=IMAGES, labels=LABELS)
    else:
        folder = tmp_path if kind == "npy" else path
        folder.mkdir(exist_ok=True)
        prefix = "photos_" if kind == "npy" else ""
        np.save(path if kind == "npy" else path / "images.npy", IMAGES)
        np.save(folder / f"{prefix}labels.npy", LABELS)
    train, test = (load(path, split, ram_limit=ram_limit) for split in ("train", "test"))
    rows = {image.tobytes(): row for row, image in enumerate(IMAGES)}
    numbers = []
    for part in (train, test):
        images, labels = part.take(np.arange(len(part)))
        numbers.append([rows[image.tobytes()] for image in images])
        assert labels.tolist() == [row % 5 for row in numbers[-1]]
        assert numbers[-1] == sorted(numbers[-1])
    assert (len(test), train.num_classes) == (3, 5)
    assert sorted(numbers[0] + numbers[1]) == list(range(30))
    assert train.summary == f"{path}: 30 images (27 train, 3 test), 5 classes"
    assert train.fingerprint != test.fingerprint


@pytest.mark.parametrize("form", ["{split}_{kind}", "{kind}_{split}"])
def test_arrays_of_splits_are_the_splits(tmp_path, form):
    kinds = ("x", "y") if form.startswith("{kind}") else ("images", "labels")
    parts = {
        form.format(split=split, kind=kind): array
        for split, rows in (("train", slice(20)), ("test", slice(20, 30)))
        for kind, array in zip(kinds, (IMAGES[rows, :, :, 0], LABELS[rows]), strict=True)
    }
    train, test = (
        load(saved(tmp_path / "a.npz", **parts), split, channels=1) for split in ("train", "test")
    )
    np.testing.assert_array_equal(train.take(np.arange(20))[0], IMAGES[:20, :, :, :1])
    np.testing.assert_array_equal(test.take(np.arange(10))[0], IMAGES[20:, :, :, :1])
    assert test.labels.tolist() == LABELS[20:].tolist()


def test_what_is_not_compressed_is_mapped_in_either_order_of_axes(tmp_path):
    path = saved(tmp_path / "a.npz", images=np.asfortranarray(IMAGES), labels=LABELS)
    member = arrays.ArrayFiles(path).openers["images"]()
    assert isinstance(member, np.memmap)
    np.testing.assert_array_equal(member, IMAGES)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": IMAGES / 255.0}, r"images of float64\[30, 4, 4, 3\]; they must be levels"),
        ({"images": IMAGES[:, :3]}, r"\[3, 4, 3\], but .*; arrays are neither cropped nor resized"),
        ({"images": IMAGES[0]}, r"images of \[4, 3, 1\], but data\.image_size=4"),
        ({"images": IMAGES[:1]}, r"has 1 image\(s\); a data set has two or more"),
        ({"images": IMAGES[:0]}, "has no images"),
        ({"images": IMAGES, "labels": LABELS[:7]}, "one for each of 30 images"),
        ({"images": IMAGES, "labels": LABELS - 1}, "has labels from -1 to 3; they begin with 0"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, "labels of float64"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "holds Python objects"),
        ({"images": IMAGES, "labels": LABELS + 9_000_000}, "up to 9000004 for 30 images; classes"),
        (
            {"images": IMAGES, "x_train": IMAGES},
            "holds images and x_train; it must have images, or",
        ),
        (
            {"x_train": IMAGES, "x_test": IMAGES, "y_test": LABELS},
            "has y_test, but no labels of train; it must have both or neither",
        ),
        ({"pictures": IMAGES}, r"holds pictures; it must have images, or train_images and"),
    ],
)
def test_other_arrays_are_refused(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(saved(tmp_path / "a.npz", **parts))
    assert "\n" not in str(caught.value)


def test_files_that_are_damaged_or_absent_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data set arrays: there is no .*none\.npz"):
        load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"name the \.npz or \.npy file with --config\.data"):
        load(None)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.npz is no zip file"):
        load(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", IMAGES)
    content = (tmp_path / "a.npy").read_bytes()
    for damaged in (content[:-5], content + b"more"):
        (tmp_path / "a.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.npy is damaged or cut off: it declares uint8\["):
            load(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(content[:20])
    with pytest.raises(ValueError, match=r"a\.npy is no array in NumPy's format"):
        load(tmp_path / "a.npy")
    path = patched(saved(tmp_path / "b.npz", images=IMAGES), b"(30, 4, 4, 3)", b"(99, 9, 9, 9)", 1)
    with pytest.raises(ValueError, match=r"b\.npz: images\.npy is damaged or cut off"):
        load(path)


def test_a_mapped_member_is_compared_with_its_checksum_once(tmp_path, monkeypatch):
    path = patched(saved(tmp_path / "a.npz", images=IMAGES), IMAGES[9].tobytes(), b"\1" * 48, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a\.npz: images\.npy is damaged: it does not match"):
            load(path)
    whole = saved(tmp_path / "b.npz", images=IMAGES)
    load(whole)
    monkeypatch.setattr(zip_file.zlib, "crc32", None)
    arrays.ArrayFiles(whole).openers["images"]()
