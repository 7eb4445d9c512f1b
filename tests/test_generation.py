"""Samples: a function of (weights, seed, index) alone; and what is written of them."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import data
import models
import sampling
from configs import load
from evaluation import evaluate
from generation import examples, sample
from generation.generator import Generator, batch_for
from runtime import devices, experiment, files
from runtime.workdir import restore
from tests import fuzz, tiny
from tests.test_configs import OFFICIAL
from tests.test_training import use_devices


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny run with random weights, as its training would leave it."""
    workdir = tmp_path_factory.mktemp("trained")
    fuzz.make_run(workdir)
    return workdir


def draw(
    trained: pathlib.Path,
    indices: np.ndarray,
    batch_size: int,
    seed: int | None = None,
    **changes: Any,
) -> np.ndarray:
    config = tiny.config(sampling__batch_size=batch_size, **changes)
    parts = experiment.build(config)
    restored = restore(config, parts, trained)
    batches = tiny.generator(config, parts)(restored.params, indices, "", seed)
    return np.concatenate([batch["image"] for _, batch in batches])


@pytest.mark.parametrize("method", ["pc", pytest.param("ode", marks=pytest.mark.slow)])
def test_an_image_depends_on_its_index_alone(
    method: str, trained: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "sampling__method": method,
        "sampling__corrector": "langevin",
        "sampling__rtol": 1e-3,
        "sampling__atol": 1e-3,
    }
    monkeypatch.setattr(data.transforms, "inverse_scale", lambda x, *_: x)  # keep the digits
    use_devices(monkeypatch, 1)
    one = draw(trained, np.arange(6), 3, **changes)
    distances = np.abs(one[:, None] - one).reshape(6, 6, -1).max(axis=-1)
    assert (distances + np.eye(6) > 0.1).all()
    use_devices(monkeypatch, 4)
    four = draw(trained, np.array([5, 3, 1]), 4, **changes)
    np.testing.assert_allclose(four, one[[5, 3, 1]], rtol=1e-4, atol=1e-4)
    again = draw(trained, np.array([5, 3, 1]), 4, seed=0, **changes, sampling__seed=1)
    np.testing.assert_array_equal(again, four)


def test_a_batch_is_no_larger_than_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 images are not drawn as 500 of which 436 are thrown away; but where an image's noise
    depends on its batch, the batch stays."""
    use_devices(monkeypatch, 4)
    options = tiny.config(sampling__batch_size=500).sampling
    assert [batch_for(options, count) for count in (None, 1000, 64, 6, 0)] == [500, 500, 64, 8, 4]
    options.corrector_norm = "batch"
    assert batch_for(options, 64) == 500
    options.batch_size = 6
    with pytest.raises(ValueError, match=r"sampling.batch_size=6 must be a positive multiple"):
        batch_for(options, 4)


def test_the_mapped_function_sees_true_indices_and_rows_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = jax.random.key(3)

    def function(params, indices, arrays):
        keys = devices.image_keys(key, indices)
        return params * arrays["a"], jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys)

    indices = np.array([4, 9, 2, 7, 0], np.int32)
    arrays = {"a": np.arange(5.0, dtype=np.float32)}
    noise = {}
    for count, batch in ((1, 2), (2, 4), (4, 8)):
        use_devices(monkeypatch, count)
        run = devices.ImageMap(function, batch, "batch_size")
        results = list(run(devices.replicate(2.0), indices, arrays))
        np.testing.assert_array_equal(np.concatenate([i for i, _ in results]), indices)
        doubled = np.concatenate([r[0] for _, r in results])
        np.testing.assert_array_equal(doubled, 2 * arrays["a"])
        noise[count] = np.concatenate([r[1] for _, r in results])
    np.testing.assert_array_equal(noise[1], noise[2])
    np.testing.assert_array_equal(noise[1], noise[4])
    alone = jax.random.normal(jax.random.fold_in(key, 9), (2,))
    np.testing.assert_allclose(noise[1][1], alone, rtol=1e-6)


def test_rows_of_a_large_set_are_read_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that likelihoods of a data set that is on disk need the memory of a batch."""
    read: list[list[int]] = []

    class OnDisk:
        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            read.append(rows.tolist())
            return 10 * rows

    use_devices(monkeypatch, 2)
    run = devices.ImageMap(lambda params, indices, arrays: arrays, 4, "batch_size")
    numbers = np.array([7, 7, 3, 2, 5, 0])
    images = devices.Rows(OnDisk(), numbers)
    results = list(run(None, np.arange(6), (images, numbers)))
    np.testing.assert_array_equal(np.concatenate([r[0] for _, r in results]), 10 * numbers)
    assert read == [[7, 7, 3, 2], [5, 0, 0, 0]]


