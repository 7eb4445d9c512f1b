"""Several checkpoints and samplers in one run: each once, in a folder of its own, and a table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import evaluate
import report
import reports
import train
from tests import tiny


@pytest.fixture
def run_with(monkeypatch):
    """Lets a run have checkpoints of these steps."""

    def have(*steps):
        run = SimpleNamespace(steps=lambda: list(steps), directory="run/checkpoints")
        monkeypatch.setattr(train, "open_run", lambda config, workdir: run)

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

    def one_run(one, workdir, folder):
        step = int(one.eval.checkpoint)
        if one.sampling.method == "ode" and step == 400 and len(done) == 3:
            raise KeyboardInterrupt
        done.append(folder)
        results = {"step": step, "nfe": 5.0, "fid": len(done), "made_by": evaluate.made_by(one)}
        reports.write_json(workdir / folder / "results.json", results)
        return results

    whole = evaluate.evaluate
    reported: list[list[str]] = []
    monkeypatch.setattr(report, "write", lambda *given: reported.append(list(given[-1])))
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
    whole(tiny.config(**RANGE | {"sampling__seed": 1}), tmp_path, "eval")
    assert len(done) == 9  # another seed: all four again
