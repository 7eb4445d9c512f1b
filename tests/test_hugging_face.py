"""Hugging Face's data sets, where its library is installed, and what is refused."""

import builtins
import types

import numpy as np
import pytest

import data
from data.hugging_face import HuggingFace
from data.pictures import Fit, shares
from tests.test_lsun import encoded, noise

PICTURES = [noise(9, 11, i) for i in range(20)]


def load(name, split="train", size=9, **options):
    return data.load(f"hf:{name}", split, None, size, 3, **options)


def table(datasets, rows, classes=3):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)}
    images = [{"bytes": encoded(PICTURES[row], "PNG"), "path": None} for row in rows]
    columns = {"image": images, "label": [row % 3 for row in rows]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation"), ("train",)])
def test_a_saved_set_is_read_at_random(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    rows = [range(12), range(12, 20)] if len(splits) > 1 else [range(20)]
    tables = {split: table(datasets, part) for split, part in zip(splits, rows, strict=True)}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path))
    expected = [list(part) for part in (rows if len(splits) > 1 else shares(20).values())]
    for split, part in zip(("train", "test"), expected, strict=True):
        dataset = load(tmp_path, split, ram_limit=0)
        images, labels = dataset.take(np.arange(len(dataset)))
        np.testing.assert_array_equal(images, [PICTURES[row][:, 1:10] for row in part])
        assert labels.tolist() == [row % 3 for row in part]
        assert dataset.num_classes == 3
    np.testing.assert_array_equal(
        load(tmp_path, size=5, fit=Fit(crop=5)).images[0], PICTURES[expected[0][0]][2:7, 3:8]
    )
    again, other = load(tmp_path), load(tmp_path, size=8)
    assert load(tmp_path).fingerprint == again.fingerprint != other.fingerprint


def test_other_sets_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"test": table(datasets, range(4))}).save_to_disk(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="has no split train; it has test"):
        load(tmp_path / "a")
    datasets.Dataset.from_dict({"words": ["one"]}).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="has not one column of images among words"):
        load(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="cannot be opened: ") as caught:
        load(tmp_path / "c")
    assert "\n" not in str(caught.value)
    damaged = table(datasets, range(4)).map(lambda row: {"label": -1})
    damaged.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match="has labels from -1 to 0 in train, but 3 classes"):
        load(tmp_path / "d")


def test_a_stream_is_refused(monkeypatch, tmp_path):
    stand_in = types.SimpleNamespace(
        Dataset=type("Dataset", (), {}), load_dataset=lambda *a, **k: {"train": iter(())}
    )
    monkeypatch.setitem(__import__("sys").modules, "datasets", stand_in)
    with pytest.raises(ValueError, match=r"its split train is a stream .*needs random access"):
        load("somebody/flowers")


def test_the_library_is_asked_for(monkeypatch):
    actual = builtins.__import__

    def absent(name, *more):
        if name == "datasets":
            raise ImportError(name)
        return actual(name, *more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"needs the library datasets: pip install 'score-sde\[hf"):
        load("somebody/flowers")
    assert HuggingFace.FITS
