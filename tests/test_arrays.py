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
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"save images\.transpose\(0, 2, 3, 1\)$"),
        ({"images": IMAGES, "labels": LABELS - 1}, "has labels from -1 to 3; they must be from 0"),
        (
            {"images": IMAGES, "labels": LABELS.astype(np.uint64) + np.uint64(2**63)},
            f"to {2**63 + 4}; they must be from 0 to 2147483646",
        ),
        ({"images": IMAGES, "labels": LABELS * 1.0}, "labels of float64"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "holds Python objects"),
        ({"pictures": IMAGES}, r"holds pictures; it must have images, or train_images and"),
        ({"x_train": IMAGES}, r"holds x_train; it must have images, or train_images and"),
        ({"images": IMAGES, "x_train": IMAGES}, r"holds images, x_train; it must have either im"),
        (
            {"images": IMAGES, "x_train": IMAGES, "x_test": IMAGES},
            r"must have either images, or tr",
        ),
        ({"images": IMAGES, "x": IMAGES}, r"has images and x, which could be the same; leave one"),
        ({"images": IMAGES, "labels": LABELS, "y": LABELS}, r"has labels and y, which could be"),
        ({"x_train": IMAGES, "train_x": IMAGES, "x_test": IMAGES}, r"has train_x and x_train, whi"),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES},
            r"has y_train and no labels of the split test; add them, or leave the labels out",
        ),
    ],
)
def test_other_arrays_are_refused(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(saved(tmp_path / "a.npz", **parts))
    assert "\n" not in str(caught.value)


def test_what_is_not_read_is_said_and_classes_without_images_are_warned_of(tmp_path, caplog):
    labels = np.where(LABELS == 3, 9_000_000, LABELS)
    path = saved(tmp_path / "a.npz", images=IMAGES, labels=labels, ids=LABELS)
    for split in ("train", "test"):
        assert load(path, split).summary.endswith("9000001 classes, 1 array passed over (ids)")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: labels are from 0 to 9000000, 9000001 classes, of which 8999996 have no image, "
        "the first is 3; number them without gaps if these are not meant"
    )


def test_a_stored_member_is_compared_with_its_checksum_once(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    content = path.read_bytes()
    load(path)
    monkeypatch.setattr(zip_file, "_CHUNK", 0)  # nothing is read
    load(path)
    monkeypatch.undo()
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    monkeypatch.setattr(zip_file, "_CHUNK", 100)
    at = content.index(IMAGES.tobytes()) + 1000
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(
        ValueError, match=r"a\.npz: images\.npy is damaged: it does not match its c"
    ):
        load(path)


def test_a_mapped_file_that_is_cut_while_it_is_open_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    dataset = load(tmp_path / "a.npy", ram_limit=0)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-5])
    with pytest.raises(
        ValueError, match=r"a\.npy was cut off while it was read: it had 1568 bytes"
    ):
        dataset.take(np.arange(3))
    (tmp_path / "b.npy").write_bytes(b"")
    dataset = load(saved(tmp_path / "a.npz", images=IMAGES), ram_limit=0)
    (tmp_path / "b.npy").replace(tmp_path / "a.npz")  # another file: what is mapped stays
    dataset.take(np.arange(3))
    (tmp_path / "a.npz").unlink()
    dataset.take(np.arange(3))


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
    for damaged, what in ((content[:-5], "cut off"), (content + b"more", "too long")):
        (tmp_path / "a.npy").write_bytes(damaged)
        said = (
            rf"a\.npy is damaged or {what}: it declares uint8\[30, 4, 4, 3\], 1440 bytes, and has "
            rf"{1440 + len(damaged) - len(content)}$"
        )
        with pytest.raises(ValueError, match=said):
            load(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(content[:20])
    with pytest.raises(ValueError, match=r"a\.npy is no array in NumPy's format"):
        load(tmp_path / "a.npy")
    path = patched(saved(tmp_path / "b.npz", images=IMAGES), b"(30, 4, 4, 3)", b"(99, 9, 9, 9)", 1)
    with pytest.raises(ValueError, match=r"b\.npz: images\.npy is damaged or cut off"):
        load(path)
