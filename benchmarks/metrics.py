"""Inception's images per second, and the Fréchet distance of 2048 features; all in one run.

    python benchmarks/metrics.py [--batch=16] [--rounds=5] [--features=2048]

Beside our Inception network stand a matrix product, whose rate is the most that this machine
gives, and the networks of torch-fidelity and pytorch-fid, as far as they are installed, with the
same (random) weights, called in turns with ours. Beside the distance stands SciPy's
eigen-decomposition of one covariance.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime import backend

backend.prepare()

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from evaluation.metrics import frechet, inception, inception_weights
from evaluation.metrics.moments import Moments
from runtime import figures


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, made in turns, after one each that compiles."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def random_tensors() -> dict[str, np.ndarray]:
    """Weights that keep activations of the order of one."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in inception_weights.torch_shapes().items():
        if name.endswith(inception_weights.COUNTER):
            tensors[name] = np.zeros((), np.int64)
        elif len(shape) > 1:
            scale = np.sqrt(2.0 / np.prod(shape[1:]))
            tensors[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        else:
            unit = name.endswith(("running_var", "bn.weight"))
            tensors[name] = np.full(shape, float(unit), np.float32)
    return tensors


def torch_networks(
    tensors: dict[str, np.ndarray],
) -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """The networks that are installed, with these weights: name, resize, images to features."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    weights = {name: torch.from_numpy(array) for name, array in tensors.items()}

    def channels_first(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    if importlib.util.find_spec("torch_fidelity") is not None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "weights.pth")
            torch.save(weights, path)
            network = FeatureExtractorInceptionV3("network", ["2048"], path)

        def of_torch_fidelity(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return network(channels_first(images))[0].numpy()

        yield "torch-fidelity", "tensorflow", of_torch_fidelity
    if importlib.util.find_spec("pytorch_fid") is not None:
        import pytorch_fid.inception

        pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: weights
        features = pytorch_fid.inception.InceptionV3().eval()

        def of_pytorch_fid(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return features(channels_first(images) / 255)[0][:, :, 0, 0].numpy()

        yield "pytorch-fid", "pytorch", of_pytorch_fid


def compare_networks(batch: int, rounds: int) -> None:
    """Prints the rate of each network, and how far its features are from ours."""
    tensors = random_tensors()
    params = jax.tree.map(jnp.asarray, inception_weights.params_from_torch(tensors))
    images = np.random.default_rng(1).integers(0, 256, (batch, 32, 32, 3), np.uint8)

    @functools.partial(jax.jit, static_argnums=2)
    def pool(params: inception.Params, images: Any, resize: str) -> jax.Array:
        return inception.apply(params, images, resize).pool

    compiled = pool.lower(params, images, "tensorflow").compile()
    flops = compiled.cost_analysis()["flops"]  # type: ignore[index]
    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: jax.block_until_ready(pool(params, images, "tensorflow")),
        "product": lambda: jax.block_until_ready(product(square, square)),
    }
    for name, resize, network in torch_networks(tensors):
        expected = network(images)
        error = np.abs(expected - pool(params, images, resize)).max() / expected.max()
        print(f"features and {name}'s differ by {error:.1e} of the largest")
        calls[name] = functools.partial(network, images)
    seconds = in_turns(calls, rounds)
    rate = 2 * 2048**3 / seconds.pop("product")
    rows = [
        (name, batch / spent, flops / spent / 1e9, flops / spent / rate, spent / seconds["ours"])
        for name, spent in seconds.items()
    ]
    header = ["network", "images/s", "GFLOP/s", "of a matrix product's", "ours is faster by"]
    print(figures.table(rows, header))


def compare_distances(features: int, rounds: int) -> None:
    """Prints the time of a Fréchet distance beside SciPy's eigen-decompositions."""
    rng = np.random.default_rng(2)
    a, b = (Moments.of(rng.standard_normal((2 * features, features))) for _ in range(2))
    covariance = a.covariance
    seconds = in_turns(
        {
            "Fréchet distance": lambda: frechet.frechet_distance(a, b),
            "SciPy's eigh": lambda: scipy.linalg.eigh(covariance),
            "SciPy's eigvalsh": lambda: scipy.linalg.eigvalsh(covariance),
        },
        rounds,
    )
    base = seconds["SciPy's eigh"]
    rows = [(name, spent, spent / base) for name, spent in seconds.items()]
    print(figures.table(rows, [f"{features} features", "seconds", "of eigh"]))


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", type=int, default=2048)
    options = parser.parse_args()
    compare_networks(options.batch, options.rounds)
    print()
    compare_distances(options.features, options.rounds)


if __name__ == "__main__":
    run()
