"""Statistics of a data set's Inception features: files of every form in use, and our own.

The arrays that an npz file holds tell its form:

| arrays | written by | what they are |
| --- | --- | --- |
| `mu`, `sigma` | pytorch-fid and most others | mean [d], covariance [d, d] of the pool features |
| also `mu_s`, `sigma_s` | guided-diffusion | those of the spatial features, for sFID |
| `pool_3` | score_sde | the pool features themselves, [n, d] |
| `mu`, `sigma`, `mu_s`, `sigma_s`, `origin` | this project | `origin` is JSON: see `Origin` |

so that the others read our files too. Nothing in a file is unpickled, and nothing is read before
the headers of the arrays have been: they say how large an array is, and of what.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import zipfile
from typing import IO, Any

import numpy as np

from data.builder import expanded
from evaluation.metrics.moments import Gaussian, Moments
from runtime import errors, files
from runtime.buckets import BucketPath, is_url

_NUMBERS = {"mu": 1, "sigma": 2, "mu_s": 1, "sigma_s": 2, "pool_3": 2}  # and their dimensions
_ORIGIN_LIMIT = 1 << 16  # bytes of a text that is no longer than a few hundred
_LIMIT = 4 << 30  # bytes of one array


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
      folder: the user's folder that they are from; "" for a published data set.
      image_size, channels: of each.
      transform: how their crop and size were made, in words.
    """

    network: str = ""
    weights_sha256: str = ""
    resize: str = ""
    dataset: str = ""
    fingerprint: str = ""
    images: int = 0
    folder: str = ""
    image_size: int = 0
    channels: int = 0
    transform: str = ""

    @property
    def name(self) -> str:
        """The data set, with its folder where it is a user's: "folder/train (photographs)"."""
        last = pathlib.PurePath(self.folder).name
        return f"{self.dataset} ({last})" if last else self.dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of features, and what they are from.

    Attributes:
      pool: of the 2048 features.
      spatial: of the spatial ones, where there are any.
      features: the pool features [n, d] themselves, where there are any.
      origin: their making.
      features_of: the name of the data set that `features` are of, where it is another one.
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
    features_of: str = ""

    def facts(self) -> dict[str, Any]:
        """The file's path, SHA-256 and form, and its origin, as they stand in results.json."""
        file = {"path": self.path, "sha256": self.sha256, "form": self.form}
        other = {"features_of": self.features_of} if self.features_of else {}
        return file | dataclasses.asdict(self.origin) | other


def place(path: files.Path) -> pathlib.Path:
    """The path of a file of statistics, on a disk or in a bucket, as `eval.stats_path` says it.

    Raises:
      ValueError, OSError: nobody knows that home directory, or that bucket.
    """
    if isinstance(path, BucketPath) or is_url(str(path)):
        return files.as_path(path, "eval.stats_path")
    return expanded(path, "eval.stats_path")


def read(path: files.Path) -> Statistics:
    """The statistics in a file of any form above.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, one in no known form, or numbers that are no mean and covariance.
    """
    path = place(path)
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
    return Statistics(pool, spatial, features, origin, form, str(path), files.sha256(path))


