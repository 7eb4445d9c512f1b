"""Several checkpoints and samplers in one run, each once; any number of devices: same numbers."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation import batch_cache, evaluate, stored_results
from evaluation.report import console, content, facts
from runtime import experiment, files
from runtime.workdir import Trained, results_folder
from tests import tiny
from tests.test_report import load
from tests.test_report import results as report_results
from tests.test_training import start_two, use_devices
from training import loop


@pytest.fixture
def run_with(monkeypatch):
    """Lets a run have checkpoints of these steps."""

    def have(*steps):
        run = SimpleNamespace(steps_anywhere=lambda: list(steps), directory="run/checkpoints")
        monkeypatch.setattr(evaluate, "open_run", lambda config, workdir, training: run)

    return have


RANGE: dict[str, Any] = {
    "eval__checkpoint": "range",
    "eval__begin_ckpt": 2,
    "eval__end_ckpt": 4,
    "eval__samplers": ("ddim:5", "ode"),
}


def test_a_range_of_checkpoints_times_samplers(run_with, tmp_path):
    """snapshot_freq is 100: of steps 200 to 400, those that are there."""
    run_with(100, 200, 250, 400, 500)
    plan = evaluate.planned(tiny.config(**RANGE), tmp_path)
    found = [
        (name, one.eval.checkpoint, one.sampling.method, one.sampling.num_steps)
        for name, one in plan.items()
    ]
    assert found == [
        ("step_200_ddim_5", "200", "ddim", 5),
        ("step_200_ode", "200", "ode", 0),
        ("step_400_ddim_5", "400", "ddim", 5),
        ("step_400_ode", "400", "ode", 0),
    ]
    assert [one.eval.enable_bpd for one in plan.values()] == [True, False, True, False]
    assert [one.eval.enable_loss for one in plan.values()] == [True, False, True, False]
    assert all(one.eval.samplers == () for one in plan.values())
    best = evaluate.planned(
        tiny.config(eval__checkpoint="best", eval__samplers=("ddim",)), tmp_path
    )
    assert list(best) == ["best_ddim"]
    only = evaluate.planned(tiny.config(**RANGE | {"eval__samplers": ()}), tmp_path)
    assert list(only) == ["step_200", "step_400"]
    assert only["step_200"].sampling.to_dict() == tiny.config().sampling.to_dict()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"eval__begin_ckpt": 3, "eval__end_ckpt": 3}, FileNotFoundError, "of steps 300 to 300"),
        ({"eval__samplers": ("ddim", "dim")}, ValueError, r"sampling\.method.* 'dim'"),
        ({"eval__samplers": ("ddim:ten",)}, ValueError, "'ddim:ten'; a sampler is a method such"),
    ],
)
def test_what_cannot_be_planned_is_refused(run_with, tmp_path, changes, error, message):
    run_with(200, 400)
    with pytest.raises(error, match=message):
        evaluate.planned(tiny.config(**RANGE | changes), tmp_path)


def test_what_is_finished_is_not_repeated(run_with, tmp_path, monkeypatch, capsys):
    run_with(200, 400)
    config = tiny.config(**RANGE)
    done: list[str] = []
    weights = ["a hash"]
    monkeypatch.setattr(evaluate, "weights_of", lambda *_: weights[0])

    def one_run(one, workdir, folder):
        step = int(one.eval.checkpoint)
        if one.sampling.method == "ode" and step == 400 and len(done) == 3:
            raise KeyboardInterrupt
        done.append(folder)
        results = {
            "step": step,
            "weights": "EMA weights",
            "nfe": 5.0,
            "fid": len(done),
            "num_samples": 8,
            "num_train": 16,
            "examples": "images",
            "features": "a classifier",
            "seed": 0,
            "versions": {},
            "made_by": evaluate.made_by(one),
            "program": batch_cache.program(batch_cache.EVALUATION),
            "weights_sha256": weights[0],
        }
        files.write_json(workdir / folder / "results.json", results)
        return results

    whole = evaluate.evaluate
    reported: list[list[str]] = []
    monkeypatch.setattr(content, "write", lambda *given: reported.append(list(given[-1])))
    monkeypatch.setattr(evaluate, "evaluate", one_run)
    with pytest.raises(KeyboardInterrupt):
        whole(config, tmp_path, "eval")
    assert done == [f"eval/step_{name}" for name in ("200_ddim_5", "200_ode", "400_ddim_5")]
    done.append("interrupted")
    results = whole(config, tmp_path, "eval")["runs"]
    assert done[4:] == ["eval/step_400_ode"]
    assert [run["fid"] for run in results.values()] == [1, 2, 3, 5]
    assert reported == [list(evaluate.planned(config, tmp_path))]
    assert (tmp_path / "eval" / "results.json").is_file()
    header, _, *rows = capsys.readouterr().out.splitlines()[:6]
    assert header.split() == ["evaluation", "step", "NFE", "FID"]
    assert rows[3].split() == ["step_400_ode", "400", "5", "5"]
    config = tiny.config(**RANGE | {"sampling__seed": 1})
    whole(config, tmp_path, "eval")
    assert len(done) == 9  # another seed: all four again
    moved = tiny.config(**RANGE | {"sampling__seed": 1, "data__data_dir": "elsewhere"})
    assert evaluate.made_by(moved) != evaluate.made_by(config)  # results of other images
    whole(config, tmp_path, "eval")
    assert len(done) == 9
    monkeypatch.setattr(batch_cache, "code_fingerprint", lambda *_: "other code")
    whole(config, tmp_path, "eval")
    assert len(done) == 13
    weights[0] = "another hash"  # trained again to the same step
    whole(config, tmp_path, "eval")
    assert len(done) == 17


def test_all_processes_restore_the_weights_where_the_primary_has_results(tmp_path, monkeypatch):
    """A process without the file on its own disk goes along: restoring is a common call."""
    restored = []
    monkeypatch.setattr(evaluate.devices, "of_primary", lambda flag: True)
    monkeypatch.setattr(evaluate, "weights_of", lambda *_: restored.append(1))
    assert evaluate.is_finished({}, tiny.config(eval__checkpoint="200"), tmp_path)
    assert restored == [1]


TOLERANCE = 1e-3  # of the likelihoods' steps
MORE = {
    "sampling.num_frames": 0,
    "eval.keep_samples": True,
    "eval.num_samples": 48,
    "eval.seeds": 2,
    "eval.bpd_rtol": TOLERANCE,
    "eval.bpd_atol": TOLERANCE,
}


FID_ALONE: dict[str, Any] = {
    "eval__enable_bpd": False,
    "eval__enable_sampling": True,
    "eval__features": "inception",
    "eval__repeat_grey": True,
    "eval__stats_path": "s.npz",
}


def test_the_loss_is_left_out_where_it_alone_needs_the_data_set(tmp_path, caplog):
    def absent(split: str) -> Any:
        raise FileNotFoundError(f"no split {split} here")

    def loss_results(**changes: Any) -> dict[str, Any]:
        config = tiny.config(**FID_ALONE | changes)
        parts = dataclasses.replace(experiment.build(config), dataset=absent)
        return evaluate.loss_results(config, parts, Trained({}, 2, "", ""), tmp_path)

    assert loss_results() == {"loss_left_out": "no split train here"}
    assert caplog.messages == ["the loss of test images is left out: no split train here"]
    for changes in (
        {"eval__enable_sampling": False},
        {"eval__enable_bpd": True},
        {"eval__stats_path": ""},
        {"eval__features": "classifier"},
    ):
        with pytest.raises(FileNotFoundError, match="no split train"):
            loss_results(**changes)
    with pytest.raises(FileNotFoundError, match=r"s\.npz: there are no statistics"):
        loss_results(eval__metrics=("kid",), eval__num_samples=1000)


def test_another_data_set_than_the_runs_is_said(caplog):
    trained = Trained({}, 2, "EMA weights", "ab", "lsun_church")
    config = tiny.config()
    parts = experiment.build(config)
    results = evaluate.origin(config, parts, trained)
    evaluate.warn_of_other_data(results)
    (message,) = caplog.messages
    assert message.startswith("data.dataset is 'digits', and the run was trained on 'lsun_church'")
    same = trained._replace(dataset="Digits")
    evaluate.warn_of_other_data(evaluate.origin(config, parts, same))
    assert len(caplog.messages) == 1
    rows = dict(console.table(results))
    assert rows["trained on"] == "lsun_church; compared with digits"
    assert facts.shared_facts(results, True)["trained on"] == "lsun_church"


def test_another_folder_than_the_runs_is_said(caplog, tmp_path):
    trained = Trained({}, 2, "EMA weights", "ab", "folder", str(tmp_path / "a"))
    for folder in ("a", "a/", "b/../a"):
        config = tiny.config(data__dataset="folder", data__data_dir=str(tmp_path / folder))
        evaluate.warn_of_other_data(evaluate.origin(config, experiment.build(config), trained))
    assert not caplog.messages
    config.data.data_dir = str(tmp_path / "b")
    results = evaluate.origin(config, experiment.build(config), trained)
    evaluate.warn_of_other_data(results)
    assert caplog.messages == [
        f"data.dataset is 'folder ({tmp_path}/b)', and the run was trained on 'folder ({tmp_path}"
        "/a)': its numbers compare with the former"
    ]
    said = f"folder ({tmp_path}/a); compared with folder ({tmp_path}/b)"
    assert dict(console.table(results))["trained on"] == said
    unknown = trained._replace(folder="")
    assert "trained_on_folder" not in evaluate.origin(config, experiment.build(config), unknown)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a tiny run, evaluated on one device in `eval`."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        loop.train(tiny.config(), workdir)
        evaluate.evaluate(with_more(), workdir, "eval")
    return workdir


def with_more() -> Any:
    config = tiny.config()
    config.update_from_flattened_dict(MORE)
    return config


def same_numbers(found: pathlib.Path, expected: pathlib.Path) -> None:
    """results.json of two folders but for the times that they took, and likelihoods.

    Rounding, which differs with the number of images in a call, moves the steps of the adaptive
    solver, so likelihoods agree to its tolerance; all else agrees to rounding.
    """
    first, second = (json.loads((path / "results.json").read_text()) for path in (found, expected))
    assert first.keys() == second.keys()
    for name, value in second.items():
        if name in ("bits_per_dim", "bits_per_dim_stderr"):
            allowed = (
                TOLERANCE * second["bits_per_dim"]
            )  # of one likelihood, and so of their spread
            np.testing.assert_allclose(first[name], value, rtol=0, atol=allowed, err_msg=name)
        elif name == "bits_per_dim_nfe":
            np.testing.assert_allclose(first[name], value, rtol=0.1, err_msg=name)
        elif not name.endswith("_seconds"):
            compare(name, first[name], value)
    ours, theirs = (np.load(path / "bits_per_dim.npz")["bits"] for path in (found, expected))
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)


def compare(name: str, found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            compare(f"{name}.{key}", found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for one, other in zip(found, expected, strict=True):
            compare(name, one, other)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    else:
        assert found == expected, name


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_numbers_do_not_depend_on_the_device_count(
    count: int, evaluated: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, count)
    evaluate.evaluate(with_more(), evaluated, f"devices_{count}")
    same_numbers(evaluated / f"devices_{count}", evaluated / "eval")


@pytest.mark.slow
def test_two_processes_killed_and_restarted_evaluate_as_one(
    evaluated: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """kill -9 of both once three of the 24 batches are there; then the same command again."""
    workdir = tmp_path / "run"
    shutil.copytree(evaluated, workdir)
    folder = workdir / "two"
    more = [f"--config.{name}={value}" for name, value in MORE.items()]
    processes = start_two(workdir, *more, "--eval_folder=two", mode="eval")
    while len(list(folder.glob("shards/*/batch_*.npz"))) < 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.communicate()
    assert not (folder / "results.json").exists(), "it ended before it could be killed"
    stored = {file: file.stat().st_mtime_ns for file in folder.glob("shards/*/batch_*.npz")}
    for process in start_two(workdir, *more, "--eval_folder=two", mode="eval"):
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    for file, written in stored.items():
        assert file.stat().st_mtime_ns == written, "a finished batch was computed again"
    same_numbers(folder, evaluated / "eval")


@pytest.mark.slow
def test_two_processes_follow_a_run_as_one(evaluated: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Both see the same checkpoints, and the number of the last is that of one process."""
    workdir = tmp_path / "run"
    shutil.copytree(evaluated, workdir)
    more = [f"--config.{name}={value}" for name, value in MORE.items()]
    more += ["--config.eval.checkpoint=follow", "--config.eval.begin_ckpt=1"]
    outputs = []
    for process in start_two(workdir, *more, "--eval_folder=two", mode="eval"):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        outputs.append(output)
    assert sum("training has reached its last step" in output for output in outputs) == 1
    alone = json.loads((evaluated / "eval" / "results.json").read_text())
    path = workdir / "two" / f"step_{alone['step']}" / "results.json"
    together = json.loads(path.read_text())
    for name in ("step", "weights_sha256", "num_samples", "frechet_distance", "loss"):
        compare(name, together[name], alone[name])


