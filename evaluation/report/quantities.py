"""Every number that an evaluation can make, once.

An entry of `QUANTITIES` has all that console, results.json's readers and page need to know of a
number; a function of `evaluation.metrics` makes its value. Its name is that in results.json.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from evaluation.metrics.frechet import SPLITS
from evaluation.metrics.manifold import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS

Results = Mapping[str, Any]
SAMPLED = ("samples", "matched samples", "pixels")  # sources that depend on a sampler and its seed
OF_DATA = ("real", "real pixels")  # those that do not depend on the network


class Quantity(NamedTuple):
    """A number of results.json.

    Attributes:
      title: what the field calls it, with its unit where it has one ("Bits/dim").
      source: what it is made from: a key of `facts.FACTS`.
      digits: after the point.
      note: the console's words on how it was made, from a `Number`.
      better: "lower", "higher", or "" where a perfect generator has it too.
      error: the ending of the name of its error bar, and what that is, if it may have one.
      leading: True if it stands on top of the page, and in tables of several evaluations.
    """

    title: str
    source: str
    digits: int
    note: Callable[[Number], str]
    better: str = "lower"
    error: tuple[str, str] = ("", "")
    leading: bool = False


@dataclasses.dataclass(frozen=True)
class Number:
    """A quantity with its value in some results.

    Attributes:
      name: in results.json, "classifier_kid".
      quantity: its entry, that of "kid".
      features: a key of `FEATURES`, "classifier".
      results: the whole of them.
    """

    name: str
    quantity: Quantity
    features: str
    results: Results

    def __getitem__(self, name: str) -> Any:
        """Another entry of the results: with the prefix of the features, or else without."""
        prefixed = f"{self.features}_{name}"
        return self.results[prefixed if prefixed in self.results else name]

    @property
    def title(self) -> str:
        return f"{self._title}{FEATURES[self.features].words}"

    @property
    def label(self) -> str:
        """The title, short enough for a column of the console."""
        return f"{self._title}{self.features and f' ({self.features})'}"

    @property
    def _title(self) -> str:
        """The quantity's title of these features."""
        return FEATURES[self.features].titles.get(self.quantity.title, self.quantity.title)

    @property
    def value(self) -> float:
        return self.results[self.name]

    @property
    def error(self) -> float | None:
        """The error bar, or None if there is none that is finite."""
        ending, _ = self.quantity.error
        error = self.results.get(self.name + ending) if ending else None
        return error if error is not None and math.isfinite(error) else None

    @property
    def note(self) -> str:
        return self.quantity.note(self)


class Features(NamedTuple):
    """Features by which samples are compared.

    Attributes:
      words: behind the titles of their numbers.
      titles: of numbers whose names would say that they are of Inception.
    """

    words: str
    titles: Mapping[str, str] = {}


_OF_OTHERS = {"FID": "FD", "FID-infinity": "FD-infinity", "KID": "KD"}
# By the beginning of a number's name; "" is Inception.
FEATURES = {
    "": Features(""),
    "classifier": Features(" (features of the data set's classifier)"),
    "coordinates": Features(" (coordinates)"),
    "dinov2": Features(" (DINOv2)", _OF_OTHERS),
    "clip": Features(" (CLIP)", _OF_OTHERS),
}


def _biased(of: Number) -> str:
    few = ", fewer than 50000 raise it" if of["num_samples"] < 50000 else ""
    return f"{of['num_samples']} generated{few}"


def _fid(of: Number) -> str:
    draws = f", {of['fid_stderr_draws']} bootstrap draws" if of.error is not None else ""
    return _biased(of) + draws


def _fid_infinity(of: Number) -> str:
    sizes = of["fid_infinity_sizes"]
    return f"line through {len(sizes)} subsets of {sizes[0]} to {sizes[-1]}"


def _inception_score(of: Number) -> str:
    return f"{of['num_samples']} generated, {of['inception_score_splits']} splits"


def _generated_and_real(of: Number) -> str:
    real = of.results.get("real_features") or of.results.get("num_train")
    return f"{of['num_samples']} generated, {real} real"


def _kid(of: Number) -> str:
    return f"{_generated_and_real(of)}, {of['kid_subsets']} subsets of {of['kid_subset_size']}"


def _neighbours(k: int) -> Callable[[Number], str]:
    return lambda of: f"{_generated_and_real(of)}, k = {k}"


