"""Numbers of generated samples: drawn, judged, and their spread over seeds."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np

import sampling
from evaluation import batch_cache, features
from evaluation.judge import Judge, compare_features, metrics_of
from evaluation.memorisation import NearestImages
from evaluation.metrics import frechet
from evaluation.metrics.moments import Moments
from evaluation.report import quantities
from evaluation.sample_batches import sample_batches
from evaluation.stored_results import GUIDE
from generation import examples, guides
from generation.generator import Generator
from runtime import devices, experiment
from runtime.arrays import NUMBER
from runtime.workdir import Trained

Results = dict[str, Any]
Batch = dict[str, np.ndarray]


def sampling_results(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    trained: Trained,
    folder: pathlib.Path,
    store: batch_cache.Store,
) -> Results:
    """Judges the images of `eval.seeds` seeds: `sampling.seed` and those after it.

    The numbers are those of the first seed; "over_seeds" has each one's values, mean and standard
    deviation over all of them. Pictures of the further ones are in folders of their own. "guide"
    says which classifier guided, if one did.
    """
    sampler = sampling.from_config(config, devices.AXIS)
    generator = Generator(parts, sampler, config.sampling, config.eval.num_samples)
    kind = examples.kind_of(parts.pixels)
    by_network = features.network_of(parts, config.eval)
    judge = (network_judge if by_network else frechet_judge)(parts, config.eval)
    nearest = NearestImages(parts, config.eval)
    count, batch_size = config.eval.num_samples, config.sampling.batch_size
    runs: list[Results] = []
    guide = generator.guide
    by_seed = shards_by_seed(config, parts, store, guide.sha256 if guide else "")
    for seed, shards in by_seed.items():
        pictures = folder / f"seed_{seed}" if runs else folder
        batches = sample_batches(
            generator, trained.params, seed, count, batch_size, shards, kind, pictures
        )
        numbers = judge(nearest.watch(batches)) | {"sampling_seconds": shards.seconds}
        runs.append(numbers | nearest.results(pictures))
    results = runs[0] | (over_seeds([*by_seed], runs) if len(runs) > 1 else {})
    if guide:
        source = guide.source(config.sampling.guide)
        results |= {"guide": source, GUIDE: guide.sha256}
    return results


def refuse(config: ml_collections.ConfigDict, parts: experiment.Parts) -> None:
    """Refuses samples that cannot be drawn or judged, before anything is read or drawn.

    Raises:
      ValueError: says what, and what would be valid.
    """
    sampling.from_config(config, devices.AXIS)
    guides.check(config.sampling, parts)
    metrics_of(parts, config.eval)
    NearestImages(parts, config.eval)


def shards_by_seed(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    store: batch_cache.Store,
    guide: str = "",
) -> dict[int, batch_cache.Shards]:
    """The finished batches of samples of each seed; `guide` is the hash of its weights, or ""."""
    row = {"image": examples.kind_of(parts.pixels).row(parts.image_shape), "nfe": NUMBER}
    by_seed = {}
    for seed in range(config.sampling.seed, config.sampling.seed + config.eval.seeds):
        sampler = {**config.sampling.to_dict(), "seed": seed}
        origin = {**experiment.settings(config), "sampling": sampler}
        origin["data"] |= {"levels": parts.levels}
        origin |= {"guide": guide} if guide else {}
        by_seed[seed] = store.open(row, config.eval.keep_samples, what="samples", config=origin)
    return by_seed


def guide_of(config: ml_collections.ConfigDict) -> str:
    """SHA-256 of the weights of the classifier that guides the samples, "" where none does."""
    if not (config.eval.enable_sampling and config.sampling.guide):
        return ""
    guide = guides.of_samples(config.sampling, experiment.build(config))
    return guide.sha256 if guide else ""


def over_seeds(seeds: list[int], runs: list[Results]) -> Results:
    """Each number of samples with its values, mean and standard deviation (n - 1) over seeds."""
    spreads: Results = {}
    for name in quantities.of_samples(runs[0]):
        values = np.array([results[name] for results in runs], float)
        spreads[name] = {
            "values": values.tolist(),
            "mean": float(values.mean()),
            "std": float(values.std(ddof=1)),
        }
    return {"over_seeds": {"seeds": seeds, **spreads}}


def frechet_judge(
    parts: experiment.Parts, options: ml_collections.ConfigDict
) -> Callable[[Iterator[Batch]], Results]:
    """Compares the features of generated images with those of the training images, seen once.

    The features are those of a classifier of the data set itself; points are compared as they are,
    and by their sliced Wasserstein distance too. Beside the distance between all generated and all
    training images stand two of equal sample size: between disjoint halves of the training images
    (what a perfect generator would get), and between as many generated and training images.
    """
    train, test = parts.dataset("train"), parts.dataset("test")
    extractor = features.of_dataset(train, test, parts.pixels.standard)
    train_images, _ = train.take(np.arange(len(train)))
    real = extractor.features(train_images)
    moments = Moments.of(real)

    def judge(batches: Iterator[Batch]) -> Results:
        samples = list(batches)
        images = np.concatenate([batch["image"] for batch in samples])
        generated = extractor.features(images)
        size = min(len(real) // 2, len(generated))
        halves = frechet.split_distance(real, size=size, seed=options.seed)
        matched = frechet.split_distance(generated, size=size, seed=options.seed, other=real)
        return {
            "frechet_distance": frechet.frechet_distance(Moments.of(generated), moments),
            "frechet_distance_matched": matched.mean,
            "frechet_distance_real": halves.mean,
            "frechet_distance_real_std": halves.std,
            "frechet_distance_matched_std": matched.std,
            "frechet_samples_real": size,
            "features": extractor.label,
            "num_samples": len(images),
            "num_train": len(train),
            "train_fingerprint": train.fingerprint,
            "train_data": train.facts(),
            **extractor.compare(images, train_images, test),
            **compare_features(parts, options, generated, real),
            "nfe": mean_nfe(samples),
        }

    return judge


def network_judge(
    parts: experiment.Parts, options: ml_collections.ConfigDict
) -> Callable[[Iterator[Batch]], Results]:
    """Judges sets of generated images by a network, which is read once, as are its statistics."""
    network = Judge(parts, options)

    def judge(batches: Iterator[Batch]) -> Results:
        network.begin()
        evaluations: list[Batch] = []
        for batch in batches:
            network.add(batch["image"])
            evaluations.append({"nfe": batch["nfe"]})
        return {**network.results(), "nfe": mean_nfe(evaluations)}

    return judge


def mean_nfe(batches: list[Batch]) -> float:
    """The mean number of function evaluations per sample."""
    return float(np.mean(np.concatenate([batch["nfe"] for batch in batches])))
