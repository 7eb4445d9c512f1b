"""How good generated images are, by the features of a network: FID and its kin.

A `Judge` is made before anything is drawn, so that whatever is wrong is refused at once; it takes
generated images batch by batch and compares them with the statistics of the data set, which a file
holds or the training images give. Only what the asked metrics need is kept in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import data
import parallel
import reports
from data import transforms
from metrics import frechet, inception, inception_score, kernel, manifold, statistics
from metrics.frechet import Gaussian, Moments
from metrics.statistics import Origin, Statistics

Results = dict[str, Any]

FEATURES = ("auto", "inception", "classifier")
PER_DEVICE = 32  # images in one call of Inception
PENDING = 1024  # images whose features are summed up together


def uses_inception(config: ml_collections.ConfigDict) -> bool:
    """Whether generated images are compared by Inception's features; else by the data set's own.

    Raises:
      ValueError: an unknown `eval.features`, or one that this data set cannot have.
    """
    choice, dataset = config.eval.features, config.data.dataset
    if choice not in FEATURES:
        raise ValueError(f"unknown eval.features {choice!r}: it is one of {', '.join(FEATURES)}")
    if not data.grey_levels(dataset):
        if choice != "auto":
            raise ValueError(
                f"eval.features is {choice!r}, but {dataset} has points, which are compared as "
                "they are; it must be 'auto'"
            )
        return False
    return choice == "inception" or (choice == "auto" and config.data.num_channels == 3)


# --- metrics ---


class Collected:
    """Outputs of a network for one set of images: their moments, and those that are kept whole."""

    def __init__(self, moments: Collection[str], keep: Collection[str]) -> None:
        self.summed: dict[str, Moments | None] = dict.fromkeys(moments)
        self.kept: dict[str, list[np.ndarray]] = {name: [] for name in keep}
        self.pending: list[dict[str, np.ndarray]] = []
        self.count = 0

    def add(self, outputs: dict[str, np.ndarray]) -> None:
        """Takes in outputs [b, ...] of the next b images."""
        before = self.count // PENDING
        self.pending.append({name: outputs[name] for name in {*self.summed, *self.kept}})
        self.count += len(outputs["pool"])
        if self.count // PENDING > before:
            self.sum_up()

    def sum_up(self) -> None:
        """Moments of what has come since the last time: large sums are cheaper than many."""
        if not self.pending:
            return
        for name, so_far in self.summed.items():
            moments = Moments.of(np.concatenate([outputs[name] for outputs in self.pending]))
            self.summed[name] = so_far.merge(moments) if so_far else moments
        for name, parts in self.kept.items():
            parts += [outputs[name] for outputs in self.pending]
        self.pending = []

    def gaussian(self, name: str) -> Gaussian:
        """Mean and covariance of an output."""
        self.sum_up()
        moments = self.summed[name] or Moments.empty(0)
        return Gaussian(moments.mean, moments.covariance)

    def array(self, name: str) -> np.ndarray:
        """An output that was kept, [n, ...]."""
        self.sum_up()
        return np.concatenate(self.kept[name])


def _fid(found: Collected, real: Statistics, options: Any) -> Results:
    results: Results = {"fid": frechet.frechet_distance(found.gaussian("pool"), real.pool)}
    if options.bootstrap:
        results["fid_stderr"] = frechet.bootstrap_error(
            found.array("pool"), real.pool, options.bootstrap, options.seed
        )
        results["fid_stderr_draws"] = options.bootstrap
    return results


def _fid_infinity(found: Collected, real: Statistics, options: Any) -> Results:
    line = frechet.extrapolated_distance(found.array("pool"), real.pool, seed=options.seed)
    return {
        "fid_infinity": line.distance,
        "fid_infinity_sizes": line.sizes.tolist(),
        "fid_infinity_values": line.values.tolist(),
    }


def _sfid(found: Collected, real: Statistics, options: Any) -> Results:
    del options
    assert real.spatial is not None
    return {"sfid": frechet.frechet_distance(found.gaussian("spatial"), real.spatial)}


def _inception_score(found: Collected, real: Statistics, options: Any) -> Results:
    del real, options
    score = inception_score.inception_score(found.array("logits"))
    return {
        "inception_score": score.mean,
        "inception_score_std": score.std,
        "inception_score_splits": score.splits,
    }


def _kid(found: Collected, real: Statistics, options: Any) -> Results:
    assert real.features is not None
    distance = kernel.kernel_distance(found.array("pool"), real.features, seed=options.seed)
    return {
        "kid": distance.mean,
        "kid_std": distance.std,
        "kid_subsets": distance.subsets,
        "kid_subset_size": distance.size,
    }


def _precision_recall(found: Collected, real: Statistics, options: Any) -> Results:
    del options
    assert real.features is not None
    return manifold.precision_recall(real.features, found.array("pool"))._asdict()


def _density_coverage(found: Collected, real: Statistics, options: Any) -> Results:
    del options
    assert real.features is not None
    return manifold.density_coverage(real.features, found.array("pool"))._asdict()


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by its function.

    Attributes:
      compute: numbers by name, from the generated images, the data set's statistics, config.eval.
      output: of the network, that it compares: "pool", "logits" (Inception) or "spatial" (too).
      keep: whether it needs the outputs themselves; else their moments.
      real: whether it needs the features of the real images themselves.
      least: the smallest number of images that it can be computed of.
    """

    compute: Callable[[Collected, Statistics, Any], Results]
    output: str = "pool"
    keep: bool = False
    real: bool = False
    least: int = 2


