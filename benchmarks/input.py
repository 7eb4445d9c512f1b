"""Images per second from the disk to a batch, beside PyTorch's loader and TFDS, all in one run.

    python benchmarks/input.py [--sizes 64 256 1024] [--seconds=6] [--rounds=3] [--workers=2]

Pictures a quarter larger than wanted are written as JPEG, PNG and WebP. Each loader resamples and
crops them to squares in batches of 64 (8 at 1024 pixels), with as many workers as there are
processors; loaders take turns, and the medians of their rates are compared. "decoded" are our
images the second time, from the pixels that the first one kept. PyTorch's `DataLoader`, with as
many processes over pictures read as torchvision's `ImageFolder` does, is compared where PyTorch is
installed; TFDS's random access (of what it can encode) is read through grain.

    python benchmarks/input.py --consumption [--config=configs/ve/cifar10_ncsnpp_continuous.py]

prints how many images/s the config's training step would take at most on an H100 and on a v5e
chip: their peak rates in bfloat16 over the FLOPs of a step as XLA counts them before compilation.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import pathlib
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from runtime import backend

backend.prepare()

import grain
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

import data
from data import decoded
from planning import costs, programs
from runtime import figures
from runtime.chips import CHIPS

Loader = Callable[[], Iterator[Any]]  # an endless stream of batches, opened anew
PEAK = {name: CHIPS[name.lower()].bfloat16 for name in ("H100", "v5e")}
OPTIONS: dict[str, dict[str, Any]] = {"jpg": {"quality": 90}, "png": {}, "webp": {"quality": 90}}


def photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Noise of amplitudes 1 / frequency, as photographs have them."""
    waves = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width)))
    levels = np.fft.irfft2(spectrum / np.sqrt(waves + 1.0 / (height * width)), (height, width))
    levels = 128.0 + 60.0 * levels / levels.std()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def write(folder: pathlib.Path, size: int, count: int, ending: str) -> None:
    """Writes `count` pictures whose shorter side is 5/4 of `size`."""
    rng = np.random.default_rng(size)
    side = 5 * size // 4
    (folder / "all").mkdir(parents=True)
    for i in range(count):
        picture = photograph(rng, side, side + side // 5)
        picture.save(folder / "all" / f"{i:05}.{ending}", **OPTIONS[ending])


def ours(folder: pathlib.Path, size: int, batch: int, cache: bool) -> Iterator[Any]:
    """Our batches, read from the disk."""
    dataset = data.load("folder", "train", folder, size, 3, ram_limit=0, cache=cache)
    return data.Batches(dataset, batch, 0)


class TorchFolder:
    """The pictures as torchvision's ImageFolder reads them, with Resize and CenterCrop."""

    def __init__(self, folder: pathlib.Path, size: int):
        self.paths, self.size = sorted((folder / "all").iterdir()), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Any:
        import torch

        with self.paths[row].open("rb") as file:
            picture = Image.open(file).convert("RGB")
        square = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(square)), 0


def of_torch(folder: pathlib.Path, size: int, batch: int, workers: int) -> Iterator[Any]:
    """Batches of PyTorch's DataLoader, in a random order, epoch after epoch."""
    import torch.utils.data

    loader = torch.utils.data.DataLoader(
        TorchFolder(folder, size),  # type: ignore[arg-type]
        batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from loader


def of_tfds(source: Any, size: int, batch: int, workers: int) -> Iterator[Any]:
    """Batches of TFDS's prepared array_record data, decoded by TFDS."""

    def fit(item: dict[str, Any]) -> np.ndarray:
        picture = Image.fromarray(item["image"])
        return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))

    stream = grain.MapDataset.source(source).seed(0).shuffle().repeat().map(fit)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * batch)
    return iter(stream.to_iter_dataset(options).batch(batch))


def prepared(folder: pathlib.Path, ending: str, target: pathlib.Path) -> Any:
    """The same pictures as TFDS keeps them; None if it cannot encode them."""
    kind = {"jpg": "jpeg", "png": "png"}.get(ending)
    if kind is None:
        return None

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        VERSION = tfds.core.Version("1.0.0")
        name = f"pictures_{kind}"

        def _info(self) -> Any:
            image = tfds.features.Image(shape=(None, None, 3), encoding_format=kind)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": image})
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
            for path in sorted((folder / "all").iterdir()):
                yield path.name, {"image": path.read_bytes()}

    builder = Pictures(data_dir=str(target), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()
    return builder.as_data_source(split="train")


def rate(stream: Iterator[Any], batch: int, seconds: float) -> float:
    """Images per second of a stream, from its second batch on."""
    next(stream)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(stream)
        count += batch
    return count / (time.perf_counter() - began)


def compare(folder: pathlib.Path, size: int, ending: str, options: Any) -> list[Any]:
    """A row of the table: rates of the loaders at one size, from one kind of file."""
    batch = 8 if size >= 1024 else 64
    write(folder / "pictures", size, 8 * batch, ending)
    pictures = folder / "pictures"
    loaders: dict[str, Loader] = {
        "ours": functools.partial(ours, pictures, size, batch, False),
        "decoded": functools.partial(ours, pictures, size, batch, True),
    }
    if importlib.util.find_spec("torch"):
        loaders["torch"] = functools.partial(of_torch, pictures, size, batch, options.workers)
    source = prepared(pictures, ending, folder / "tfds")
    if source is not None:
        loaders["tfds"] = functools.partial(of_tfds, source, size, batch, options.workers)
    whole = data.load("folder", "train", pictures, size, 3, ram_limit=0, cache=True)
    whole.take(np.arange(len(whole)))  # kept from here on
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(options.rounds):
        for name, loader in loaders.items():
            stream = loader()
            rates[name].append(rate(stream, batch, options.seconds))
            getattr(stream, "close", lambda: None)()
            del stream
    median = {name: float(np.median(values)) for name, values in rates.items()}
    row: list[Any] = [f"{size} px, {ending}", median["ours"], median["decoded"]]
    for peer in ("torch", "tfds"):
        known = peer in median
        row += [median[name] / median[peer] if known else "" for name in ("ours", "decoded")]
    return row


def consumption(path: str) -> list[Any]:
    """Images/s that the training step of a config takes at most, by device."""
    config: ml_collections.ConfigDict = runpy.run_path(path)["get_config"]()
    return [path, *(peak / flops_per_image(config) for peak in PEAK.values())]


def flops_per_image(config: ml_collections.ConfigDict) -> float:
    """FLOPs of a training step per image, as XLA counts those of the program before compilation."""
    images = 8
    return costs.Work(programs.training(config, images, 1), 1, "cpu").flops / images


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--kinds", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--consumption", action="store_true")
    parser.add_argument("--config", nargs="+", default=["configs/ve/cifar10_ncsnpp_continuous.py"])
    options = parser.parse_args()
    if options.consumption:
        rows = [consumption(path) for path in options.config]
        print(figures.table(rows, ["images/s at most", *PEAK]))
        return
    decoded.SMALLEST = 0
    header = ["", "ours, images/s", "decoded, images/s"]
    header += ["of torch's", "decoded, of torch's", "of TFDS's", "decoded, of TFDS's"]
    rows = []
    for size in options.sizes:
        for ending in options.kinds:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["SCORE_SDE_DATA"] = os.path.join(folder, "prepared")
                rows.append(compare(pathlib.Path(folder), size, ending, options))
            print(figures.table(rows, header), flush=True)


if __name__ == "__main__":
    run()