def _read_arrays(path: pathlib.Path) -> tuple[dict[str, Any], Origin]:
    """The arrays of a file by name, None those that no form has, and their origin."""
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            if len(set(names)) < len(names):
                raise ValueError("it holds two arrays of one name")
            arrays: dict[str, Any] = dict.fromkeys(names)
            for name in names:
                if name in _NUMBERS or name == "origin":
                    arrays[name] = _array(archive, name)
            origin = _origin(str(arrays["origin"])) if "origin" in arrays else Origin()
    except Exception as error:  # NumPy reads a header by Python's own parser, which has many
        why = errors.one_line(error, 200)
        raise ValueError(f"{path} cannot be read as statistics: {why}") from error
    return arrays, origin


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of the archive, whose header is read and judged before the rest.

    Raises:
      ValueError: not numbers (a text, for the origin), or other dimensions, or too large.
    """
    info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    with archive.open(info) as file:
        shape, dtype = _header(file)
        size = math.prod(shape) * dtype.itemsize
        if name == "origin":
            if dtype.kind != "U" or shape or size > _ORIGIN_LIMIT:
                raise ValueError(f"origin is {dtype} {shape}, not a text in JSON")
        elif dtype.kind not in "fiu":
            raise ValueError(f"{name} is of {_kind(dtype)}, not of real numbers")
        elif len(shape) != _NUMBERS[name]:
            raise ValueError(f"{name} is {shape}, but has {_NUMBERS[name]} dimension(s)")
        rest = info.file_size - file.tell()
        if size > _LIMIT or size != rest:
            raise ValueError(
                f"{name} {shape} has {size} bytes by its header and {rest} in the file; "
                f"{_LIMIT} are read at most"
            )
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that begins here; the file stands behind its header."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"arrays of version {version} of the format are not read")
    shape, _, dtype = readers[version](file)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array has the shape {shape}")
    return shape, dtype


def _kind(dtype: np.dtype[Any]) -> str:
    """What an array holds, in words."""
    if dtype.hasobject:
        return "pickled objects"
    kinds = {"c": "complex numbers", "U": "texts", "S": "texts", "b": "truth values"}
    return kinds.get(dtype.kind, f"type {dtype}")


def _origin(text: str) -> Origin:
    """An origin from its JSON.

    Raises:
      ValueError: not the fields of `Origin`, or of another type.
    """
    fields = json.loads(text)
    types = {"str": str, "int": int}
    expected = {field.name: types[str(field.type)] for field in dataclasses.fields(Origin)}
    if not isinstance(fields, dict) or not fields.keys() <= expected.keys():
        raise ValueError(f"origin is no object with {', '.join(expected)}")
    for name, value in fields.items():
        if type(value) is not expected[name]:
            raise ValueError(f"origin.{name} is {value!r}, not of type {expected[name].__name__}")
    return Origin(**fields)


def write(path: files.Path, statistics: Statistics) -> None:
    """Writes mu, sigma, mu_s, sigma_s and the origin, whole or not at all."""
    origin = json.dumps(dataclasses.asdict(statistics.origin))
    arrays: dict[str, Any] = {"origin": np.array(origin)}
    arrays |= {"mu": statistics.pool.mean, "sigma": statistics.pool.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    path = place(path)
    with files.whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def check(statistics: Statistics, expected: Origin, num_features: int) -> None:
    """Refuses statistics that were made otherwise than the features they shall stand beside.

    What the file does not say is not compared, nor what `expected` leaves open; there may be more
    images than `expected.images`, if the file does not come from this project. Statistics of
    another data set have numbers that mean something: see `other_data`.

    Raises:
      ValueError: another network, weights or resize; images of another size, or with another number
        of channels; fewer images; names all of it.
    """
    origin, wrong = statistics.origin, []
    if len(statistics.pool.mean) != num_features:
        wrong.append(f"{len(statistics.pool.mean)} features, not {num_features}")
    for name in ("network", "weights_sha256", "resize", "image_size", "channels"):
        stored, wanted = getattr(origin, name), getattr(expected, name)
        if stored and wanted and stored != wanted:
            wrong.append(f"{name.replace('_', ' ')} {stored}, not {wanted}")
    ours = bool(origin.network)  # our files say of how many images they are, others had to know
    other = origin.images != expected.images if ours else origin.images < expected.images
    if origin.images and expected.images and other:
        wrong.append(f"{origin.images} images, not {expected.images}")
    if wrong:
        raise ValueError(f"the statistics in {statistics.path} are of {'; '.join(wrong)}")


def other_data(origin: Origin, expected: Origin) -> bool:
    """True if an origin is known to be another data set than the one expected.

    Names tell, and the checksums of examples where both are known, else the folders' names.
    """
    pairs = [(origin.dataset, expected.dataset), (origin.fingerprint, expected.fingerprint)]
    if not all(pairs[1]):
        pairs.append((pathlib.PurePath(origin.folder).name, pathlib.PurePath(expected.folder).name))
    return any(stored and wanted and stored != wanted for stored, wanted in pairs)


def _gaussian(path: pathlib.Path, arrays: dict[str, np.ndarray], suffix: str) -> Gaussian:
    """The mean and covariance in the arrays mu and sigma with that suffix, checked."""
    mean, covariance = arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"]
    names = f"mu{suffix} {mean.shape} and sigma{suffix} {covariance.shape}"
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: {names} are no mean [d] and covariance [d, d]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: {names} are not finite")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    what = f"{path}: sigma{suffix} is no covariance"
    scale = np.abs(covariance).max(initial=0.0)
    if np.abs(covariance - covariance.T).max(initial=0.0) > 1e-6 * scale or scale == 0.0:
        raise ValueError(f"{what}: it is not symmetric, or zero")
    if np.diagonal(covariance).min() < 0.0 or not _semi_definite(covariance / scale):
        raise ValueError(f"{what}: it is not positive semi-definite, some variance is negative")
    return Gaussian(mean, covariance)


def _semi_definite(covariance: np.ndarray) -> bool:
    """True if no eigenvalue is below -1e-6 of their sum, which leaves room for float32."""
    shift = 1e-6 * np.trace(covariance) * np.eye(len(covariance))
    try:
        np.linalg.cholesky(covariance + shift)
    except np.linalg.LinAlgError:
        return False
    return True
