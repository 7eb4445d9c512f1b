"""The numbers that an evaluation can make, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Results = Mapping[str, Any]


class Quantity(NamedTuple):
    """A number of `results.json`.

    Attributes:
      title: what it is called.
      of: what it is made from: "samples", "real" images alone, "likelihood" or "loss".
      digits: after the point.
      higher: whether more is better.
      error: the ending of the name of its error bar, if it may have one, and
      error_of: what that is.
    """

    title: str
    of: str
    digits: int
    higher: bool = False
    error: str = ""
    error_of: str = ""


QUANTITIES: dict[str, Quantity] = {
    "fid": Quantity("FID", "samples", 3, False, "_stderr", "bootstrap over samples"),
    "fid_infinity": Quantity("FID-infinity", "samples", 3),
    "sfid": Quantity("sFID", "samples", 3),
    "inception_score": Quantity("Inception Score", "samples", 3, True, "_std", "over splits"),
    "kid": Quantity("KID", "samples", 5, False, "_std", "over subsets"),
    "precision": Quantity("Precision", "samples", 4, True),
    "recall": Quantity("Recall", "samples", 4, True),
    "density": Quantity("Density", "samples", 4, True),
    "coverage": Quantity("Coverage", "samples", 4, True),
    "frechet_distance": Quantity("Fréchet distance", "samples", 2),
    "frechet_distance_matched": Quantity(
        "Fréchet distance, equal numbers", "samples", 2, False, "_std", "over draws"
    ),
    "frechet_distance_real": Quantity(
        "Fréchet distance, train to train", "real", 2, False, "_std", "over draws"
    ),
    "sliced_wasserstein": Quantity("Sliced Wasserstein distance", "samples", 4),
    "sliced_wasserstein_real": Quantity("Sliced Wasserstein distance, test to train", "real", 4),
    "bits_per_dim": Quantity("Bits/dim", "likelihood", 3, False, "_stderr", "over images"),
    "bits_per_dim_bound": Quantity(
        "Bits/dim, variational bound", "likelihood", 3, False, "_stderr", "over images"
    ),
    "nats_per_dim": Quantity("Nats/dim", "likelihood", 3, False, "_stderr", "over points"),
    "nats_per_dim_bound": Quantity(
        "Nats/dim, variational bound", "likelihood", 3, False, "_stderr", "over points"
    ),
    "loss": Quantity("Test loss", "loss", 4),
}
FEATURES = {
    "": "",
    "classifier_": " (features of the data set's classifier)",
    "coordinates_": " (coordinates)",
}
LEADING = ("fid", "frechet_distance", "inception_score", "bits_per_dim", "nats_per_dim", "loss")


def found(results: Results) -> dict[str, Quantity]:
    """The quantities that are in `results`, by their names there."""
    names = {}
    for prefix, note in FEATURES.items():
        for name, quantity in QUANTITIES.items():
            if prefix + name in results:
                names[prefix + name] = quantity._replace(title=quantity.title + note)
    return names


def of_samples(results: Results) -> list[str]:
    """The names of numbers that depend on what was sampled, and so on the seed."""
    return [name for name, quantity in found(results).items() if quantity.of == "samples"]
