"""SVHN and ImageNet at 32 and 64 pixels from files like the published ones."""

import io
import os
import tarfile

import numpy as np
import pytest
from scipy import io as scipy_io

import data
from data import imagenet
from data.svhn import Svhn
from tests.test_data import published
from tests.test_lsun import encoded, noise

COUNTS = {"train": 6, "test": 3}


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def pictures(split: str, size: int = 32) -> np.ndarray:
    return np.stack([noise(size, size, i + 10 * (split == "test")) for i in range(COUNTS[split])])


# --- SVHN ---


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    for split, count in COUNTS.items():
        content = {"X": pictures(split).transpose(1, 2, 3, 0), "y": 10 - np.arange(count)[:, None]}
        scipy_io.savemat(tmp_path / f"{split}_32x32.mat", content, do_compression=split == "train")
    published(monkeypatch, Svhn, tmp_path, **COUNTS)
    return tmp_path


def test_svhn_is_the_official_files_with_ten_as_zero(svhn):
    for split, count in COUNTS.items():
        dataset = data.load("svhn", split, svhn, 32, 3)
        np.testing.assert_array_equal(dataset.images, pictures(split))
        assert dataset.labels.tolist() == [0, 9, 8, 7, 6, 5][:count]
        assert (dataset.num_classes, dataset.levels) == (10, 256)


def test_damaged_files_of_svhn_are_refused(svhn, monkeypatch):
    path = svhn / "train_32x32.mat"
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"train_32x32\.mat: damaged or another file, it has"):
        data.load("svhn", "train", svhn)
    published(monkeypatch, Svhn, svhn)
    with pytest.raises(ValueError, match=r"train_32x32\.mat: damaged or no MATLAB file"):
        data.load("svhn", "train", svhn)
    path.write_bytes(content)
    published(monkeypatch, Svhn, svhn, train=5, test=3)
    with pytest.raises(ValueError, match=r"X is uint8\[32, 32, 3, 6\], not uint8\[32, 32, 3, 5"):
        data.load("svhn", "train", svhn)
    scipy_io.savemat(path, {"X": pictures("train").transpose(1, 2, 3, 0), "y": np.arange(6)})
    published(monkeypatch, Svhn, svhn, **COUNTS)
    with pytest.raises(ValueError, match="it has 6 labels from 0 to 5, not 6 from 1 to 10"):
        data.load("svhn", "train", svhn)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"svhn: .* lacks train_32x32\.mat"):
        data.load("svhn", "train", svhn)


# --- ImageNet ---


def tar_file(path, images, **options):
    with tarfile.open(path, "w", **options) as archive:
        folder = tarfile.TarInfo(path.stem)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for i, image in enumerate(images):
            content = image if isinstance(image, bytes) else encoded(image, "PNG")
            member = tarfile.TarInfo(f"{path.stem}/{i + 1:07}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def batch_files(folder, size: int, **changes):
    for split, count in COUNTS.items():
        planes = pictures(split, size).transpose(0, 3, 1, 2).reshape(count, -1)
        shares = np.array_split(np.arange(count), len(imagenet.BATCHES[split]))
        for name, rows in zip(imagenet.BATCHES[split], shares, strict=True):
            content = {"data": planes[rows], "labels": 1000 - rows, "mean": np.zeros(3)} | changes
            np.savez(folder / name, **content)


@pytest.mark.parametrize("ram_limit", [1 << 30, 0])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["tar", "npz"])
def test_imagenet_is_the_published_archives(tmp_path, monkeypatch, kind, size, ram_limit):
    monkeypatch.setattr(imagenet, "BYTES", {})
    monkeypatch.setattr(imagenet, "COUNTS", COUNTS)
    if kind == "tar":
        tar_file(tmp_path / f"train_{size}x{size}.tar", pictures("train", size))
        tar_file(tmp_path / f"valid_{size}x{size}.tar", pictures("test", size),
                 format=tarfile.PAX_FORMAT)  # fmt: skip
    else:
        batch_files(tmp_path, size)
    for split, count in COUNTS.items():
        dataset = data.load(f"imagenet{size}", split, tmp_path, size, 3, ram_limit=ram_limit)
        images, labels = dataset.take(np.arange(count))
        np.testing.assert_array_equal(images, pictures(split, size))
        expected = [0] * count if kind == "tar" else (999 - np.arange(count)).tolist()
        assert labels.tolist() == expected
        assert dataset.num_classes == (1 if kind == "tar" else 1000)
    assert isinstance(dataset.fingerprint, str)


def refused(folder, message, kind=ValueError, size=32):
    with pytest.raises(kind, match=message) as caught:
        data.load("imagenet32", "train", folder, size, 3)
    assert "\n" not in str(caught.value)


def test_what_is_absent_is_named_with_the_page_to_agree_on(tmp_path):
    page = r"https://image-net\.org/download-images\.php"
    refused(tmp_path, f"neither .*train_32x32.tar nor train_data_batch_1.npz .*{page}",
            FileNotFoundError)  # fmt: skip
    refused(tmp_path, r"data\.image_size must be 32 and", size=64)


def test_damaged_archives_of_imagenet_are_refused(tmp_path, monkeypatch):
    path = tar_file(tmp_path / "train_32x32.tar", [*pictures("train"), b"none"])
    refused(tmp_path, r"is cut off or another file: it has \d+ bytes, not 4113018880")
    monkeypatch.setattr(imagenet, "BYTES", {})
    refused(tmp_path, r"train_32x32\.tar: image 6 cannot be read: it is no image of a known kind")
    content = path.read_bytes()
    path.write_bytes(content[:12000])
    refused(tmp_path, r"train_32x32\.tar is cut off in image 2")
    path.write_bytes(b"no tar" * 500)
    refused(tmp_path, r"train_32x32\.tar is no tar file")
    path.write_bytes(bytes(10240))
    refused(tmp_path, r"train_32x32\.tar has no PNG files")


def test_an_archive_that_is_cut_while_it_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "BYTES", {})
    path = tar_file(tmp_path / "train_32x32.tar", pictures("train"))
    archive = imagenet.TarFile(path)
    os.truncate(path, 600)
    with pytest.raises(ValueError, match=r"train_32x32\.tar was cut off while it was read"):
        archive[1]


def test_other_batches_of_imagenet_are_refused(tmp_path, monkeypatch):
    batch_files(tmp_path, 32)
    refused(tmp_path, r"has 6 images in 10 file\(s\), not 1281167")
    monkeypatch.setattr(imagenet, "COUNTS", COUNTS)
    batch_files(tmp_path, 32, labels=np.zeros(1, int))
    refused(tmp_path, "has 1 labels from 0 to 1 for 1 images; they should be from 1 to 1000")
    batch_files(tmp_path, 16)
    refused(tmp_path, r"has images of uint8\[1, 768\], not uint8\[n, 3072\]")
    (tmp_path / "train_data_batch_3.npz").unlink()
    refused(tmp_path, r"lacks train_data_batch_3\.npz", FileNotFoundError)
