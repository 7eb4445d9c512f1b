"""A run's folder: its config, and what is said where a file in it is damaged."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import configs
from runtime import arrays, errors, experiment, files
from runtime.ema_snapshots import Snapshots
from runtime.workdir import open_run, stored_config
from tests import tiny
from training.metric_log import MetricLog

DAMAGED = (b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b'"text"', b"7", b"null", b"[" * 10_000)
ODD: tuple[dict[str, Any], ...] = (
    {"training": 5},
    {"training": [1]},
    {"model": None},
    {"data": "digits"},
)


@pytest.mark.parametrize("content", [*DAMAGED, *ODD])
def test_a_damaged_config_is_named_with_what_to_do(content: Any, tmp_path: pathlib.Path) -> None:
    """Also where it is a guide's."""
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for read in (lambda: stored_config(tmp_path), lambda: open_run(tiny.config(), tmp_path)):
        with pytest.raises(ValueError, match="remove the file, and --mode=train") as refusal:
            read()
        assert str(refusal.value).startswith(f"{path} is damaged: ")
        assert "\n" not in str(refusal.value)


def test_a_refusal_of_another_run_is_short(tmp_path: pathlib.Path) -> None:
    """However many fields differ, and however long they are."""
    config = configs.load("toy/two_moons_edm")
    config.training.objective = "x" * 5000
    files.write_json(tmp_path / "config.json", config.to_dict())
    with pytest.raises(ValueError, match="belongs to another run") as refusal:
        open_run(tiny.config(), tmp_path)
    line = str(refusal.value)
    assert len(line) < 600
    assert re.search(
        r"\(given\); data\.[a-z_]+: .*; and \d\d more; use its config or another --workdir$", line
    )


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_named(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).mkdir()
    read: dict[str, Callable[[], Any]] = {
        "config.json": lambda: open_run(tiny.config(), tmp_path),
        "metrics.jsonl": lambda: MetricLog(tmp_path),
    }
    with pytest.raises(IsADirectoryError) as refusal:
        read[name]()
    line = f"{tmp_path / name}: this is a folder, and a file is needed"
    assert errors.one_line(refusal.value) == line


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"objective": 3}},
        {"model": {"nf": "8"}},
        {"model": {"ch_mult": 2}},
        {"sampling": {"rtol": [1]}},
        {"eval": {"end_ckpt": {}}},
        {"seed": {"a": 1}},
    ],
)
def test_a_config_with_fields_of_other_types_is_named(
    changes: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=r"config\.json") as refusal:
        stored_config(tmp_path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_images_of_another_source_serve_where_no_training_goes_on(tmp_path: pathlib.Path) -> None:
    run = tiny.config(data__dataset="cifar10", data__image_size=32, data__num_channels=3)
    (tmp_path / "config.json").write_text(json.dumps(run.to_dict()))
    other = run.copy_and_resolve_references()
    other.data.dataset, other.data.data_dir = "folder", "photographs"
    open_run(other, tmp_path, training=False)
    with pytest.raises(ValueError, match=r"another run: data\.dataset: 'cifar10' \(stored\) != "):
        open_run(other, tmp_path)
    other.data.image_size = 64
    with pytest.raises(ValueError, match=r"another run: data\.image_size: 32 \(stored\) != 64"):
        open_run(other, tmp_path, training=False)


@pytest.mark.parametrize(("name", "levels"), [("digits", 17), ("mixture", 0)])
def test_images_of_other_grey_levels_are_refused(
    name: str, levels: int, tmp_path: pathlib.Path
) -> None:
    """The network's samples, and its likelihoods, are of the levels that it was trained on."""
    run = tiny.config(data__dataset=name)
    (tmp_path / "config.json").write_text(json.dumps(run.to_dict()))
    run.data.dataset = "fashion_mnist"
    message = rf"data\.dataset: '{name}' .* 'fashion_mnist' .*, which have {levels} and 256 grey"
    with pytest.raises(ValueError, match=message):
        open_run(run, tmp_path, training=False)


def test_samples_do_not_depend_on_the_source_of_images() -> None:
    config = tiny.config()
    before = experiment.settings(config)
    config.data.update(dataset="folder", data_dir="photographs", cache=False)
    assert experiment.settings(config) == before
    config.data.image_size = 16
    assert experiment.settings(config) != before


@pytest.mark.parametrize("cut", [0, 1, 30, 200, -30, -1])
def test_a_damaged_snapshot_of_averages_is_named(cut: int, tmp_path: pathlib.Path) -> None:
    snapshots = Snapshots(tmp_path)
    tree = {"kernel": np.ones((3, 4), np.float32)}
    for step in (10, 20):
        snapshots.save(step, {"sigma_rel_0.1": tree})
    path = tmp_path / "10.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"10\.npz is damaged \(.*\); remove it to do") as refusal:
        snapshots.reconstruct(tree, 20, 0.1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("seed", range(8))
def test_a_byte_changed_anywhere_in_an_archive_is_seen_or_harmless(
    seed: int, tmp_path: pathlib.Path
) -> None:
    """An archive is read as it was written, or refused by its name: nothing else comes out."""
    path, rng = tmp_path / "a.npz", np.random.default_rng(seed)
    stored = {"image": rng.integers(0, 9, (4, 3), np.uint8), "nfe": np.arange(4)}
    np.savez(path, **stored)  # type: ignore[arg-type]
    whole, messages = path.read_bytes(), []
    for place in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read = arrays.read_archive(path)
        except ValueError as error:
            messages.append(str(error))
            continue
        for name in stored.keys() & read.keys():
            np.testing.assert_array_equal(read[name], stored[name])
    assert all(message.startswith(f"{path} is damaged (") for message in messages)
    assert messages