METRICS: dict[str, Metric] = {
    "fid": Metric(_fid),
    "inception_score": Metric(_inception_score, "logits", keep=True, least=10),
    "kid": Metric(_kid, keep=True, real=True, least=1000),
    "precision_recall": Metric(_precision_recall, keep=True, real=True, least=4),
    "density_coverage": Metric(_density_coverage, keep=True, real=True, least=6),
    "sfid": Metric(_sfid, "spatial"),
    "fid_infinity": Metric(_fid_infinity, keep=True, least=30),
}


def asked(config: ml_collections.ConfigDict) -> dict[str, Metric]:
    """`eval.metrics`, looked up.

    Raises:
      ValueError: an unknown one, one that needs Inception where that is not used, or fewer samples
        than one needs.
    """
    options = config.eval
    for name in options.metrics:
        if name not in METRICS:
            raise ValueError(
                f"unknown metric {name!r} in eval.metrics; known: {', '.join(METRICS)}"
            )
        if METRICS[name].output != "pool" and not uses_inception(config):
            raise ValueError(
                f"eval.metrics has {name}, which needs --config.eval.features=inception"
            )
        _refuse_few(name, options.num_samples, f"eval.num_samples is {options.num_samples}")
    return {name: METRICS[name] for name in options.metrics}


def _refuse_few(name: str, count: int, found: str) -> None:
    if count < METRICS[name].least:
        raise ValueError(
            f"eval.metrics has {name}, which needs {METRICS[name].least} images or more; {found}"
        )


def own_features(
    config: ml_collections.ConfigDict, found: np.ndarray, expected: np.ndarray
) -> Results:
    """The metrics of `eval.metrics` beside the Fréchet distance, on the data set's own features.

    `found [n, d]` are of generated images or points, `expected [m, d]` of real ones. The names
    begin with where the features are from: "classifier_kid".
    """
    metrics = asked(config)
    metrics.pop("fid", None)
    kind = "classifier" if data.grey_levels(config.data.dataset) else "coordinates"
    generated = Collected(["pool"], ["pool"])
    generated.add({"pool": found})
    moments = Moments.of(expected)
    real = Statistics(Gaussian(moments.mean, moments.covariance), None, expected, Origin())
    return {
        f"{kind}_{name}": value
        for metric in metrics.values()
        for name, value in metric.compute(generated, real, config.eval).items()
    }


# --- Inception on all devices ---


