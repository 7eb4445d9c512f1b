"""Statistics of every form in use are read, told apart and checked; nothing in them is executed."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest

from evaluation import reference
from evaluation.metrics import statistics
from evaluation.metrics.moments import Gaussian
from evaluation.metrics.statistics import Origin, Statistics
from evaluation.report import console

MU, SIGMA = np.array([1.0, 2.0, 3.0]), np.diag([1.0, 2.0, 3.0]) + 0.5
ORIGIN = Origin(
    *("inception-2015-12-05", "ab" * 32, "tensorflow", "digits/train", "digits/x", 100),
    *("", 8, 1, "none"),
)


def test_our_own_file_is_read_back_and_by_others(tmp_path):
    made = Statistics(Gaussian(MU, SIGMA), Gaussian(2 * MU, 3 * SIGMA), None, ORIGIN)
    statistics.write(tmp_path / "more" / "s.npz", made)
    read = statistics.read(tmp_path / "more" / "s.npz")
    assert (read.origin, read.form, len(read.sha256)) == (ORIGIN, "mu, sigma, mu_s, sigma_s", 64)
    np.testing.assert_array_equal(read.pool.covariance, SIGMA)
    assert read.spatial is not None
    np.testing.assert_array_equal(read.spatial.mean, 2 * MU)
    assert [path.name for path in (tmp_path / "more").iterdir()] == ["s.npz"]
    with np.load(tmp_path / "more" / "s.npz", allow_pickle=False) as theirs:
        np.testing.assert_array_equal(theirs["mu"], MU)


def test_files_of_other_projects_are_told_apart_by_their_arrays(tmp_path):
    path = tmp_path / "s.npz"
    np.savez(path, mu=MU.astype(np.float32), sigma=SIGMA)
    read = statistics.read(path)
    assert (read.form, read.spatial, read.features, read.origin) == (
        "mu, sigma", None, None, Origin(),
    )  # fmt: skip
    assert read.pool.mean.dtype == np.float64
    np.savez(path, mu=MU, sigma=SIGMA, mu_s=MU, sigma_s=SIGMA, arr_0=np.zeros((2, 4, 4, 3)))
    assert statistics.read(path).spatial is not None
    activations = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    np.savez(path, pool_3=activations, logits=np.zeros((50, 2)))
    read = statistics.read(path)
    assert (read.form, read.origin.images) == ("pool_3", 50)
    np.testing.assert_array_equal(read.features, activations)
    np.testing.assert_allclose(read.pool.covariance, np.cov(activations.T), rtol=1e-5)


class Mark:
    """Pickled as a call that would leave a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_what_is_no_statistics_is_refused_in_one_line(tmp_path):
    path = tmp_path / "s.npz"
    nan = np.where(np.eye(3) > 0, np.nan, 1.0)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"arr_0": MU}, "holds arr_0; statistics are mu and sigma, or pool_3"),
        ({"mu": MU, "sigma": SIGMA[:2]}, r"mu \(3,\) and sigma \(2, 3\) are no mean"),
        ({"mu": MU, "sigma": nan}, "are not finite"),
        ({"mu": MU, "sigma": SIGMA + np.eye(3, k=1)}, "sigma is no covariance"),
        ({"mu": MU, "sigma": SIGMA, "mu_s": MU, "sigma_s": 0 * SIGMA}, "sigma_s is no covariance"),
        ({"pool_3": nan}, "pool_3: features of 3 image"),
        ({"pool_3": SIGMA[:1]}, "pool_3: a covariance needs at least 2 samples"),
        ({"mu": MU, "sigma": SIGMA, "origin": np.array("{")}, "cannot be read as statistics"),
        ({"mu": MU, "sigma": SIGMA, "origin": np.array('{"a": 1}')}, "cannot be read as statis"),
        ({"mu": MU, "sigma": SIGMA, "origin": np.array("[1]")}, "origin is no object with network"),
        ({"mu": MU, "sigma": SIGMA, "origin": np.array('{"network": 5}')}, "not of type str"),
        ({"mu": MU, "sigma": SIGMA, "origin": np.array('{"images": true}')}, "not of type int"),
        ({"mu": MU, "sigma": SIGMA, "origin": np.arange(3)}, "not a text in JSON"),
        ({"mu": MU, "sigma": SIGMA, "origin": np.array("[" * 9999)}, "cannot be read as statis"),
        ({"mu": MU, "sigma": -np.eye(3)}, "not positive semi-definite"),
        ({"mu": MU, "sigma": np.ones((3, 3)) - 0.5 * np.eye(3)}, "not positive semi-definite"),
        ({"mu": MU + 0j, "sigma": SIGMA}, "mu is of complex numbers, not of real numbers"),
        ({"mu": MU, "sigma": SIGMA.astype(str)}, "sigma is of texts, not of real numbers"),
        ({"mu": MU, "sigma": SIGMA.astype("S9")}, "sigma is of texts, not of real numbers"),
        ({"mu": MU, "sigma": SIGMA > 1}, "sigma is of truth values, not of real numbers"),
        ({"mu": MU, "sigma": SIGMA.astype("M8[s]")}, r"sigma is of type datetime64\[s\]"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "sigma is no covariance"),
        ({"mu": MU[0], "sigma": SIGMA}, r"mu is \(\), but has 1 dimension"),
        ({"mu": np.array([Mark(tmp_path / "run")]), "sigma": SIGMA}, "mu is of pickled objects"),
    ]
    for arrays, message in cases:
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=rf"^\S*s\.npz[^\n]*{message}[^\n]*$"):
            statistics.read(path)
    assert not (tmp_path / "run").exists()
    np.savez(path, mu=MU, sigma=SIGMA)
    whole = path.read_bytes()
    middle = len(whole) // 2
    array = io.BytesIO()
    np.save(array, MU)
    for damaged in (
        b"",
        whole[:middle],
        whole[:99] + b"\xff" + whole[100:],
        b"\x80\x02.",
        array.getvalue(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^\S*s\.npz [^\n]*$"):
            statistics.read(path)
    with pytest.raises(FileNotFoundError, match="--mode=stats makes them"):
        statistics.read(tmp_path / "gone.npz")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"shape": (2**40,), "descr": "<f8"}, "has 8796093022208 bytes by its header and 24 in"),
        ({"shape": (-1,), "descr": "<f8"}, "an array has the shape"),
        ({"shape": (2,), "descr": "<f8"}, "has 16 bytes by its header and 24 in the file"),
        ({"shape": (3,), "descr": "|O"}, "pickled objects"),
    ],
)
def test_headers_are_judged_before_anything_is_allocated(tmp_path, header, message, monkeypatch):
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, header | {"fortran_order": False})
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("mu.npy", array.getvalue() + MU.tobytes())
    monkeypatch.setattr(np.lib.format, "read_array", None)
    with pytest.raises(ValueError, match=rf"^\S*s\.npz cannot be read[^\n]*{message}[^\n]*$"):
        statistics.read(tmp_path / "s.npz")


