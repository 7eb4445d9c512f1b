"""An interrupted evaluation goes on with what is missing, and gives the same numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
import shutil
import socket
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import data
from configs.toy import two_moons_edm
from evaluation import batch_cache, evaluate, samples
from evaluation.report import console
from models.ops import native
from runtime import arrays, devices, experiment, files
from runtime.workdir import Trained
from tests import tiny
from training import loop

MADE_BY = {"weights": "ab", "seed": 0}


class Work:
    """Squares of row numbers in batches of 4; killed after `lives` batches."""

    def __init__(self, lives: int = 99) -> None:
        self.lives = lives
        self.rows: list[int] = []

    def __call__(self, rows: np.ndarray):
        for part in np.split(rows, range(4, len(rows), 4)):
            if not self.lives:
                raise KeyboardInterrupt
            self.lives -= 1
            self.rows += part.tolist()
            yield part, {"square": part**2}


def squares(store: batch_cache.Shards, work: Work, count: int = 10) -> list[int]:
    batches = store.batches(np.arange(count), 4, work)
    return np.concatenate([batch["square"] for batch in batches]).tolist()


@pytest.mark.parametrize("lives", [0, 1, 2])
def test_only_what_is_missing_is_computed(tmp_path, lives):
    first, second, third = Work(lives), Work(), Work()
    with pytest.raises(KeyboardInterrupt):
        squares(batch_cache.Shards(tmp_path, MADE_BY), first)
    store = batch_cache.Shards(tmp_path, MADE_BY)
    assert squares(store, second) == [i**2 for i in range(10)]
    assert second.rows == list(range(4 * lives, 10))
    assert squares(store, third) == [i**2 for i in range(10)]
    assert third.rows == []
    assert store.seconds > 0
    assert json.loads((store.folder / "made_by.json").read_text()) == MADE_BY
    store.remove()
    assert not tmp_path.exists(), "nor the folder above it, which is empty"


def test_what_was_made_otherwise_is_not_taken(tmp_path):
    squares(batch_cache.Shards(tmp_path, MADE_BY), Work())
    for made_by in (MADE_BY | {"seed": 1}, MADE_BY | {"weights": "ac"}):
        work = Work()
        squares(batch_cache.Shards(tmp_path, made_by), work)
        assert work.rows == list(range(10))
    more = Work()
    squares(batch_cache.Shards(tmp_path, MADE_BY), more, count=14)
    assert more.rows == list(range(8, 14)), "the last batch had fewer rows; whole ones stay"


def test_a_damaged_batch_is_computed_again(tmp_path, caplog):
    store = batch_cache.Shards(tmp_path, MADE_BY, {"square": arrays.NUMBER})
    squares(store, Work())
    file = store.folder / "batch_000004.npz"
    whole = file.read_bytes()
    content = bytearray(whole)
    content[content.index(b"NUMPY", content.index(b"square.npy")) + 130] ^= 1  # in the first number
    damages = [whole[:-40], whole[:60], b"", bytes(range(256)), bytes(content), b"3"]
    changes: list[Any] = [{"square": np.zeros((4, 2))}, {"square": np.full(4, "a")}]
    for change in (*changes, {"index": [[4, 5]]}):
        np.savez(file, **{"index": np.arange(4, 8), "square": np.zeros(4)} | change)
        damages.append(file.read_bytes())
    for damage in damages:
        file.write_bytes(damage)
        caplog.clear()
        work = Work()
        assert squares(store, work) == [i**2 for i in range(10)]
        assert work.rows == [4, 5, 6, 7]
        (line,) = caplog.messages
        assert line.startswith(f"{file} is damaged (")
        assert line.endswith("; it is computed again")


def test_two_machines_that_share_a_disk_write_the_same_batch_at_once(tmp_path, monkeypatch):
    """Processes of one number on two machines: each has a file of its own until it is whole."""
    paths = []
    for machine in ("first", "second"):
        monkeypatch.setattr(socket, "gethostname", lambda name=machine: name)
        with files.whole(tmp_path / "batch_000000.npz") as path:
            path.write_bytes(machine.encode())
            paths.append(path)
    assert len(set(paths)) == 2
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"
    assert all(path.suffix == ".npz" for path in paths), "or NumPy would add it"


def test_weights_that_differ_in_anything_have_another_hash():
    def hashed(**changes: Any) -> str:
        tree = {"a": np.ones((1, 2), np.float32), "b": np.zeros((1, 3), np.float32)} | changes
        params = {name: x[0] for name, x in tree.items()}
        sha256 = arrays.fingerprint(params)
        assert arrays.fingerprint(devices.fetch(devices.replicate(params))) == sha256
        return sha256

    assert hashed() == hashed()
    found = {
        hashed(),
        hashed(a=np.zeros((1, 2), np.float32)),
        hashed(a=np.ones((1, 2), np.int32)),
        hashed(a=np.ones((1, 1, 2), np.float32)),
        hashed(c=np.zeros((1, 0), np.float32)),
    }
    assert len(found) == 5


MOONS = {
    split: dataclasses.replace(whole, images=whole.images[:100], labels=whole.labels[:100])
    for split, whole in ((split, data.load("two_moons", split)) for split in ("train", "test"))
}


MAKING = (
    *("sde_lib.py", "sampling.py", "likelihood.py", "data/toy.py", "data/transforms.py"),
    *("diffusion/few_steps.py", "diffusion/ode.py", "models/ncsnpp.py", "models/ops/conv.py"),
    *("models/ops/native.py", "models/ops/cpu/convolution.cc", "models/ops/cpu/pool.h"),
    *("runtime/backend.py", "runtime/devices.py", "runtime/experiment.py", "configs/stored.py"),
    *("generation/generator.py", "generation/examples.py", "evaluation/likelihoods.py"),
    *("evaluation/sample_batches.py", "evaluation/batch_cache.py"),
)
SHOWING = (
    *("runtime/figures.py", "generation/point_figures.py", "generation/sample.py"),
    *("evaluation/report/page.py", "evaluation/report/style.css", "evaluation/report/console.py"),
    *("evaluation/metrics/frechet.py", "evaluation/judge.py", "training/loop.py", "main.py"),
)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of the sources of samples and likelihoods, and of `SHOWING`."""
    home = tmp_path_factory.mktemp("project")
    for file in {*batch_cache.sources(), *(batch_cache.HOME / name for name in SHOWING)}:
        copy = home / file.relative_to(batch_cache.HOME)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return home


