"""Contenders of the row "fid": the Fréchet distance of a folder of PNG files to statistics, each by
its own functions with the same (random) Inception weights.

What takes long depends on the number of images alone ("features": files to mean and covariance) or
on none ("distance"), so that few images tell what 5,000 take. clean-fid's own network comes with a
download that a machine without a network does not have: pytorch-fid's, in its package, is what it
is given, behind its own resize.
"""

from __future__ import annotations

import glob
import os
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import checkouts
from benchmarks.today.worker import Job, Loaded

IMAGES, QUICK_IMAGES, SIZE, DIMS = 128, 32, 32, 2048
BATCH = 64  # that of the peers
SIGN = "torchvision::nms"


def load(job: Job) -> Loaded:
    """The calls "features" and "distance"; the fact "images" is the number of the first's."""
    folder, weights = pathlib.Path(job.folder) / "images", pathlib.Path(job.folder) / "weights.npz"
    files = sorted(glob.glob(f"{folder}/*.png"))[: QUICK_IMAGES if job.quick else IMAGES]
    tensors = dict(np.load(weights))
    loads = {"torch_fidelity": torch_fidelity, "pytorch_fid": pytorch_fid, "clean_fid": clean_fid}
    if job.contender == "ours":
        return ours(files, tensors)
    return with_torch(loads[job.contender], files, tensors, job.folder)


def prepare(folder: pathlib.Path) -> None:
    """Writes the images, and weights as PyTorch names them."""
    from benchmarks import metrics

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for number in range(IMAGES):
        image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number:05}.png")
    np.savez(folder / "weights.npz", **metrics.random_tensors())  # type: ignore[arg-type]


def gaussian(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a covariance of as many features."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2 * DIMS, DIMS))
    return features.mean(0), np.cov(features, rowvar=False)


def ours(files: list[str], tensors: dict[str, np.ndarray]) -> Loaded:
    """The extractor of `--mode=eval` and sums of moments: features are not held."""
    from runtime import backend  # isort: skip

    backend.prepare()  # before JAX is imported
    import configs
    from evaluation import features
    from evaluation.metrics import frechet, inception_weights
    from evaluation.metrics.feature_set import FeatureSet
    from evaluation.metrics.moments import Gaussian
    from runtime import experiment

    config = configs.from_file("configs/vp/cifar10_ddpmpp_continuous.py")
    weights = inception_weights.Weights(inception_weights.params_from_torch(tensors), "random")
    inception_weights.load_weights = lambda path="": weights
    extractor = features.NetworkExtractor("inception", experiment.build(config), config.eval)
    a, b = Gaussian(*gaussian(2)), Gaussian(*gaussian(3))

    def statistics() -> Any:
        images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        samples = FeatureSet(["pool"], [])
        for outputs in extractor(images):
            samples.add(outputs)
        return samples.gaussian("pool")

    calls = {
        "features": (statistics, 1),
        "distance": (lambda: frechet.frechet_distance(a, b), 1),
    }
    return Loaded(calls, {"images": len(files)})


def with_torch(make: Any, files: list[str], tensors: dict[str, np.ndarray], folder: str) -> Loaded:
    """A peer's calls: `make` gives its functions from files to (mean, covariance), and of two."""
    import_torchvision()
    import torch

    weights = {name: torch.from_numpy(array) for name, array in tensors.items()}
    statistics, distance = make(weights, folder)
    a, b = gaussian(2), gaussian(3)
    calls = {
        "features": (lambda: statistics(files), 1),
        "distance": (lambda: distance(*a, *b), 1),
    }
    return Loaded(calls, {"images": len(files)})


def import_torchvision() -> None:
    """Imports torchvision, also where its operators were built for another PyTorch: nobody here
    calls them, but they must have been declared.

    Raises:
      ValueError: it is not installed.
    """
    checkouts.require("torch")
    import torch

    try:
        checkouts.require("torchvision")
    except RuntimeError as error:
        if SIGN not in str(error):
            raise
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)
        checkouts.require("torchvision")


DECLARED: list[Any] = []  # as long as the process runs


def pytorch_fid(weights: dict[str, Any], folder: str) -> Any:
    """Its functions of files, and of moments."""
    checkouts.require("pytorch_fid", "pytorch-fid")
    from pytorch_fid import fid_score, inception

    inception.load_state_dict_from_url = lambda *_, **__: weights
    network = inception.InceptionV3()

    def statistics(files: list[str]) -> Any:
        return fid_score.calculate_activation_statistics(
            files, network, BATCH, DIMS, "cpu", num_workers=0
        )

    return statistics, fid_score.calculate_frechet_distance


def torch_fidelity(weights: dict[str, Any], folder: str) -> Any:
    """Its extractor over its data set of files, and its functions of features and moments."""
    checkouts.require("torch_fidelity", "torch-fidelity")
    import torch
    from torch_fidelity import metric_fid, utils
    from torch_fidelity.datasets import ImagesPathDataset
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = os.path.join(folder, "weights.pth")
    torch.save(weights, path)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], path).eval()

    def statistics(files: list[str]) -> Any:
        features = utils.get_featuresdict_from_dataset(
            ImagesPathDataset(files), network, BATCH, False, True, False
        )
        moments = metric_fid.fid_features_to_statistics(features["2048"])
        return moments["mu"], moments["sigma"]

    def distance(mean: Any, covariance: Any, mean_2: Any, covariance_2: Any) -> Any:
        return metric_fid.fid_statistics_to_metric(
            {"mu": mean, "sigma": covariance}, {"mu": mean_2, "sigma": covariance_2}, False
        )

    return statistics, distance


def clean_fid(weights: dict[str, Any], folder: str) -> Any:
    """Its resize and its functions of files and moments, around pytorch-fid's network."""
    checkouts.require("cleanfid", "clean-fid")
    import torch
    from cleanfid import fid, inception_pytorch

    inception_pytorch.load_state_dict_from_url = lambda *_, **__: weights
    network = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()

    def features(x: Any) -> Any:
        return network(x / 255)[0].squeeze(-1).squeeze(-1)

    def statistics(files: list[str]) -> Any:
        options = {"batch_size": BATCH, "device": torch.device("cpu"), "num_workers": 0}
        found = fid.get_files_features(files, features, **options, verbose=False)
        return np.mean(found, axis=0), np.cov(found, rowvar=False)

    return statistics, fid.frechet_distance
