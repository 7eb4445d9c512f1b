"""Grids of samples in training: there when asked for, the same to the bit after an interruption."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from generation import examples
from runtime import devices, experiment
from runtime.workdir import open_run, restore
from tests import tiny
from tests.test_metric_log import events
from tests.test_toy import load
from tests.test_training import use_devices
from training import loop, metric_log, records, sample_grids

CHANGES: dict[str, Any] = {
    "training__snapshot_sampling": True,
    "training__snapshot_freq": 2,
    "sampling__num_samples": 10,
}


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_devices(monkeypatch, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a tiny run with a grid after each two of its six steps."""
    workdir = tmp_path_factory.mktemp("grids") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        loop.train(tiny.config(**CHANGES), workdir)
    return workdir


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    """The pictures and arrays of all grids, and the strip, by file name."""
    paths = [*(workdir / sample_grids.FOLDER).iterdir(), workdir / sample_grids.STRIP]
    return {path.name: path.read_bytes() for path in paths}


def test_a_grid_is_drawn_at_every_snapshot(run: pathlib.Path, one_device: None) -> None:
    """The first samples of a grid are those that `Generator` draws from the averaged weights."""
    names = {f"step_000000{step}.{suffix}" for step in (2, 4, 6) for suffix in ("png", "npz")}
    assert contents(run).keys() == {*names, sample_grids.STRIP}
    config = tiny.config(**CHANGES)
    parts = experiment.build(config)
    params = restore(config, parts, run).params
    batches = tiny.generator(config, parts)(params, np.arange(10), "")
    expected = np.concatenate([batch["image"] for _, batch in batches])
    with np.load(run / sample_grids.FOLDER / "step_0000006.npz") as stored:
        np.testing.assert_array_equal(stored["image"], expected[:8])
    page = Image.open(run / sample_grids.FOLDER / "step_0000006.png")
    examples.kind_of(parts.pixels).save_pictures(run / "expected", "grid", {"image": expected})
    assert page.tobytes() == Image.open(run / "expected" / "grid.png").tobytes()


def test_tensorboard_shows_the_grids(run: pathlib.Path) -> None:
    images = {
        event.step: (value.image.width, value.image.height)
        for event in events(run)
        for value in event.summary.value
        if value.tag == "samples"
    }
    grid = Image.open(run / sample_grids.FOLDER / "step_0000006.png")
    assert images == dict.fromkeys((2, 4, 6), grid.size)