def changed(home: pathlib.Path, name: str, more: bytes = b"\n# another\n") -> bool:
    """True if the code's hash is another one while a file is longer."""
    file, before = home / name, batch_cache.code_fingerprint(home)
    content = file.read_bytes()
    file.write_bytes(content + more)
    after = batch_cache.code_fingerprint(home)
    file.write_bytes(content)
    return after != before


@pytest.mark.parametrize("name", MAKING)
def test_code_that_can_change_a_sample_or_a_likelihood_is_part_of_the_name(copied, name):
    assert changed(copied, name)


@pytest.mark.parametrize("name", SHOWING)
def test_code_that_shows_or_judges_them_is_not(copied, name):
    assert not changed(copied, name)


def test_a_module_newly_imported_is_part_of_the_name_from_then_on(copied):
    (copied / "diffusion" / "fresh.py").write_text("VALUE = 1\n")
    assert not changed(copied, "diffusion/fresh.py")
    solver = copied / "diffusion" / "ode.py"
    solver.write_text(f"{solver.read_text()}\n\ndef late():\n    from diffusion import fresh\n")
    assert changed(copied, "diffusion/fresh.py")
    assert changed(copied, "diffusion/ode.py")


def test_every_file_of_the_native_functions_counts():
    counted = set(batch_cache.sources())
    assert set((batch_cache.HOME / "models" / "ops" / "cpu").iterdir()) <= counted
    assert batch_cache.HOME / "data" / "digits.py" in counted  # found by its folder, not imported


def test_all_results_depend_on_their_metrics_too_and_never_on_their_report():
    counted = set(batch_cache.sources(makers=batch_cache.EVALUATION))
    assert set(batch_cache.sources()) <= counted
    for name in ("frechet.py", "manifold.py", "classifier.py"):
        assert batch_cache.HOME / "evaluation" / "metrics" / name in counted
    assert batch_cache.HOME / "evaluation" / "judge.py" in counted
    assert not [file for file in counted if "report" in file.parts]


