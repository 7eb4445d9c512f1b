"""The same pictures from a folder, a zip file, TFRecords, an LMDB and arrays: one set, bit for bit.

Every format has an order of its own: a folder that of a hash of the names, SHA-256, TFRecords and
arrays the one in which they were written, an LMDB that of its keys, zip files of StyleGAN's tools
that of their numbers. They are one where pictures are written in the folder's order, and an LMDB's
keys are the digits of the hash.
"""

import dataclasses
import hashlib
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from data.batches import Batches
from runtime import experiment
from tests import official_files, tiny
from tests.test_lsun import encoded, noise
from tests.test_trees import packed
from training.objective import objective_from_config

SIZE, COUNT = 8, 24
SOURCES = ("folder", "zip", "tfrecords", "tool's zip", "lmdb", "exported zip", "npz", "npy")


def in_order() -> list[tuple[str, np.ndarray]]:
    """Names and pictures in the order of a folder."""
    names = {f"{i:02}.png": noise(SIZE, SIZE, i) for i in range(COUNT)}
    return sorted(names.items(), key=lambda item: digits(item[0]))


def digits(name: str) -> str:
    """The hash by which a folder orders its training images."""
    return hashlib.sha256(f"train/{name}".encode()).hexdigest()


def write_images(folder: pathlib.Path, pictures: dict[str, np.ndarray]) -> pathlib.Path:
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture, pathlib.Path(name).suffix[1:].upper()))
    return folder


def written(kind: str, root: pathlib.Path) -> tuple[str, pathlib.Path]:
    """The name of the data set, and its place."""
    pictures = in_order()
    train = np.stack([picture for _, picture in pictures])
    if kind in ("folder", "zip"):
        folder = write_images(root / "set" / "train", dict(pictures))
        write_images(root / "set" / "test", {"a.png": pictures[0][1]})
        return "folder", packed(folder.parent) if kind == "zip" else folder.parent
    if kind == "tfrecords":
        official_files.write_records(
            root / "ffhq-r03.tfrecords", *map(official_files.stylegan_record, train)
        )
        return "ffhq", root
    if kind == "tool's zip":
        names = {f"{i // 10:05}/img{i:08}.png": picture for i, picture in enumerate(train)}
        return "ffhq", packed(write_images(root / "set", names), method=zipfile.ZIP_STORED)
    if kind in ("lmdb", "exported zip"):
        keys = {digits(name)[:40]: x for name, x in pictures}
        if kind == "lmdb":
            entries = {key.encode(): encoded(picture) for key, picture in keys.items()}
            official_files.write_lmdb(root / "bedroom_train_lmdb", entries)
        else:
            names = {f"{key[0]}/{key}.webp": picture for key, picture in keys.items()}
            packed(write_images(root / "bedroom_train", names))
            (root / "bedroom_train").rename(root / "unpacked")
        return "lsun_bedroom", root
    if kind == "npz":
        np.savez(root / "set.npz", train_images=train, test_images=train[:1])
        return "arrays", root / "set.npz"
    np.save(root / "train_images.npy", train)
    np.save(root / "test_images.npy", train[:1])
    return "arrays", root


@pytest.fixture(scope="module")
def losses():
    """From a data set to the losses of a linear network on its first batch."""
    config = tiny.config(
        data__dataset="folder", data__image_size=SIZE, data__num_channels=3, training__batch_size=8
    )
    parts = experiment.build(config)
    objective = dataclasses.replace(
        objective_from_config(config, parts),
        apply=lambda variables, x, *conditions, **more: 0.3 * x + x[:, ::-1],
    )

    @jax.jit
    def compute(images, labels):
        per_image, _ = objective(
            {}, images, labels, jax.random.key(1), jnp.arange(8), 8, train=False, flip=True
        )
        return per_image

    def of(dataset):
        batches = Batches(dataset, 8, seed=3)
        batch = next(batches)
        batches.close()
        return np.asarray(compute(batch["image"][0], batch["label"][0]))

    return of


@pytest.mark.parametrize("kind", SOURCES)
def test_pictures_are_one_set_wherever_they_are_read_from(kind, tmp_path, monkeypatch, losses):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    name, place = written(kind, tmp_path)
    expected = np.stack([picture for _, picture in in_order()])
    labels = np.zeros(COUNT, np.int32)
    reference = losses(data.Dataset("set", "train", expected, labels, 256, (SIZE, SIZE, 3), 1))
    for ram_limit in (1 << 30, 0):
        dataset = data.load(name, "train", place, SIZE, 3, ram_limit=ram_limit)
        assert dataset.in_memory == bool(ram_limit)
        images, labels = dataset.take(np.arange(COUNT))
        np.testing.assert_array_equal(images, expected)
        assert not labels.any()
        np.testing.assert_array_equal(losses(dataset), reference)