def _equal_numbers(of: Number) -> str:
    size = of["frechet_samples_real"]
    return f"{size} and {size}, {SPLITS} draws"


def _cmmd(of: Number) -> str:
    return f"{_generated_and_real(of)}, sigma = 10, times 1000"


def _told_apart(of: Number) -> str:
    return f"{of['c2st_each']} generated, {of['c2st_each']} real; 0.5 is best"


def _likelihood(of: Number) -> str:
    name = of.name
    return (
        f"{of[f'{name}_images']} {of[f'{name}_split']} {of['examples']}, {of['likelihood_of']}, "
        f"{of[f'{name}_nfe']:.0f} NFE, {of['likelihood_seconds']:.0f} s"
    )


def _bound(of: Number) -> str:
    return f"variational, {of[f'{of.name}_draws']} draws per image"


def _calibration(of: Number) -> str:
    name = of.name
    return (
        f"{of[f'{name}_images']} {of['examples']}, exact {of[f'{name}_exact']:.4f}, "
        f"{of[f'{name}_spread']:.2g} for one"
    )


def _z_score(of: Number) -> str:
    return "difference over its standard error; beyond 3 is no chance"


def _straightness(of: Number) -> str:
    return f"{of['straightness_images']} paths, {of['straightness_nfe']:.0f} NFE; 0 is straight"


def _all_generated(of: Number) -> str:
    return f"{of['num_samples']} generated, {of['num_train']} train"


def _test_to_train(of: Number) -> str:
    return f"{of['num_test']} test"


def _loss(of: Number) -> str:
    return f"{of['loss_images']} test {of['examples']}"


def _memorised(of: Number) -> str:
    return f"{_generated_and_real(of)}; ratio of nearest distances below 1/3"


def _nearest(of: Number) -> str:
    images, train = of["memorisation_images"], of["memorisation_num_train"]
    return f"{images} generated, {train} train; white is 1"


def _nearest_of_test(of: Number) -> str:
    return f"{of['memorisation_real_images']} test, {of['memorisation_num_train']} train"


def _memorised_pixels(of: Number) -> str:
    return f"{_nearest(of).partition(';')[0]}; ratio of nearest distances below 1/3"


QUANTITIES: dict[str, Quantity] = {
    "fid": Quantity(
        "FID", "samples", 3, _fid, error=("_stderr", "bootstrap over samples"), leading=True
    ),
    "fid_infinity": Quantity("FID-infinity", "samples", 3, _fid_infinity),
    "sfid": Quantity("sFID", "samples", 3, _biased),
    "inception_score": Quantity(
        "Inception Score", "samples", 3, _inception_score, "higher", ("_std", "over splits"), True
    ),
    "kid": Quantity("KID", "samples", 5, _kid, error=("_std", "over subsets")),
    "cmmd": Quantity("CMMD", "samples", 3, _cmmd),
    "precision": Quantity("Precision", "samples", 4, _neighbours(PRECISION_NEIGHBOURS), "higher"),
    "recall": Quantity("Recall", "samples", 4, _neighbours(PRECISION_NEIGHBOURS), "higher"),
    "density": Quantity("Density", "samples", 4, _neighbours(DENSITY_NEIGHBOURS), "higher"),
    "coverage": Quantity("Coverage", "samples", 4, _neighbours(DENSITY_NEIGHBOURS), "higher"),
    "frechet_distance": Quantity("Fréchet distance", "samples", 2, _all_generated, leading=True),
    "frechet_distance_matched": Quantity(
        title="Fréchet distance, equal numbers",
        source="matched samples",
        digits=2,
        note=_equal_numbers,
        error=("_std", "over draws"),
    ),
    "frechet_distance_real": Quantity(
        title="Fréchet distance, train to train",
        source="real",
        digits=2,
        note=_equal_numbers,
        better="",
        error=("_std", "over draws"),
    ),
    "memorised": Quantity("Memorised", "samples", 4, _memorised),
    "memorised_pixels": Quantity("Memorised, by pixels", "pixels", 4, _memorised_pixels),
    "memorised_pixels_real": Quantity(
        "Memorised, by pixels, test to train", "real pixels", 4, _nearest_of_test, ""
    ),
    "nearest_pixels": Quantity("Distance to the nearest image", "pixels", 4, _nearest, ""),
    "nearest_pixels_real": Quantity(
        "Distance to the nearest image, test to train", "real pixels", 4, _nearest_of_test, ""
    ),
    "c2st": Quantity("C2ST", "samples", 3, _told_apart),
    "sliced_wasserstein": Quantity("Sliced Wasserstein distance", "samples", 4, _all_generated),
    "sliced_wasserstein_real": Quantity(
        "Sliced Wasserstein distance, test to train", "real", 4, _test_to_train, ""
    ),
    "bits_per_dim": Quantity(
        "Bits/dim", "likelihood", 3, _likelihood, error=("_stderr", "over images"), leading=True
    ),
    "bits_per_dim_bound": Quantity(
        "Bits/dim, variational bound", "likelihood", 3, _bound, error=("_stderr", "over images")
    ),
    "bits_per_dim_calibration": Quantity(
        "Bits/dim, estimate less exact trace",
        *("calibration", 4, _calibration, ""),
        error=("_stderr", "over images"),
    ),
    "bits_per_dim_calibration_z": Quantity(
        "Bits/dim, z-score of the estimate", "calibration", 2, _z_score, ""
    ),
    "nats_per_dim": Quantity(
        "Nats/dim", "likelihood", 3, _likelihood, error=("_stderr", "over points"), leading=True
    ),
    "nats_per_dim_bound": Quantity(
        "Nats/dim, variational bound", "likelihood", 3, _bound, error=("_stderr", "over points")
    ),
    "nats_per_dim_calibration": Quantity(
        "Nats/dim, estimate less exact trace",
        *("calibration", 4, _calibration, ""),
        error=("_stderr", "over points"),
    ),
    "nats_per_dim_calibration_z": Quantity(
        "Nats/dim, z-score of the estimate", "calibration", 2, _z_score, ""
    ),
    "straightness": Quantity(
        "Straightness of the flow", "paths", 4, _straightness, error=("_stderr", "over paths")
    ),
    "loss": Quantity("Test loss", "loss", 4, _loss, leading=True),
}