def test_releases_and_native_functions_are_part_of_the_name(monkeypatch, tmp_path):
    """An evaluation's batches lie in another folder once jaxlib or the forms in use are others."""

    def folder() -> str:
        return batch_cache.Store(tmp_path, batch_cache.program()).open({}, what="x").folder.name

    monkeypatch.setattr(batch_cache, "code_fingerprint", lambda *_: "the same")
    monkeypatch.setattr(native, "available", lambda: True)
    assert folder() == folder()
    folders = [folder()]
    monkeypatch.setattr(native, "available", lambda: False)
    folders.append(folder())
    installed = importlib.metadata.version
    for package in ("jax", "jaxlib", "diffrax"):
        with monkeypatch.context() as patch:
            patch.setattr(
                importlib.metadata,
                "version",
                lambda name, other=package: "99" if name == other else installed(name),
            )
            folders.append(folder())
    monkeypatch.setattr(batch_cache, "code_fingerprint", lambda *_: "other code")
    folders.append(folder())
    assert len(set(folders)) == len(folders)


class Killed(Exception):
    """The end of an evaluation in mid-air."""


@pytest.fixture
def machine(monkeypatch):
    """In place of the network: points and likelihoods that are functions of their numbers alone.

    It counts the batches that it makes, and stops when it has made `lives` of them.
    """
    state = SimpleNamespace(batches=0, lives=99)

    def made(name: str, rows: np.ndarray, batch_size: int, make: Any) -> Any:
        for part in np.split(rows, range(batch_size, len(rows), batch_size)):
            if state.batches == state.lives:
                raise Killed(name)
            state.batches += 1
            yield part, make(part)

    class Generator:
        guide = None

        def __init__(self, parts: Any, sampler: Any, options: Any, count: int) -> None:
            self.options = options

        def __call__(self, params: Any, indices: np.ndarray, seed: int) -> Any:
            def make(part: np.ndarray) -> Any:
                keys = [np.random.default_rng([seed, i]) for i in part]
                points = np.array([key.normal(size=2) for key in keys], np.float32)
                return {"image": points.reshape(-1, 1, 1, 2), "nfe": part % 7}

            yield from made("points", indices, self.options.batch_size, make)

    class Map:
        def __init__(self, function: Any, batch_size: int, setting: str) -> None:
            self.batch_size = batch_size

        def __call__(self, params: Any, indices: np.ndarray, arrays: Any, description: str) -> Any:
            repeats = arrays[1]

            def make(places: np.ndarray) -> Any:
                part = indices[places]
                values = np.sin(part + 10 * repeats[places]).astype(np.float32)
                return {"nats": values, "nfe": part % 5, "ok": np.ones(len(part), bool)}

            yield from made("nats", np.arange(len(indices)), self.batch_size, make)

    parts = experiment.build(config())
    trained = Trained({"w": np.ones((1, 2))}, 7, "EMA weights", "ab12")
    monkeypatch.setattr(data, "from_config", lambda config, split: MOONS[split])
    monkeypatch.setattr(experiment, "build", lambda config: parts)
    monkeypatch.setattr(evaluate, "restore", lambda *_: trained)
    monkeypatch.setattr(devices, "fetch", lambda tree: tree)
    monkeypatch.setattr(samples, "Generator", Generator)
    monkeypatch.setattr(devices, "ImageMap", Map)
    return state


def config(**changes: Any) -> Any:
    made = two_moons_edm.get_config()
    options = {
        "sampling.batch_size": 16,
        "sampling.num_frames": 0,
        "eval.num_samples": 40,
        "eval.seeds": 2,
        "eval.batch_size": 8,
        "eval.bpd_num_images": 20,
        "eval.bpd_num_repeats": 2,
        "eval.enable_loss": False,
        "eval.enable_sampling": True,
        "eval.enable_bpd": True,
    }
    made.update_from_flattened_dict(
        options | {name.replace("__", "."): value for name, value in changes.items()}
    )
    return made


def numbers(folder: pathlib.Path) -> dict[str, Any]:
    """results.json but for the times that it took."""
    found = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith("seconds")}


def test_killed_anywhere_and_restarted_an_evaluation_gives_the_same_numbers(machine, tmp_path):
    """3 batches of each of 2 seeds, then 5 of the likelihood: killed in each of the three parts."""
    evaluate.evaluate(config(), tmp_path, "whole")
    assert machine.batches == 11
    assert not (tmp_path / "whole" / "shards").exists()
    whole = numbers(tmp_path / "whole")
    for lives in (2, 4, 8):
        machine.batches, machine.lives = 0, lives
        name = f"killed_{lives}"
        with pytest.raises(Killed):
            evaluate.evaluate(config(), tmp_path, name)
        assert not (tmp_path / name / "results.json").exists()
        machine.batches, machine.lives = 0, 99
        evaluate.evaluate(config(), tmp_path, name)
        assert machine.batches == 11 - lives
        assert numbers(tmp_path / name) == whole
        assert not (tmp_path / name / "shards").exists()