class Extractor:
    """Images of the config's data set to Inception's outputs, batch by batch, on all devices.

    Raises:
      FileNotFoundError: the network's weights are not here and cannot be downloaded.
      ValueError: they are damaged; an unknown resize; grey images without `eval.repeat_grey`.
    """

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        options, section = config.eval, config.data
        inception.check_resize(options.resize)
        if section.num_channels != 3 and not (section.num_channels == 1 and options.repeat_grey):
            raise ValueError(
                f"Inception sees colour images, and those of {section.dataset} have "
                f"{section.num_channels} channel(s); --config.eval.repeat_grey=True repeats one"
            )
        weights = inception.load_weights(options.inception_path)
        self.origin = Origin(inception.NAME, weights.sha256, options.resize)
        self.params = parallel.replicate(weights.params)
        levels = data.grey_levels(section.dataset)

        def outputs(params: Any, indices: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
            del indices
            pixels = transforms.to_display(images, levels)
            if pixels.shape[-1] == 1:
                pixels = jnp.repeat(pixels, 3, axis=-1)
            return inception.apply(params, pixels, options.resize)._asdict()

        self.run = parallel.ImageMap(outputs, PER_DEVICE * jax.device_count(), "images")

    @property
    def label(self) -> str:
        """What must stand beside every number made with these features."""
        return (
            f"features: {self.origin.network}, weights {self.origin.weights_sha256[:8]}, "
            f"{self.origin.resize} resize"
        )

    def __call__(self, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Outputs [b, ...] by name of stored images [n, H, W, C], in order."""
        for _, outputs in self.run(self.params, np.arange(len(images)), images):
            yield outputs

    def see(self, dataset: data.Dataset, count: int, collected: Collected) -> None:
        """Adds the first `count` images of a data set to `collected`."""
        with parallel.progress(count, f"Inception of {dataset.name}", "img") as bar:
            for start in range(0, count, self.run.batch_size):
                rows = np.arange(start, min(start + self.run.batch_size, count))
                for outputs in self(dataset.take(rows)[0]):
                    collected.add(outputs)
                bar.update(len(rows))


# --- statistics of the data set ---


def make_statistics(
    extractor: Extractor, dataset: data.Dataset, count: int, path: str = ""
) -> Statistics:
    """Sees the first `count` images and writes their statistics; the features come with them.

    Without a path they go to the cache, where `reference` looks for them.
    """
    collected = Collected(["pool", "spatial"], ["pool"])
    extractor.see(dataset, count, collected)
    origin = origin_of(extractor, dataset, count)
    pool, spatial = (collected.gaussian(name) for name in ("pool", "spatial"))
    made = Statistics(pool, spatial, collected.array("pool"), origin)
    file = pathlib.Path(path or cache_file(origin))
    statistics.write(file, made)  # on every host, in one move: they may share a disk or not
    return dataclasses.replace(statistics.read(file), features=made.features)


def origin_of(extractor: Extractor, dataset: data.Dataset, count: int) -> Origin:
    """Of the statistics of the first `count` images."""
    return dataclasses.replace(
        extractor.origin,
        dataset=f"{dataset.name}/{dataset.split}",
        fingerprint=dataset.fingerprint,
        images=count,
    )


def cache_file(origin: Origin) -> pathlib.Path:
    """Where statistics of that origin are kept."""
    key = json.dumps(dataclasses.asdict(origin)).encode()
    name = f"{origin.dataset.replace('/', '-')}-{hashlib.sha256(key).hexdigest()[:16]}.npz"
    return data.default_folder() / "statistics" / name


def training_images(config: ml_collections.ConfigDict) -> tuple[data.Dataset, int]:
    """The training images, and how many of them statistics are of: `eval.stats_images`, or all.

    Raises:
      ValueError: fewer than asked for.
    """
    dataset = data.from_config(config, "train")
    count = config.eval.stats_images or len(dataset)
    if count > len(dataset):
        raise ValueError(
            f"eval.stats_images is {count}, but {dataset.name}/train has {len(dataset)} images"
        )
    return dataset, count


def reference(
    config: ml_collections.ConfigDict, extractor: Extractor, with_features: bool
) -> Statistics:
    """The statistics that `eval.stats_path` names, or those of the training images.

    The latter are made once and cached. `with_features` asks for the features of single images too,
    which few files have: they are computed again.

    Raises:
      FileNotFoundError: no such file.
      ValueError: statistics that were made otherwise, or of fewer images than asked.
    """
    options = config.eval
    if options.stats_path:
        stored = statistics.read(options.stats_path)
        name = f"{config.data.dataset.lower()}/train"
        expected = dataclasses.replace(extractor.origin, dataset=name, images=options.stats_images)
        statistics.check(stored, expected, inception.NUM_FEATURES)
        if not with_features or stored.features is not None:
            return stored
        dataset, count = training_images(config)
        statistics.check(stored, origin_of(extractor, dataset, count), inception.NUM_FEATURES)
    else:
        dataset, count = training_images(config)
        origin = origin_of(extractor, dataset, count)
        if not parallel.on_all(cache_file(origin).is_file()):
            return make_statistics(extractor, dataset, count)
        stored = statistics.read(cache_file(origin))
        statistics.check(stored, origin, inception.NUM_FEATURES)
        if not with_features:
            return stored
    collected = Collected([], ["pool"])
    extractor.see(dataset, count, collected)
    return dataclasses.replace(stored, features=collected.array("pool"))


def write_statistics(config: ml_collections.ConfigDict) -> Statistics:
    """`--mode=stats`: statistics of the config's training images, into `eval.stats_path` or the
    cache.

    Raises:
      ValueError: a data set that is not compared by Inception's features, a file that is there
        already, or as of `Extractor`.
    """
    if not uses_inception(config):
        raise ValueError(
            f"statistics are of Inception's features, and {config.data.dataset} is compared by "
            "its own; ask for them with --config.eval.features=inception"
        )
    if config.eval.stats_path and pathlib.Path(config.eval.stats_path).expanduser().exists():
        raise ValueError(
            f"{config.eval.stats_path} is there already; remove it, or name another file with "
            "--config.eval.stats_path"
        )
    dataset, count = training_images(config)
    made = make_statistics(Extractor(config), dataset, count, config.eval.stats_path)
    if parallel.is_primary():
        print(reports.table(statistics_rows(made)))
    return made


def statistics_rows(found: Statistics) -> list[tuple[str, str]]:
    """What is printed about statistics."""
    origin = found.origin
    images = f"{origin.images} images" if origin.images else "of an unknown number of images"
    rows = [
        ("statistics", f"{found.path} ({found.form}), SHA-256 {found.sha256[:16]}"),
        ("  made from", f"{images} of {origin.dataset or 'an unknown data set'}"),
    ]
    if origin.network:
        network = f"{origin.network}, weights {origin.weights_sha256[:8]}, {origin.resize} resize"
        rows.append(("  made by", network))
    return rows


# --- the judge ---


class Judge:
    """Generated images against the data set, by Inception's features.

    Raises:
      FileNotFoundError: weights or statistics that are not here.
      ValueError: metrics that cannot be computed, or statistics that do not fit.
    """

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self.options = config.eval
        self.metrics = asked(config)
        self.extractor = Extractor(config)
        with_features = any(metric.real for metric in self.metrics.values())
        self.real = reference(config, self.extractor, with_features)
        if "sfid" in self.metrics and self.real.spatial is None:
            raise ValueError(
                f"eval.metrics has sfid, but {self.real.path} has no mu_s and sigma_s; "
                "--mode=stats makes statistics that have them"
            )
        for name, metric in self.metrics.items():
            if metric.real and self.real.features is not None:
                count = len(self.real.features)
                _refuse_few(name, count, f"of the data set there are {count}")
        self.begin()

    def begin(self) -> None:
        """Forgets the images that were added: those to come are a set of their own."""
        used = self.metrics.values()
        keep = {metric.output for metric in used if metric.keep}
        if "fid" in self.metrics and self.options.bootstrap:
            keep.add("pool")
        moments = {metric.output for metric in used if not metric.keep}
        self.generated = Collected(moments, keep)
        self.seconds = 0.0

    def add(self, images: np.ndarray) -> None:
        """Takes in the next generated images, as the data set stores them."""
        began = time.monotonic()
        for outputs in self.extractor(images):
            self.generated.add(outputs)
        self.seconds += time.monotonic() - began

    def results(self) -> Results:
        """The numbers, and what they were made from."""
        began = time.monotonic()
        if self.generated.count != self.options.num_samples:
            raise ValueError(
                f"eval.num_samples is {self.options.num_samples}, but "
                f"{self.generated.count} images were judged"
            )
        numbers: Results = {}
        for metric in self.metrics.values():
            numbers |= metric.compute(self.generated, self.real, self.options)
        real = self.real
        return numbers | {
            "metrics": list(self.metrics),
            "features": self.extractor.label,
            "inception": {
                "network": self.extractor.origin.network,
                "weights_sha256": self.extractor.origin.weights_sha256,
                "resize": self.extractor.origin.resize,
            },
            "statistics": {
                "path": real.path,
                "sha256": real.sha256,
                "form": real.form,
                **dataclasses.asdict(real.origin),
            },
            "real_features": 0 if real.features is None else len(real.features),
            "num_samples": self.generated.count,
            "features_seconds": self.seconds + time.monotonic() - began,
        }


def rows(results: Results) -> list[tuple[str, str]]:
    """What is printed of a judge's results, or of `own_features`: every number with its making."""
    kinds = {"": "", "classifier_": " (classifier)", "coordinates_": " (coordinates)"}
    found = [row for prefix, note in kinds.items() for row in _number_rows(results, prefix, note)]
    if "statistics" in results:
        stored = dict(results["statistics"])
        path, sha256, form = (stored.pop(name) for name in ("path", "sha256", "form"))
        empty = Gaussian(np.zeros(0), np.zeros((0, 0)))
        real = Statistics(empty, None, None, Origin(**stored), form, path, sha256)
        found += [("  measured on", results["features"]), *statistics_rows(real)]
    return found


def _number_rows(results: Results, prefix: str, note: str) -> list[tuple[str, str]]:
    """The numbers whose names begin with `prefix`."""

    def of(name: str) -> Any:
        return results[f"{prefix}{name}"]

    generated = f"{results['num_samples']} generated"
    both = f"{generated}, {results.get('real_features') or results.get('num_train')} real"
    few = ", fewer than 50000 raise it" if results["num_samples"] < 50000 else ""
    found = []
    if f"{prefix}fid" in results:
        error, draws = "", ""
        if f"{prefix}fid_stderr" in results:
            error = f" ± {of('fid_stderr'):.3f}"
            draws = f", {of('fid_stderr_draws')} bootstrap draws"
        found.append((f"FID{note}", f"{of('fid'):.3f}{error}  ({generated}{few}{draws})"))
    if f"{prefix}fid_infinity" in results:
        sizes = of("fid_infinity_sizes")
        line = f"line through {len(sizes)} subsets of {sizes[0]} to {sizes[-1]}"
        found.append((f"FID-infinity{note}", f"{of('fid_infinity'):.3f}  ({line})"))
    if f"{prefix}sfid" in results:
        found.append((f"sFID{note}", f"{of('sfid'):.3f}  ({generated}{few})"))
    if f"{prefix}inception_score" in results:
        score = f"{of('inception_score'):.3f} ± {of('inception_score_std'):.3f}"
        splits = f"{of('inception_score_splits')} splits"
        found.append((f"Inception Score{note}", f"{score}  ({generated}, {splits})"))
    if f"{prefix}kid" in results:
        drawn = f"{of('kid_subsets')} subsets of {of('kid_subset_size')}"
        value = f"{of('kid'):.5f} ± {of('kid_std'):.5f}"
        found.append((f"KID{note}", f"{value}  ({both}, {drawn})"))
    for names in (("precision", "recall"), ("density", "coverage")):
        if f"{prefix}{names[0]}" in results:
            first, second = (of(name) for name in names)
            k = 3 if names[0] == "precision" else 5
            title = f"{names[0]}, {names[1]}{note}"
            found.append((title, f"{first:.4f}, {second:.4f}  ({both}, k = {k})"))
    return found