@pytest.mark.slow
def test_training_is_the_same_without_grids(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        loop.train(tiny.config(**CHANGES | {"training__snapshot_sampling": False}), tmp_path)
    assert not (tmp_path / sample_grids.FOLDER).exists()
    assert not (tmp_path / sample_grids.STRIP).exists()
    with_grids, without = (
        metric_log.read_metrics(folder / "metrics.jsonl") for folder in (run, tmp_path)
    )
    assert with_grids.keys() == without.keys()
    for name in without.keys() - set(metric_log.SPEED):
        steps, values = without[name]
        np.testing.assert_array_equal(with_grids[name][0], steps, err_msg=name)
        np.testing.assert_array_equal(with_grids[name][1], values, err_msg=name)


@pytest.mark.slow
def test_a_resumed_run_draws_what_it_owes_and_keeps_the_rest(
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    one_device: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed while the grid of step 4 was drawn, whose checkpoint was written already."""
    config, draw = tiny.config(**CHANGES), sample_grids.SampleGrids._samples

    def killed(self: Any, step: int, params: Any) -> np.ndarray:
        if step == 4:
            deadline = time.monotonic() + 60
            while open_run(config, tmp_path).steps()[-1] < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            raise KeyboardInterrupt
        return draw(self, step, params)

    with monkeypatch.context() as patch:
        patch.setattr(sample_grids.SampleGrids, "_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, tmp_path)
    folder = tmp_path / sample_grids.FOLDER
    first = (folder / "step_0000002.png").stat()
    assert not list(folder.glob("step_0000004*"))
    (folder / "step_0000006.png").write_text("of another run")
    loop.train(config, tmp_path)
    assert "resuming at step 4" in capsys.readouterr().out
    assert (folder / "step_0000002.png").stat().st_mtime_ns == first.st_mtime_ns
    assert contents(tmp_path) == contents(run)


def grids_of(workdir: pathlib.Path, patch: pytest.MonkeyPatch) -> sample_grids.SampleGrids:
    """Grids of black images, whatever the weights."""
    config = tiny.config(**CHANGES)
    grids = sample_grids.SampleGrids(config, experiment.build(config), workdir, 99, None)
    patch.setattr(grids, "_samples", lambda *_: np.zeros((8, 8, 8, 1), np.uint8))
    return grids


@pytest.mark.parametrize("damage", [b"", b"PK of an archive that was cut", "side", "name"])
def test_a_damaged_archive_of_a_grid_is_left_out_of_the_strip(
    damage: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grids = grids_of(tmp_path, monkeypatch)
    grids.folder.mkdir()
    file = grids.folder / "step_0000001.npz"
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        side = 4 if damage == "side" else 8
        image: Any = np.zeros((8, side, side, 1), np.uint8)
        np.savez(file, **{"image" if damage == "side" else "others": image})
    grids.draw(2, None)
    assert (grids.folder / "step_0000002.png").exists()
    assert (tmp_path / sample_grids.STRIP).exists()
    (line,) = caplog.messages
    assert line.startswith(f"{file} is damaged (")
    assert line.endswith("the strip is drawn without it")


def test_a_grid_stays_where_its_weights_are_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was trained anew has other weights at the same step."""
    grids, counts = grids_of(tmp_path, monkeypatch), []
    monkeypatch.setattr(grids, "_write_strip", lambda: counts.append(1))
    weights = {"w": np.ones((1, 2), np.float32)}
    for params in (weights, weights, {"w": np.zeros((1, 2), np.float32)}):
        grids.draw(2, devices.replicate({"w": params["w"][0]}))
    assert len(counts) == 2
    (grids.folder / "step_0000002.npz").write_bytes(b"")
    grids.draw(2, devices.replicate({"w": np.zeros(2, np.float32)}))
    assert len(counts) == 3


def test_a_strip_has_a_row_for_each_of_ten_steps(tmp_path: pathlib.Path) -> None:
    """A strip of more than ten steps has the first, the last, and others evenly between."""
    config = tiny.config(**CHANGES)
    grids = sample_grids.SampleGrids(config, experiment.build(config), tmp_path, 99, None)
    grids.folder.mkdir()
    for step in range(1, 20):
        image = np.full((8, 8, 8, 1), step % 17, np.uint8)
        np.savez(grids._path(step, ".npz"), image=image)
    grids._write_strip()
    page = np.asarray(Image.open(tmp_path / sample_grids.STRIP)).astype(int)
    rows = page[2 + np.arange(10) * ((len(page) - 2) // 10), 2]
    levels = np.arange(1, 20, 2) % 17
    np.testing.assert_allclose(rows, levels * 255 / 16, atol=1)


def test_large_images_are_made_smaller_for_the_strip() -> None:
    kind = examples.Images(256, True)
    images = np.full((2, 512, 512, 3), 77, np.uint8)
    page = kind.strip({10: images, 20: images})
    assert page.shape[1] < 1100
    assert (page == 77).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"training__objective": "classifier", "classifier__num_classes": 10},
        {"training__snapshot_sampling": False},
        {"training__continuous": False, "sampling__method": "ode"},
    ],
)
def test_a_run_that_cannot_draw_trains_without(
    changes: dict[str, Any], tmp_path: pathlib.Path, one_device: None
) -> None:
    config = tiny.config(**CHANGES | changes)
    parts = experiment.build(config)
    assert sample_grids.from_config(config, parts, tmp_path, 0, None) is None


def test_no_picture_ends_a_training(
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    one_device: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither by samples that are not finite nor by a disk that is full."""
    config = tiny.config(**CHANGES)
    parts = experiment.build(config)
    grids = sample_grids.SampleGrids(config, parts, tmp_path, 0, None)
    params = restore(config, parts, run).params
    grids.draw(2, jax.tree.map(lambda leaf: leaf * np.nan, params))
    assert "10 of 10 samples of step 2 are not finite" in capsys.readouterr().out
    assert (grids.folder / "step_0000002.png").stat().st_size > 0

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(examples.Images, "save_pictures", full)
    grids.draw(4, params)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["no samples of step 4 are shown: [Errno 28] No space left on device"]


def test_points_are_scattered(tmp_path: pathlib.Path, one_device: None) -> None:
    changes = {name.replace("__", "."): value for name, value in CHANGES.items()}
    config = load("toy/mixture_dsm_ve", model__nf=8, sampling__batch_size=16)
    config.update_from_flattened_dict(changes | {"sampling.num_samples": 40})
    grids = sample_grids.SampleGrids(config, experiment.build(config), tmp_path, 0, None)
    assert (grids.num_samples, grids.generator.draw.batch_size) == (40, 16)
    points = np.random.default_rng(0).normal(size=(40, 1, 1, 2)).astype(np.float32)
    for step in (1000, 2000):
        grids._write(step, points, "ab12")
    assert (grids.folder / "step_0002000.png").stat().st_size > 0
    assert Image.open(tmp_path / sample_grids.STRIP).size == (400, 225)


def test_a_run_that_is_asked_to_stop_leaves_the_grid_to_the_next() -> None:
    periodic = records.Periodic((10,), lambda step, state: None, can_wait=True)
    assert periodic.due(8, 10, finished=False, stopping=False)
    assert not periodic.due(8, 10, finished=False, stopping=True)
    checkpoint = records.Periodic((10, 15), lambda step, state: None, at_end=True)
    dues = [checkpoint.due(before, before + 2, False, False) for before in range(8, 18, 2)]
    assert dues == [True, False, False, True, False]
    assert checkpoint.due(11, 13, finished=False, stopping=True)
    assert checkpoint.due(11, 13, finished=True, stopping=False)