@pytest.mark.slow
def test_sampling_goes_on_where_it_stopped(
    trained: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    monkeypatch.setattr(data, "from_config", None)  # no data set is opened
    folder = trained / "samples"
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "unchecked", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            sample.sample(tiny.config(sampling__num_samples=4, sampling__seed=1), trained)
    assert not folder.exists(), "the record is written with the first samples, not by a failure"
    sample.sample(tiny.config(sampling__num_samples=4), trained)
    first = np.load(folder / "shard_000000.npz")["image"]
    assert np.asarray(Image.open(folder / "images" / "000003.png")).shape == (8, 8)
    with Image.open(folder / "reverse_process.gif") as gif:
        assert getattr(gif, "n_frames") == 3  # noqa: B009
    sample.sample(tiny.config(sampling__num_samples=6, sampling__batch_size=2), trained)
    assert "6 samples are in" in capsys.readouterr().out.splitlines()[-1]
    np.testing.assert_array_equal(np.load(folder / "shard_000000.npz")["image"], first)
    assert np.load(folder / "shard_000004.npz")["index"].tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"sampling.seed: 0 \(stored\) != 1 \(given\)"):
        sample.sample(tiny.config(sampling__seed=1), trained)


def out_of_memory(*_: Any) -> Any:
    raise RuntimeError("out of memory")


ORIGIN = {"step": 6, "weights_sha256": "ab" * 32, "sampling": {"seed": 0}}
DIGITS = examples.Images(17, True)


def samples_in(folder: pathlib.Path, index: Any = range(4), **arrays: Any) -> pathlib.Path:
    """A folder with a shard of four images and its record; `arrays` replace those of the shard."""
    files.write_json(folder / sample.ORIGIN, ORIGIN)
    index = np.array(index)
    image = np.zeros((len(index), 8, 8, 1), np.uint8)
    stored: dict[str, Any] = {"image": image, "index": index, "nfe": 25 + 0 * index, **arrays}
    np.savez(folder / "shard_000000.npz", **{k: v for k, v in stored.items() if v is not None})
    return folder / "shard_000000.npz"


def test_samples_under_another_name_are_passed_over_with_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = samples_in(tmp_path)
    shard.rename(tmp_path / "old.npz")
    (tmp_path / ".shard_000000.host.1.npz").touch()  # another process writes it
    assert sample.missing(tmp_path, 2, DIGITS, (8, 8, 1)).tolist() == [0, 1]
    (line,) = caplog.messages
    assert line == (
        f"{tmp_path}: old.npz passed over; samples are in files named shard_*.npz, and others are "
        "drawn again"
    )
    (tmp_path / "old.npz").rename(tmp_path / "shard_of_old.npz")
    assert not sample.missing(tmp_path, 2, DIGITS, (8, 8, 1)).size
    assert len(caplog.messages) == 1


