"""Samples: a function of (weights, seed, index) alone; and what is written of them."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import evaluate
import generate
import parallel
import train
from tests import tiny
from tests.test_train import use_devices


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        train.train(tiny.config(), workdir)
    return workdir


def draw(trained: pathlib.Path, indices: np.ndarray, batch_size: int, **changes) -> np.ndarray:
    config = tiny.config(sampling__batch_size=batch_size, **changes)
    parts = train.build(config, "test")
    restored = generate.restore(config, parts, trained)
    batches = generate.Generator(config, parts)(restored.params, indices, description="")
    return np.concatenate([drawn["image"] for _, drawn in batches])


@pytest.mark.parametrize("method", ["pc", "ode"])
def test_an_image_depends_on_its_index_alone(
    method: str, trained: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "sampling__method": method,
        "sampling__corrector": "langevin",
        "sampling__rtol": 1e-3,
        "sampling__atol": 1e-3,
    }
    monkeypatch.setattr(generate.transforms, "inverse_scale", lambda x, **_: x)  # keep the digits
    use_devices(monkeypatch, 1)
    one = draw(trained, np.arange(6), 3, **changes)
    distances = np.abs(one[:, None] - one).reshape(6, 6, -1).max(axis=-1)
    assert (distances + np.eye(6) > 0.1).all()
    use_devices(monkeypatch, 4)
    four = draw(trained, np.array([5, 3, 1]), 4, **changes)
    np.testing.assert_allclose(four, one[[5, 3, 1]], rtol=1e-4, atol=1e-4)


def test_the_mapped_function_sees_true_indices_and_rows_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = jax.random.key(3)

    def function(params, indices, arrays):
        keys = parallel.image_keys(key, indices)
        noise = jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys)
        return params * arrays["a"], noise

    indices = np.array([4, 9, 2, 7, 0], np.int32)
    arrays = {"a": np.arange(5.0, dtype=np.float32)}
    found = {}
    for count, batch in ((1, 2), (2, 4), (4, 8)):
        use_devices(monkeypatch, count)
        run = parallel.ImageMap(function, batch, "batch_size")
        results = list(run(parallel.replicate(2.0), indices, arrays))
        np.testing.assert_array_equal(np.concatenate([i for i, _ in results]), indices)
        doubled = np.concatenate([r[0] for _, r in results])
        np.testing.assert_array_equal(doubled, 2 * arrays["a"])
        found[count] = np.concatenate([r[1] for _, r in results])
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[1], found[4])
    alone = jax.random.normal(jax.random.fold_in(key, 9), (2,))
    np.testing.assert_allclose(found[1][1], alone, rtol=1e-6)


def test_sampling_goes_on_where_it_stopped(
    trained: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    generate.sample(tiny.config(sampling__num_samples=4), trained)
    folder = trained / "samples"
    first = np.load(folder / "shard_000000.npz")["image"]
    assert np.asarray(Image.open(folder / "images" / "000003.png")).shape == (8, 8)
    with Image.open(folder / "reverse_process.gif") as gif:
        assert getattr(gif, "n_frames") == 3  # noqa: B009
    generate.sample(tiny.config(sampling__num_samples=6, sampling__batch_size=2), trained)
    assert "6 samples are in" in capsys.readouterr().out.splitlines()[-1]
    np.testing.assert_array_equal(np.load(folder / "shard_000000.npz")["image"], first)
    assert np.load(folder / "shard_000004.npz")["index"].tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"sampling.seed: 0 \(stored\) != 1 \(given\)"):
        generate.sample(tiny.config(sampling__seed=1), trained)


def test_failed_samples_are_refused_by_number(
    trained: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    config = tiny.config()
    parts = train.build(config, "test")
    restored = generate.restore(config, parts, trained)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, restored.params)
    with pytest.raises(ValueError, match=r"4 samples \(numbers 0, 1, 2, 3\) are not finite"):
        list(generate.Generator(config, parts)(broken, np.arange(6), description=""))


def test_evaluation_writes_every_number_with_its_origin(
    trained: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    results = evaluate.evaluate(tiny.config(), trained, "eval")
    wanted = {
        "frechet_distance", "frechet_distance_real", "bits_per_dim", "bits_per_dim_stderr", "nfe",
        "num_samples", "step", "seed", "features",
    }  # fmt: skip
    assert wanted <= results.keys()
    assert (results["step"], results["num_samples"], results["nfe"]) == (6, 8, 25)
    assert "not Inception" in results["features"]
    assert sum(results["class_shares"]) == pytest.approx(1.0, abs=1e-3)
    printed = capsys.readouterr().out
    assert f"{results['bits_per_dim']:.3f}" in printed
    for name in ("results.json", "samples.png", "reverse_process.gif"):
        assert (trained / "eval" / name).stat().st_size > 0
