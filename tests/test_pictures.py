"""Large sets of images that are read record by record."""

import resource

import numpy as np
import pytest

import data
from data.datasets import Column
from data.pictures import Pictures


class Synthetic(Pictures):
    """A million records, each of its own number."""

    name = "synthetic"
    image_shape = (2, 2, 3)

    def __init__(self, count: int):
        self.labels = np.arange(count, dtype=np.int32)

    def record(self, row: int) -> np.ndarray:
        return np.full(self.image_shape, row % 251, np.uint8)


def memory() -> float:
    """The most that this process has ever taken, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_split_without_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Synthetic, "__init__", lambda self, request: setattr(self, "labels", ()))
    monkeypatch.setitem(data.DATASETS, "synthetic", Synthetic)
    with pytest.raises(ValueError, match="synthetic has no images for the split 'test'"):
        data.load("synthetic", "test", None, 2, 3)


@pytest.mark.slow
def test_memory_is_flat_over_an_epoch_of_a_million_records() -> None:
    records = Synthetic(1_000_000)
    columns = Column(records, "image"), Column(records, "label")
    dataset = data.Dataset("synthetic", "train", *columns, 256, (2, 2, 3), 1)
    batches = data.Batches(dataset, 4000, 0)
    seen = np.zeros(len(records), bool)
    before = 0.0
    for i in range(250):
        batch = next(batches)
        labels = batch["label"][0]
        np.testing.assert_array_equal(batch["image"][0, :, 0, 0, 0], labels % 251)
        seen[labels] = True
        if i == 50:
            before = memory()
    batches.close()
    assert seen.all()
    assert memory() - before < 16.0
