"""The numbers that torch-fidelity gives for the same two folders of images and the same weights.

pip install -e .[fidelity] && pytest -m slow tests/test_torch_fidelity.py
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
from PIL import Image

import data
from data.images import read_image
from evaluation import features
from evaluation.judge import Judge
from evaluation.metrics import inception_weights, kernel, metric
from runtime import experiment
from tests import tiny
from tests.test_inception import drawn
from tests.test_training import use_devices

COUNT, SIZE = 40, 32


def write_pictures(folder: pathlib.Path, kind: int, first: int) -> None:
    """Digits in colours on grey, `COUNT` of them; another kind has other colours and noise."""
    folder.mkdir(parents=True)
    digits = data.load("digits", "train", folder.parents[1] / "data").images
    rng = np.random.default_rng(kind)
    for i, digit in enumerate(digits[first : first + COUNT]):
        large = np.kron(digit / 16.0, np.ones((SIZE // 8, SIZE // 8, 1)))
        colour = rng.uniform(0.2 + 0.3 * kind, 1.0, 3)
        pixels = 200 * large * colour + rng.normal(40, 5 + 15 * kind, (SIZE, SIZE, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")


@pytest.mark.slow
def test_fid_kid_inception_score_precision_and_recall(tmp_path, monkeypatch):
    """KID of all images at once, and a score in the order of the names: nothing is drawn."""
    torch = pytest.importorskip("torch")
    torch_fidelity = pytest.importorskip("torch_fidelity")
    real, generated = tmp_path / "images" / "real", tmp_path / "images" / "generated"
    write_pictures(real, 0, 0)
    write_pictures(generated, 1, COUNT)
    weights = tmp_path / "weights.pth"
    tensors = {
        name: torch.from_numpy(np.array(drawn(name, shape)))
        for name, shape in inception_weights.torch_shapes().items()
    }
    tensors["fc.weight"] *= 30  # classes that are certain, as a trained network's are
    torch.save(tensors, weights)
    expected = torch_fidelity.calculate_metrics(
        input1=str(generated),
        input2=str(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        feature_layer_prc="2048",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=COUNT,
        samples_shuffle=False,
        cache=False,
        cuda=False,
        save_cpu_ram=True,  # no workers, which would be forked
        batch_size=8,
        verbose=False,
    )

    whole = functools.partial(kernel.kernel_distance, subsets=1, size=COUNT)
    monkeypatch.setattr(kernel, "kernel_distance", whole)
    fewer = dataclasses.replace(metric.table()["kid"], least=COUNT)
    monkeypatch.setitem(metric.table(), "kid", fewer)
    monkeypatch.setattr(features, "PER_DEVICE", 8)
    monkeypatch.setattr(data, "default_folder", lambda: tmp_path / "cache")
    use_devices(monkeypatch, 1)
    shape = (SIZE, SIZE, 3)
    pictures = [read_image(path, shape) for path in sorted(generated.iterdir())]
    split = tmp_path / "split"
    (split / "test").mkdir(parents=True)
    (split / "test" / "one.png").symlink_to(generated / "000.png")
    (split / "train").mkdir()
    for path in real.iterdir():
        (split / "train" / path.name).symlink_to(path)
    config = tiny.config(
        data__dataset="folder",
        data__data_dir=str(split),
        data__image_size=SIZE,
        data__num_channels=3,
        eval__inception_path=str(weights),
        eval__num_samples=COUNT,
        eval__metrics=("fid", "kid", "inception_score", "precision_recall"),
    )
    judge = Judge(experiment.build(config), config.eval)
    judge.add(np.stack(pictures))
    found = judge.results()
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "inception_score": "inception_score_mean",
        "inception_score_std": "inception_score_std",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, theirs in names.items():
        print(f"{ours}: {found[ours]:.8g}, torch-fidelity {expected[theirs]:.8g}")
        assert found[ours] == pytest.approx(expected[theirs], rel=1e-3), ours