def results_of(weights: str, *names: str, **settings: Any) -> dict[str, Any]:
    """Results of one evaluation, or of several `names`."""
    one = {"made_by": {"eval": settings}, "weights_sha256": weights, "fid": 3.0}
    return {"runs": dict.fromkeys(names, one)} if names else one


def test_results_of_other_settings_are_kept_beside(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(results: dict[str, Any]) -> str:
        stored_results.keep_earlier(tmp_path, results)
        for name in stored_results.RESULTS:
            files.write_json(tmp_path / name, results)
        return capsys.readouterr().out

    def kept() -> list[dict[str, Any]]:
        paths = sorted(tmp_path.glob("earlier_*"), key=lambda path: path.stat().st_mtime_ns)
        assert all(
            {file.name for file in path.iterdir()} == {*stored_results.RESULTS} for path in paths
        )
        return [json.loads((path / "results.json").read_text()) for path in paths]

    first, second = results_of("ab", ema="raw", seeds=1), results_of("ab", ema="", seeds=1)
    assert not write(first)
    assert not write(first)
    line = write(second)
    assert line.startswith(f"{tmp_path} had results of eval.ema='raw' (now ''); they are kept in ")
    assert kept() == [first]
    assert "of other weights or evaluations; they" in write(results_of("cd", ema="", seeds=1))
    assert kept() == [first, second]
    several = results_of("cd", "step_2", ema="", seeds=1), results_of("cd", "step_4", ema="")
    assert "they are kept in" in write(several[0])
    assert not write(several[0])
    assert "they are kept in" in write(several[1])
    assert len(kept()) == 4
    assert "of other weights or evaluations; they" in write(first)
    assert not (tmp_path / "results.json").with_name("earlier").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x", "is not inside .*; it must be the name of a folder there"),
        ("/tmp/x", "is not inside"),
        ("out/x", "is not inside"),
        ("", "is not inside"),
        (".", "is not inside"),
        ("eval/..", "is not inside"),
        ("checkpoints", "is where the run keeps its checkpoints; name another"),
        ("eval/../ema/x", "is where the run keeps its ema; name another"),
    ],
)
def test_results_stay_inside_the_folder_of_the_run(
    name: str, message: str, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "out").symlink_to(tmp_path)
    (workdir / "in").symlink_to(workdir / "eval")
    with pytest.raises(ValueError, match=f"--eval_folder={name!r} {message}") as refusal:
        evaluate.evaluate(tiny.config(), workdir, name)
    assert "\n" not in str(refusal.value)
    for inside in ("eval", "eval/a/b", "in/x", "eval_of_samples", str(workdir / "eval")):
        assert results_folder(workdir, inside) == workdir / inside


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe", b"[1]", b"7", "step", "made_by", "versions", "fid", "nfe"],
)
def test_damaged_results_of_one_of_several_evaluations_are_made_again(
    damage: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load("vp/cifar10_ddpmpp_continuous")
    stored, path = report_results(config), tmp_path / "results.json"
    assert evaluate.can_be_shown(stored, config)
    if isinstance(damage, bytes):
        path.write_bytes(damage)
        assert stored_results.results_in(path) == {}
        (line,) = caplog.messages
        assert line.startswith(f"{path} is damaged: ")
        assert line.endswith("; the evaluation is made again")
    else:
        assert not evaluate.can_be_shown(stored | {damage: ["odd"]}, config)
    assert not evaluate.can_be_shown({}, config)