def test_covariances_of_few_images_and_of_float32_stand(tmp_path):
    features = np.random.default_rng(0).standard_normal((20, 64))  # of rank 19
    covariance = np.cov(features.T).astype(np.float32)
    np.savez(tmp_path / "s.npz", mu=features.mean(0), sigma=covariance)
    assert np.linalg.eigvalsh(covariance)[0] < 0.0
    assert len(statistics.read(tmp_path / "s.npz").pool.mean) == 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "inception-v3"),
        ("weights_sha256", "cd" * 32),
        ("resize", "pytorch"),
        ("image_size", 64),
        ("channels", 3),
        ("images", 99),
        ("images", 101),
    ],
)
def test_statistics_made_otherwise_are_refused(field, value):
    gaussian = Gaussian(MU, SIGMA)
    stored = Statistics(gaussian, None, None, ORIGIN, path="s.npz")
    statistics.check(stored, ORIGIN, 3)
    statistics.check(stored, Origin(), 3)
    other = dataclasses.replace(ORIGIN, **{field: value})
    word = field.replace("_", " ")
    with pytest.raises(ValueError, match=rf"^the statistics in s\.npz are of [^\n]*{word}[^\n]*$"):
        statistics.check(stored, other, 3)
    with pytest.raises(ValueError, match="3 features, not 2048"):
        statistics.check(stored, ORIGIN, 2048)


@pytest.mark.parametrize(
    ("stored", "expected", "other"),
    [
        ({}, {}, False),
        ({"dataset": "a/train"}, {}, False),
        ({"dataset": "a/train"}, {"dataset": "b/train"}, True),
        ({"dataset": "a/train"}, {"dataset": "a/test"}, True),
        ({"folder": "x/cats"}, {"folder": "y/cats"}, False),
        ({"folder": "x/cats"}, {"folder": "x/dogs"}, True),
        ({"fingerprint": "1"}, {"fingerprint": "2"}, True),
        ({"fingerprint": "1", "folder": "cats"}, {"fingerprint": "1", "folder": "moved"}, False),
    ],
)
def test_statistics_of_another_data_set_are_known_by_what_both_say(stored, expected, other):
    ours, wanted = ({"dataset": "folder/train"} | one if one else {} for one in (stored, expected))
    assert statistics.other_data(Origin(**ours), Origin(**wanted)) is other


def test_files_of_before_the_origin_had_a_size_are_read_and_found(tmp_path):
    fields = dataclasses.asdict(ORIGIN)
    old = {name: fields[name] for name in reference.IDENTITY}
    np.savez(tmp_path / "s.npz", mu=MU, sigma=SIGMA, origin=np.array(json.dumps(old)))
    stored = statistics.read(tmp_path / "s.npz")
    statistics.check(stored, ORIGIN, 3)
    assert not statistics.other_data(stored.origin, ORIGIN)
    assert reference.cache_file(stored.origin) == reference.cache_file(ORIGIN)
    rows = dict(console.statistics_rows({**old, "path": "s", "sha256": "", "form": ""}))
    assert rows["  made from"] == "100 images of digits/train"
    rows = dict(console.statistics_rows(stored.facts() | fields | {"folder": "a/b"}))
    assert rows["  made from"] == "100 images of digits/train (a/b), 8x8x1, none"


def test_statistics_of_unknown_origin_need_only_be_enough():
    gaussian = Gaussian(MU, SIGMA)
    statistics.check(Statistics(gaussian, None, None, Origin()), ORIGIN, 3)
    statistics.check(Statistics(gaussian, None, None, Origin(images=101)), ORIGIN, 3)
    with pytest.raises(ValueError, match="99 images, not 100"):
        statistics.check(Statistics(gaussian, None, None, Origin(images=99)), ORIGIN, 3)


def test_the_origin_is_plain_json(tmp_path):
    statistics.write(tmp_path / "s.npz", Statistics(Gaussian(MU, SIGMA), None, None, ORIGIN))
    with np.load(tmp_path / "s.npz", allow_pickle=False) as stored:
        assert json.loads(str(stored["origin"])) == dataclasses.asdict(ORIGIN)
        assert "mu_s" not in stored.files
