"""Statistics of the data set that generated images are compared with; `--mode=stats`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import ml_collections
from absl import logging

import data
from evaluation import features
from evaluation.metrics import statistics
from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.statistics import Origin, Statistics
from evaluation.report import console
from runtime import devices, errors, experiment, figures, files


def make_statistics(
    extractor: features.NetworkExtractor,
    dataset: data.Dataset,
    count: int,
    path: str = "",
    with_features: bool = False,
) -> Statistics:
    """Statistics of the first `count` images, which are written; no features are held without
    `with_features`.

    Without a path they go to the cache, where `reference` looks for them.
    """
    of_gaussians = [name for name in ("pool", "spatial") if name in extractor.outputs]
    images = FeatureSet(of_gaussians, ["pool"] if with_features else [])
    extractor.see(dataset, count, images)
    origin = origin_of(extractor, dataset, count)
    file = files.as_path(path or cache_file(origin), "eval.stats_path")
    gaussians = {name: images.gaussian(name) for name in of_gaussians}
    # on every host, in one move: they may share a disk or not
    made = Statistics(gaussians["pool"], gaussians.get("spatial"), None, origin)
    statistics.write(file, made)
    stored = statistics.read(file)
    return dataclasses.replace(stored, features=images.array("pool")) if with_features else stored


def origin_of(extractor: features.NetworkExtractor, dataset: data.Dataset, count: int) -> Origin:
    """The origin of statistics of the first `count` images."""
    return dataclasses.replace(extractor.origin, **dataset.facts(), images=count)


IDENTITY = ("network", "weights_sha256", "resize", "dataset", "fingerprint", "images")


def cache_file(origin: Origin) -> pathlib.Path:
    """The file that keeps statistics of that origin: the rest follows from its `IDENTITY`."""
    key = json.dumps({name: getattr(origin, name) for name in IDENTITY}).encode()
    name = f"{origin.dataset.replace('/', '-')}-{hashlib.sha256(key).hexdigest()[:16]}.npz"
    return data.default_folder() / "statistics" / name


def cached_statistics(origin: Origin, num_features: int) -> Statistics | None:
    """The statistics of that origin in the cache, or None if there are none that can be read."""
    file = cache_file(origin)
    if not file.is_file():
        return None
    try:
        stored = statistics.read(file)
        statistics.check(stored, origin, num_features)
        if statistics.other_data(stored.origin, origin):
            raise ValueError(f"the statistics in {file} are not of {origin.fingerprint}")
    except ValueError as error:
        logging.warning("%s; they are made again", errors.one_line(error, 300))
        return None
    return stored


def training_images(
    parts: experiment.Parts, options: ml_collections.ConfigDict
) -> tuple[data.Dataset, int]:
    """The training images, and the number of them in statistics: `eval.stats_images`, or all.

    Raises:
      ValueError: there are fewer.
    """
    dataset = parts.dataset("train")
    count = options.stats_images or len(dataset)
    if count > len(dataset):
        raise ValueError(
            f"eval.stats_images is {count}, but {dataset.name}/train has {len(dataset)} images"
        )
    return dataset, count


def reference(
    parts: experiment.Parts,
    options: ml_collections.ConfigDict,
    extractor: features.NetworkExtractor,
    with_features: bool,
) -> Statistics:
    """The statistics that `eval.stats_path` names, or those of the training images.

    The latter are made once and cached. `with_features` asks for the features of single images too,
    which few files have: they are computed again. Only what is not in the file of statistics has
    the data set opened.

    Raises:
      FileNotFoundError: no such file.
      ValueError: statistics that were made otherwise, or of fewer images.
    """
    if options.stats_path:
        stored = statistics.read(options.stats_path)
        height, _, channels = parts.image_shape
        expected = dataclasses.replace(
            extractor.origin,
            dataset=f"{parts.dataset_name.lower()}/train",
            folder=parts.dataset_folder,
            image_size=height,
            channels=channels,
            images=options.stats_images,
        )
        statistics.check(stored, expected, extractor.num_features)
        if not with_features or stored.features is not None:
            warn_of_other_data(stored, expected)
            return stored
        dataset, count = training_images(parts, options)
        stored = beside(stored, origin_of(extractor, dataset, count), extractor.num_features)
    else:
        dataset, count = training_images(parts, options)
        origin = origin_of(extractor, dataset, count)
        cached = cached_statistics(origin, extractor.num_features)
        if not devices.on_all(cached is not None) or cached is None:
            return make_statistics(extractor, dataset, count, with_features=with_features)
        stored = cached
        if not with_features:
            return stored
    images = FeatureSet([], ["pool"])
    extractor.see(dataset, count, images)
    return dataclasses.replace(stored, features=images.array("pool"))


def beside(stored: Statistics, origin: Origin, num_features: int) -> Statistics:
    """Statistics beside which features of that origin stand, of another data set perhaps.

    Raises:
      ValueError: of the same data set, but made otherwise or of another number of images.
    """
    if not warn_of_other_data(stored, origin):
        statistics.check(stored, origin, num_features)
        return stored
    return dataclasses.replace(stored, features_of=f"{origin.name}, {origin.fingerprint}")


def warn_of_other_data(stored: Statistics, origin: Origin) -> bool:
    """True, and a warning with both names, if statistics are known to be of another data set."""
    other = statistics.other_data(stored.origin, origin)
    if other:
        logging.warning(
            "the statistics in %s are of %s, the data set is %s: distances are to the former",
            stored.path,
            shown_data(stored.origin),
            shown_data(origin),
        )
    return other


def shown_data(origin: Origin) -> str:
    """A data set by its name and, where that is known, the checksum of its examples."""
    checksum = origin.fingerprint.rpartition("/")[2]
    return origin.name + (f", CRC-32 {checksum}" if checksum else "")


def write_statistics(config: ml_collections.ConfigDict) -> Statistics:
    """Writes statistics of the training images to `eval.stats_path` or the cache.

    Raises:
      ValueError: a data set that is not compared by a network's features, a file that is there
        already, or what `NetworkExtractor` refuses.
    """
    parts, options = experiment.build(config), config.eval
    if not parts.levels:
        raise ValueError(
            f"statistics are of a network's features, and {parts.dataset_name} has points, which "
            "are compared as they are"
        )
    network = features.network_of(parts, options)
    if not network:
        raise ValueError(
            f"statistics are of a network's features, and {parts.dataset_name} is compared by "
            "its own; ask for them with --config.eval.features=inception"
        )
    if options.stats_path and statistics.place(options.stats_path).exists():
        raise ValueError(
            f"{options.stats_path} is there already; remove it, or name another file with "
            "--config.eval.stats_path"
        )
    dataset, count = training_images(parts, options)
    if options.stats_path and (
        bucket_path := files.in_bucket(statistics.place(options.stats_path))
    ):
        bucket_path.require_writable()
    extractor = features.NetworkExtractor(network, parts, options)
    written = make_statistics(extractor, dataset, count, options.stats_path)
    if devices.is_primary():
        print(figures.table(console.statistics_rows(written.facts())))
    return written