def test_samples_are_of_a_process_and_a_range_of_pixels_too() -> None:
    """A hash of the weights says nothing of the SDE in which they were asked."""
    settings = experiment.settings(tiny.config())
    for change in (
        {"model__beta_max": 5.0},
        {"data__centered": False},
        {"training__sde": "subvpsde"},
    ):
        assert experiment.settings(tiny.config(**change)) != settings
    elsewhere = {"data__data_dir": "x", "training__n_iters": 99, "sampling__num_steps": 7}
    assert experiment.settings(tiny.config(**elsewhere)) == settings


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            ORIGIN | {"weights_sha256": "cd" * 32},
            "holds samples of other weights: SHA-256 cdcdcdcdcdcd, step 6; those of now have "
            "abababababab, step 6; move the folder away",
        ),
        ({"step": 6, "sampling": {"seed": 0}}, r"of an earlier version \(step 6\), which did not"),
        (ORIGIN | {"ema": "raw"}, r"samples made otherwise: ema: 'raw' \(stored\), nothing"),
        (ORIGIN | {"sampling": 5}, r"samples made otherwise: sampling: 5 \(stored\), nothing"),
        ([1, 2], r"made_by\.json is damaged: its JSON is no object, but a list; .* nobody knows"),
        ("cut", r"made_by\.json is damaged: it is no JSON .* nobody knows"),
        (None, r"samples whose origin nobody knows, as made_by\.json is missing; move"),
    ],
)
def test_samples_of_another_origin_are_refused(
    stored: Any, message: str, tmp_path: pathlib.Path
) -> None:
    """Weights count by their hash: those of a run that was trained anew have the same step."""
    samples_in(tmp_path)
    sample.refuse_others(tmp_path, ORIGIN)
    record = tmp_path / sample.ORIGIN
    if stored is None:
        record.unlink()
    else:
        record.write_text('{"step": 6,' if stored == "cut" else json.dumps(stored))
    with pytest.raises(ValueError, match=message) as refusal:
        sample.refuse_others(tmp_path, ORIGIN)
    assert "\n" not in str(refusal.value)
    (tmp_path / "shard_000000.npz").unlink()
    sample.refuse_others(tmp_path, ORIGIN)  # a record alone: no sample was ever finished


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(bytes(range(256))),
        lambda file: samples_in(file.parent, image=np.zeros((4, 16, 16, 1), np.uint8)),
        lambda file: samples_in(file.parent, image=np.zeros((4, 8, 8, 1), np.float32)),
        lambda file: samples_in(file.parent, image=np.zeros((3, 8, 8, 1), np.uint8)),
        lambda file: samples_in(file.parent, image=None),
        lambda file: samples_in(file.parent, index=[3, 2, 1, 0]),
        lambda file: samples_in(file.parent, index=np.zeros(4)),
        lambda file: samples_in(file.parent, nfe=np.zeros((4, 2))),
        lambda file: np.save(file.open("wb"), np.arange(4)),
    ],
)
def test_samples_of_a_damaged_shard_are_drawn_again(
    damage: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard, shape = samples_in(tmp_path), (8, 8, 1)
    assert sample.missing(tmp_path, 6, DIGITS, shape).tolist() == [4, 5]
    assert not caplog.messages
    damage(shard)
    assert sample.missing(tmp_path, 6, DIGITS, shape).tolist() == list(range(6))
    (line,) = caplog.messages
    assert line.startswith(f"{shard} is damaged (")
    assert line.endswith("its samples are drawn again")
    assert not shard.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_config_draws_images_without_its_data_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is traced only: CelebA, LSUN and the others need not be here."""
    use_devices(monkeypatch, 1)
    monkeypatch.setattr(data, "from_config", None)
    config = load(name)
    parts = experiment.build(config)
    init = functools.partial(models.init, parts.module, image_shape=parts.image_shape)
    batch = (1, config.sampling.batch_size)
    samples = jax.eval_shape(
        tiny.generator(config, parts).draw.compiled,
        jax.eval_shape(jax.vmap(lambda _: init(jax.random.key(0))), jnp.zeros(1)),
        jax.ShapeDtypeStruct(batch, jnp.int32),
        jax.ShapeDtypeStruct(batch, jnp.uint32),
    )
    side = config.data.image_size
    assert samples["image"].shape == (*batch, side, side, 3)
    assert samples["image"].dtype == jnp.uint8


def test_failed_samples_are_refused_by_number(
    trained: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    config = tiny.config()
    parts = experiment.build(config)
    restored = restore(config, parts, trained)
    broken = jax.tree.map(lambda leaf: np.nan * np.asarray(leaf), restored.params)
    with pytest.raises(ValueError, match=r"4 samples \(numbers 0, 1, 2, 3\) are not finite"):
        list(tiny.generator(config, parts)(broken, np.arange(6), description=""))


@pytest.mark.slow
def test_a_solver_that_gave_up_says_where_and_after_what(
    trained: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    hasty = functools.partial(sampling.ode_sampler, max_steps=3)
    monkeypatch.setattr(sampling, "ode_sampler", hasty)
    config = tiny.config(sampling__method="ode", sampling__rtol=1e-3, sampling__num_frames=0)
    parts = experiment.build(config)
    restored = restore(config, parts, trained)
    words = (
        r"4 samples \(numbers 5, 6, 7, 8\) were not solved: Dopri5 gave up after \d+ evaluations, "
        r".*; loosen sampling.rtol=0.001 and sampling.atol=1e-05$"
    )
    with pytest.raises(ValueError, match=words):
        list(tiny.generator(config, parts)(restored.params, np.arange(5, 9), description=""))


def test_discrete_labels_and_continuous_times_do_not_mix(
    trained: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    config = tiny.config(training__continuous=False, sampling__method="ode")
    parts = experiment.build(config)
    with pytest.raises(ValueError, match=r"'ode' .*training.continuous is False\).* served by"):
        tiny.generator(config, parts)
    with pytest.raises(ValueError, match=r"training.continuous: True \(stored\) != False"):
        restore(config, parts, trained)
    with pytest.raises(ValueError, match=r"eval.enable_bpd is True, .*discrete labels"):
        evaluate.evaluate(config, trained, "eval")


@pytest.mark.slow
def test_evaluation_writes_every_number_with_its_origin(
    trained: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    config = tiny.config(
        eval__bpd_num_repeats=2, eval__bpd_bound=True, eval__bpd_bound_draws=2, eval__batch_size=4
    )
    results = evaluate.evaluate(config, trained, "eval")
    wanted = {
        "frechet_distance", "frechet_distance_real", "bits_per_dim", "bits_per_dim_stderr", "nfe",
        "num_samples", "step", "seed", "features", "bits_per_dim_bound",
    }  # fmt: skip
    assert wanted <= results.keys()
    assert (results["step"], results["num_samples"], results["nfe"]) == (6, 8, 25)
    assert "not Inception" in results["features"]
    assert sum(results["class_shares"]) == pytest.approx(1.0, abs=1e-3)
    printed = capsys.readouterr().out
    assert f"{results['bits_per_dim']:.3f}" in printed
    assert f"{results['bits_per_dim_bound']:.3f}" in printed
    with np.load(trained / "eval" / "bits_per_dim.npz") as per_image:
        for value, mean in (("bits", "bits_per_dim"), ("bound", "bits_per_dim_bound")):
            assert per_image[value].shape == (4,)
            assert per_image[value].mean() == pytest.approx(results[mean], rel=1e-6)
            error = per_image[value].std(ddof=1) / 2
            assert error == pytest.approx(results[f"{mean}_stderr"], rel=1e-6)
    assert results["weights"] == "EMA weights"
    assert np.mean(results["loss_by_time"]["loss"]) == pytest.approx(results["loss"], rel=1e-4)
    for name in ("results.json", "samples.png", "reverse_process.gif", "loss_by_time.png"):
        assert (trained / "eval" / name).stat().st_size > 0