def numbers(results: Results) -> dict[str, Number]:
    """The numbers that `results` hold, by their names there."""
    return {
        name: Number(name, quantity, features, results)
        for unprefixed, quantity in QUANTITIES.items()
        for features in FEATURES
        if (name := _named(features, unprefixed)) in results
    }


def _named(features: str, name: str) -> str:
    """The name of a number of some features in results.json."""
    return f"{features}_{name}" if features else name


def data_words(facts: Mapping[str, Any]) -> str:
    """A data set in words, from `Dataset.facts` or `Statistics.facts`: its name, the folder of a
    user's images, their shape, and how they came to have it."""
    words = [facts["dataset"] or "an unknown data set"]
    if facts.get("folder"):
        words[0] += f" ({facts['folder']})"
    sides = ("image_size", "image_size", "channels")
    shape = facts["shape"] if "shape" in facts else [facts[s] for s in sides if s in facts]
    if any(shape):  # files of earlier versions do not say it
        words.append("x".join(map(str, shape)))
    if facts.get("transform"):
        words.append(facts["transform"])
    return ", ".join(words)


def other_training_data(results: Results) -> bool:
    """True if a run is compared with another data set than the one it was trained on, or with a
    user's own images from another folder."""
    names = [results[name] for name in ("dataset", "trained_on") if name in results]
    return len({name.lower() for name in names}) > 1 or "trained_on_folder" in results


def training_data(results: Results) -> list[str]:
    """The data set that a run is compared with, and the one it was trained on, in words."""
    folders = {name: results.get(f"{name}_folder", "") for name in ("dataset", "trained_on")}
    return [results[name] + (f" ({folder})" if folder else "") for name, folder in folders.items()]


def leading() -> list[str]:
    """The names of the numbers that stand first, in their order, of whichever features."""
    names = [name for name, quantity in QUANTITIES.items() if quantity.leading]
    return [_named(features, name) for name in names for features in FEATURES]


def of_samples(results: Results) -> list[str]:
    """The names of numbers that depend on what was sampled, and so on the seed."""
    present = numbers(results).items()
    return [name for name, number in present if number.quantity.source in SAMPLED]


def decimals(value: float, least: int) -> int:
    """Digits after the point: `least`, or as many as show two that are not 0."""
    small = -math.floor(math.log10(abs(value))) + 1 if value and math.isfinite(value) else 0
    return max(least, small)


def text(value: float, least: int, error: float | None = None) -> str:
    """A value with at least so many digits after the point, and its error bar: "2.346 ± 0.032"."""
    digits = decimals(value, least)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
