"""Numbers of generated samples: drawn, judged, and their spread over seeds."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np

import data
from evaluation import batch_cache, features
from evaluation.judge import Judge, own_features
from evaluation.metrics import frechet
from evaluation.report import quantities
from generation import examples
from generation.generator import Generator
from runtime import devices, experiment
from runtime.workdir import Trained

Results = dict[str, Any]


def generated_batches(
    config: ml_collections.ConfigDict,
    generator: Generator,
    params: Any,
    seed: int,
    folder: pathlib.Path,
    drawn: batch_cache.Shards,
) -> Iterator[dict[str, np.ndarray]]:
    """`eval.num_samples` images, as `Generator` gives them, those in `drawn` not drawn again.

    Pictures of the first batch lie beside the shards, and are copied into `folder`.
    """
    kind, name = examples.from_config(config), "samples"

    def compute(indices: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for numbers, batch in generator(params, indices, seed=seed):
            if numbers[0] == 0 and devices.is_primary():
                kind.save_pictures(drawn.folder, name, batch)
            yield numbers, {field: batch[field] for field in ("image", "nfe")}

    rows = np.arange(config.eval.num_samples)
    for i, batch in enumerate(drawn.batches(rows, config.sampling.batch_size, compute)):
        if i == 0 and devices.is_primary():
            folder.mkdir(parents=True, exist_ok=True)
            for picture in (f"{name}.png", "reverse_process.gif"):
                (folder / picture).unlink(missing_ok=True)
                if (drawn.folder / picture).is_file():
                    shutil.copyfile(drawn.folder / picture, folder / picture)
        yield batch


def sampling_results(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    trained: Trained,
    folder: pathlib.Path,
    store: batch_cache.Store,
) -> Results:
    """Judges the images of `eval.seeds` seeds: `sampling.seed` and those after it.

    The numbers are those of the first seed; "over_seeds" has each one's values, mean and standard
    deviation over all of them. Pictures of the further ones are in folders of their own.
    """
    generator = Generator(config, parts)
    measure = (inception_judge if features.uses_inception(config) else frechet_judge)(config)
    found: list[Results] = []
    seeds = [config.sampling.seed + i for i in range(config.eval.seeds)]
    for seed in seeds:
        origin = {
            name: config[name].to_dict() for name in ("data", "model", "sampling", "training")
        }
        origin["sampling"]["seed"] = seed
        drawn = store.open(config.eval.keep_samples, what="samples", config=origin)
        place = folder / f"seed_{seed}" if found else folder
        batches = generated_batches(config, generator, trained.params, seed, place, drawn)
        found.append(measure(batches) | {"sampling_seconds": drawn.seconds})
    return found[0] | (over_seeds(seeds, found) if len(found) > 1 else {})


def over_seeds(seeds: list[int], found: list[Results]) -> Results:
    """Each number of samples with its values, mean and standard deviation (n - 1) over seeds."""
    spreads: Results = {}
    for name in quantities.of_samples(found[0]):
        values = np.array([results[name] for results in found], float)
        spreads[name] = {
            "values": values.tolist(),
            "mean": float(values.mean()),
            "std": float(values.std(ddof=1)),
        }
    return {"over_seeds": {"seeds": seeds, **spreads}}


def frechet_judge(
    config: ml_collections.ConfigDict,
) -> Callable[[Iterator[dict[str, np.ndarray]]], Results]:
    """Compares the features of generated images with those of the training images, seen once.

    The features are those of a classifier of the data set itself; points are compared as they are,
    and by their sliced Wasserstein distance too. Beside the distance between all generated and all
    training images stand two of equal sample size: between disjoint halves of the training images
    (what a perfect generator would get), and between as many generated and training images.
    """
    real, test = data.from_config(config, "train"), data.from_config(config, "test")
    extractor = features.of_dataset(real, test)
    real_images, _ = real.take(np.arange(len(real)))
    expected = extractor.features(real_images)
    moments = frechet.Moments.of(expected)

    def judged(batches: Iterator[dict[str, np.ndarray]]) -> Results:
        drawn = list(batches)
        generated = np.concatenate([batch["image"] for batch in drawn])
        found = extractor.features(generated)
        size = min(len(expected) // 2, len(found))
        halves = frechet.split_distance(expected, size=size, seed=config.eval.seed)
        matched = frechet.split_distance(found, size=size, seed=config.eval.seed, other=expected)
        return {
            "frechet_distance": frechet.frechet_distance(frechet.Moments.of(found), moments),
            "frechet_distance_matched": matched.mean,
            "frechet_distance_real": halves.mean,
            "frechet_distance_real_std": halves.std,
            "frechet_distance_matched_std": matched.std,
            "frechet_samples_real": size,
            "features": extractor.label,
            "num_samples": len(generated),
            "num_train": len(real),
            "train_fingerprint": real.fingerprint,
            **extractor.compare(generated, real_images, test),
            **own_features(config, found, expected),
            "nfe": float(np.mean(np.concatenate([batch["nfe"] for batch in drawn]))),
        }

    return judged


def inception_judge(
    config: ml_collections.ConfigDict,
) -> Callable[[Iterator[dict[str, np.ndarray]]], Results]:
    """Judges sets of generated images by Inception, which is read once, as are its statistics."""
    judge = Judge(config)

    def judged(batches: Iterator[dict[str, np.ndarray]]) -> Results:
        judge.begin()
        nfe: list[np.ndarray] = []
        for batch in batches:
            judge.add(batch["image"])
            nfe.append(batch["nfe"])
        return {**judge.results(), "nfe": float(np.mean(np.concatenate(nfe)))}

    return judged
