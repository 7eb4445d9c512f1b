"""Statistics of a data set's Inception features: files of every form in use, and our own.

The arrays that an npz file holds tell its form:

| arrays | written by | what they are |
| --- | --- | --- |
| `mu`, `sigma` | pytorch-fid and most others | mean [d], covariance [d, d] of the pool features |
| also `mu_s`, `sigma_s` | guided-diffusion | those of the spatial features, for sFID |
| `pool_3` | score_sde | the pool features themselves, [n, d] |
| `mu`, `sigma`, `mu_s`, `sigma_s`, `origin` | this project | `origin` is JSON: see `Origin` |

so that the others read our files too. Nothing in a file is unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from evaluation.metrics.moments import Gaussian, Moments
from runtime import errors, files

_NAMES = ("mu", "sigma", "mu_s", "sigma_s", "pool_3", "origin")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The making of features; "" or 0 where nobody knows.

    Attributes:
      network: its name.
      weights_sha256: of the file of its weights.
      resize: how images became as large as the network wants them.
      dataset: name of the data set and split, "cifar10/train".
      fingerprint: of the data set's examples.
      images: how many of them.
    """

    network: str = ""
    weights_sha256: str = ""
    resize: str = ""
    dataset: str = ""
    fingerprint: str = ""
    images: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of features, and what they are from.

    Attributes:
      pool: of the 2048 features.
      spatial: of the spatial ones, where there are any.
      features: the pool features [n, d] themselves, where there are any.
      origin: their making.
      form: which of the forms above.
      path, sha256: of the file; "" before there is one.
    """

    pool: Gaussian
    spatial: Gaussian | None
    features: np.ndarray | None
    origin: Origin
    form: str = ""
    path: str = ""
    sha256: str = ""

    def facts(self) -> dict[str, Any]:
        """The file's path, SHA-256 and form, and its origin, as they stand in results.json."""
        file = {"path": self.path, "sha256": self.sha256, "form": self.form}
        return file | dataclasses.asdict(self.origin)


def read(path: str | os.PathLike[str]) -> Statistics:
    """The statistics in a file of any form above.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, one in no known form, or numbers that are no mean and covariance.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there are no statistics; --mode=stats makes them")
    arrays, origin = _read_arrays(path)
    features = spatial = None
    if {"mu", "sigma"} <= arrays.keys():
        form = "mu, sigma"
        pool = _gaussian(path, arrays, "")
        if {"mu_s", "sigma_s"} <= arrays.keys():
            form += ", mu_s, sigma_s"
            spatial = _gaussian(path, arrays, "_s")
    elif "pool_3" in arrays:
        form = "pool_3"
        features = arrays["pool_3"]
        try:
            moments = Moments.of(features)
            pool = Gaussian(moments.mean, moments.covariance)
        except ValueError as error:
            raise ValueError(f"{path}: pool_3: {error}") from error
        origin = dataclasses.replace(origin, images=len(features))
    else:
        raise ValueError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; statistics are mu and sigma, "
            "or pool_3"
        )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Statistics(pool, spatial, features, origin, form, str(path), sha256)


def _read_arrays(path: pathlib.Path) -> tuple[dict[str, Any], Origin]:
    """The arrays of a file by name, None those that no form has, and their origin."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] if name in _NAMES else None for name in stored.files}
            for name, array in arrays.items():
                if array is not None and not isinstance(array, np.ndarray):  # as bytes
                    raise ValueError(f"{name} is no array")
            origin = Origin(**json.loads(str(arrays["origin"]))) if "origin" in arrays else Origin()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged: {errors.one_line(error, 200)}") from error
    except Exception as error:  # NumPy reads a header by Python's own parser, which has many
        why = errors.one_line(error, 200)
        raise ValueError(f"{path} cannot be read as statistics: {why}") from error
    return arrays, origin


def write(path: str | os.PathLike[str], statistics: Statistics) -> None:
    """Writes mu, sigma, mu_s, sigma_s and the origin, whole or not at all."""
    origin = json.dumps(dataclasses.asdict(statistics.origin))
    arrays: dict[str, Any] = {"origin": np.array(origin)}
    arrays |= {"mu": statistics.pool.mean, "sigma": statistics.pool.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    path = pathlib.Path(path).expanduser()
    with files.whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def check(statistics: Statistics, expected: Origin, num_features: int) -> None:
    """Refuses statistics that were made otherwise than the features they shall stand beside.

    What the file does not say is not compared, nor what `expected` leaves open; there may be more
    images than `expected.images`, if the file does not come from this project.

    Raises:
      ValueError: another network, weights, resize or data set; fewer images; names all of it.
    """
    origin, wrong = statistics.origin, []
    if len(statistics.pool.mean) != num_features:
        wrong.append(f"{len(statistics.pool.mean)} features, not {num_features}")
    for name in ("network", "weights_sha256", "resize", "dataset", "fingerprint"):
        stored, wanted = getattr(origin, name), getattr(expected, name)
        if stored and wanted and stored != wanted:
            wrong.append(f"{name} {stored}, not {wanted}")
    ours = bool(origin.network)  # our files say of how many images they are, others had to know
    other = origin.images != expected.images if ours else origin.images < expected.images
    if origin.images and expected.images and other:
        wrong.append(f"{origin.images} images, not {expected.images}")
    if wrong:
        raise ValueError(f"the statistics in {statistics.path} are of {'; '.join(wrong)}")


def _gaussian(path: pathlib.Path, arrays: dict[str, np.ndarray], suffix: str) -> Gaussian:
    """The mean and covariance in the arrays mu and sigma with that suffix, checked."""
    mean, covariance = arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"]
    names = f"mu{suffix} {mean.shape} and sigma{suffix} {covariance.shape}"
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: {names} are no mean [d] and covariance [d, d]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: {names} are not finite")
    scale = np.abs(covariance).max(initial=0.0)
    if np.abs(covariance - covariance.T).max(initial=0.0) > 1e-6 * scale or scale == 0.0:
        raise ValueError(f"{path}: sigma{suffix} is no covariance: it is not symmetric, or zero")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))