def test_kept_samples_serve_a_later_evaluation(machine, tmp_path, monkeypatch):
    keep = {"eval__keep_samples": True, "eval__enable_bpd": False}
    evaluate.evaluate(config(**keep), tmp_path, "eval")
    stored = sorted((tmp_path / "eval" / "shards").glob("*/batch_*.npz"))
    assert len(stored) == 6
    with np.load(stored[0]) as shard:
        assert shard["image"].shape == (16, 1, 1, 2)
    machine.batches = 0
    more = keep | {"eval__metrics": ("fid", "fid_infinity")}
    results = evaluate.evaluate(config(**more), tmp_path, "eval")
    assert machine.batches == 0
    assert len(results["coordinates_fid_infinity_values"]) == 15
    evaluate.evaluate(config(**more, sampling__rtol=1e-3), tmp_path, "eval")
    assert machine.batches == 6, "another sampler: nothing is taken"
    compiled = native.available()
    monkeypatch.setattr(native, "available", lambda: not compiled)
    evaluate.evaluate(config(**more, sampling__rtol=1e-3), tmp_path, "eval")
    assert machine.batches == 12, "other forms of the CPU's functions: nothing is taken"


def test_likelihoods_of_other_settings_are_computed_again(machine, tmp_path):
    """5 batches; a killed evaluation left 2 of them, which serve the same settings alone."""
    only: dict[str, Any] = {"eval__enable_sampling": False}
    machine.lives = 2
    with pytest.raises(Killed):
        evaluate.evaluate(config(**only), tmp_path, "eval")
    machine.batches, machine.lives = 0, 99
    others: list[tuple[dict[str, Any], int]] = [
        ({"eval__bpd_rtol": 0.5}, 5),
        ({"eval__seed": 1}, 5),
        ({}, 3),
    ]
    for changes, batches in others:
        machine.batches = 0
        evaluate.evaluate(config(**only | changes), tmp_path, "eval")
        assert machine.batches == batches


def test_numbers_over_seeds_are_those_of_each_seed(machine, tmp_path):
    few = {"eval__enable_bpd": False}
    results = evaluate.evaluate(config(**few, eval__seeds=3), tmp_path, "eval")
    alone = [
        evaluate.evaluate(config(**few, eval__seeds=1, sampling__seed=seed), tmp_path, f"s{seed}")
        for seed in range(3)
    ]
    assert "over_seeds" not in alone[0]
    spread = dict(results["over_seeds"])
    assert spread.pop("seeds") == [0, 1, 2]
    assert spread.keys() == {
        "frechet_distance",
        "frechet_distance_matched",
        "sliced_wasserstein",
    }
    for name, found in spread.items():
        values = [one[name] for one in alone]
        assert found["values"] == values
        assert (found["mean"], found["std"]) == pytest.approx(
            (np.mean(values), np.std(values, ddof=1))
        )
        assert results[name] == values[0]
    assert len(set(spread["frechet_distance"]["values"])) == 3
    printed = dict(console.table(results))
    mean, std = (spread["sliced_wasserstein"][name] for name in ("mean", "std"))
    row = printed["Sliced Wasserstein distance, 3 seeds"]
    assert row == f"{mean:.4f} ± {std:.4f}  (seeds 0 to 2)"


@pytest.mark.slow
def test_a_real_evaluation_goes_on_where_it_was_killed(tmp_path, capsys, monkeypatch):
    loop.train(tiny.config(), tmp_path)
    options = ("--config.eval.enable_loss=False", "--eval_folder=whole")
    assert tiny.run(capsys, *tiny.arguments(tmp_path, "eval", *options))[0] == 0
    write = batch_cache.Shards._write
    calls: list[list[int]] = []

    def dies(self: Any, part: np.ndarray, results: Any) -> None:
        if len(calls) == 1:
            raise OSError("the disk is full")
        calls.append(part.tolist())
        write(self, part, results)

    again = (options[0], "--eval_folder=killed")
    monkeypatch.setattr(batch_cache.Shards, "_write", dies)
    assert tiny.run(capsys, *tiny.arguments(tmp_path, "eval", *again))[0] == 1
    calls.append([])
    assert tiny.run(capsys, *tiny.arguments(tmp_path, "eval", *again))[0] == 0
    samples, likelihoods = [[0, 1, 2, 3], [4, 5, 6, 7]], [0, 1, 2, 3]
    assert calls == [samples[0], [], samples[1], likelihoods]
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
