"""benchmarks/today: who can run, turns, results that are kept, tables; benchmarks/checkouts."""

import json
import pathlib
import sys
from typing import Any

import pytest

from benchmarks import checkouts
from benchmarks.today import __main__ as today
from benchmarks.today import rows, tables, turns
from benchmarks.today.worker import Job, Loaded, serve


def checkout(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """A folder with the signs of these projects."""
    for name in names:
        file, line = checkouts.PROJECTS[name].sign
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("a") as text:
            text.write(f"{line}:\n")
    return folder


def measured(facts: dict[str, Any] | None = None, **seconds: list[float]) -> turns.Measured:
    return {"seconds": seconds, "cpu": seconds, "facts": facts or {}}


@pytest.mark.parametrize("name", checkouts.PROJECTS)
def test_a_checkout_is_known_by_its_sign(tmp_path: pathlib.Path, name: str) -> None:
    assert checkouts.kind(checkout(tmp_path, name)) == name


def test_score_flow_has_the_signs_of_score_sde_too(tmp_path: pathlib.Path) -> None:
    assert checkouts.kind(checkout(tmp_path, "jax", "score_flow")) == "score_flow"


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"no checkout of any of these: github.com/NVlabs/edm"):
        checkouts.kind(tmp_path)


def test_two_checkouts_of_one_project_are_refused(tmp_path: pathlib.Path) -> None:
    paths = [str(checkout(tmp_path / name, "jax")) for name in ("a", "b")]
    with pytest.raises(ValueError, match="are of one project"):
        rows.checkouts_by_project(paths)


def test_a_missing_package_is_named_with_how_it_is_installed() -> None:
    with pytest.raises(ValueError, match=r"needs nowhere: pip install no-where"):
        checkouts.require("nowhere", "no-where")


def test_missing_contenders_are_named_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that nobody gave, and packages that no interpreter has."""
    monkeypatch.setitem(rows.CONTENDERS, "edm", rows.Contender("EDM", ("json",), "edm"))
    monkeypatch.setitem(rows.CONTENDERS, "azula", rows.Contender("azula", ("json", "no_such")))
    with pytest.raises(rows.Missing) as error:
        rows.pythons_by_contender(["edm", "azula"], [sys.executable], {})
    assert error.value.names == ("edm", "azula")
    assert "EDM needs --peer=PATH, a checkout of github.com/NVlabs/edm" in str(error.value)
    assert "azula needs no_such in one Python" in str(error.value)


def test_a_contender_runs_in_the_first_python_that_has_its_packages(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two packages in two interpreters are of no use."""
    poor, rich = tmp_path / "poor", tmp_path / "rich"
    poor.write_text("#!/bin/sh\necho one\n")
    rich.write_text("#!/bin/sh\necho one two\n")
    for path in (poor, rich):
        path.chmod(0o755)
    monkeypatch.setitem(rows.CONTENDERS, "a", rows.Contender("A", ("one",)))
    monkeypatch.setitem(rows.CONTENDERS, "b", rows.Contender("B", ("one", "two")))
    found = rows.pythons_by_contender(["a", "b"], [str(poor), str(rich)], {})
    assert found == {"a": str(poor), "b": str(rich)}


def test_an_interpreter_that_is_none_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"--python=.*none cannot be run as a Python"):
        rows.packages_of(str(tmp_path / "none"), ["json"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows=steps"], "row of --rows 'steps'"),
        (["--rows=toy", "--peer=/none"], "no checkout of any"),
        (["--rows=sampler"], "EDM's SongUNet needs --peer=PATH"),
    ],
)
def test_the_command_refuses_in_one_line(
    tmp_path: pathlib.Path, options: list[str], words: str
) -> None:
    """And leaves nothing behind."""
    folder = tmp_path / "run"
    with pytest.raises(SystemExit, match=words) as error:
        today.main([f"--workdir={folder}", *options])
    assert str(error.value).startswith("error: ")
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_every_row_has_ours_first_and_contenders_that_are_known() -> None:
    for row in rows.ROWS.values():
        for case in row.cases:
            assert row.of(case)[0] == rows.OURS
            assert set(row.of(case)) <= set(row.contenders) <= set(rows.CONTENDERS)


class Answers:
    """What `serve` wrote."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, text: str) -> None:
        self.lines.append(json.loads(text))

    def flush(self) -> None:
        pass


def test_a_worker_counts_its_calls_and_survives_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is made once before any order; its seconds are those of its work done once."""
    made: list[str] = []
    facts: dict[str, Any] = {}

    def good() -> None:
        made.append("good")
        facts["nfe"] = len(made)

    def bad() -> None:
        made.append("bad")
        if made.count("bad") > 1:
            raise RuntimeError("it\nbroke")

    from benchmarks.today import step

    loaded = Loaded({"good": (good, 2), "bad": (bad, 1)}, facts)
    monkeypatch.setattr(step, "load", lambda job: loaded)
    orders = [json.dumps({"call": name}) for name in ("bad", "good")]
    answers = Answers()
    serve(Job("step", "", "", "", "", 1, True), orders, answers)
    ready, error, done = answers.lines
    assert ready["calls"] == ["good", "bad"]
    assert error == {"error": "RuntimeError: it broke"}
    assert 0.001 < done["facts"].pop("peak") < 1000
    assert done["facts"] == {"nfe": 4}
    assert made == ["good", "bad", "bad", "good"]


def test_a_workers_log_is_named_when_it_fails(tmp_path: pathlib.Path) -> None:
    """A real process, of a row that does not exist."""
    job = Job("no_such_row", "ours", "", "", "", 1, True)
    launch = turns.Launch(sys.executable, {}, tmp_path / "log")
    with pytest.raises(ValueError, match=r"ours: ModuleNotFoundError.*log has the rest"):
        turns.Worker("ours", job, launch)
    assert "Traceback" in launch.log.read_text()


class Puppet:
    """A worker whose seconds are counted up over all of them."""

    clock = 0.0

    def __init__(self, name: str) -> None:
        self.name, self.calls, self.facts = name, ["a", "b"], {"of": name}

    def time(self, call: str) -> dict[str, Any]:
        Puppet.clock += 1.0
        return {"seconds": Puppet.clock, "cpu": -Puppet.clock}


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "REST", 0.0)
    puppets: Any = [Puppet("x"), Puppet("y")]
    results = turns.take_turns(puppets, 2, "")
    assert results["x"]["seconds"] == {"a": [1.0, 5.0], "b": [2.0, 6.0]}
    assert results["y"]["seconds"] == {"a": [3.0, 7.0], "b": [4.0, 8.0]}
    assert results["y"]["cpu"]["b"] == [-4.0, -8.0]
    assert results["x"]["facts"] == {"of": "x"}


def test_a_command_that_measures_itself_is_believed(tmp_path: pathlib.Path) -> None:
    launch = turns.Launch(sys.executable, {"X": "2.5"}, tmp_path / "log")
    program = "import os; print('cpu', os.environ['X'])"
    assert turns.run(["-c", program], launch, 1, "cpu ").cpu == 2.5
    assert 0.0 < turns.run(["-c", program], launch, 1).cpu < 2.5
    with pytest.raises(ValueError, match="never printed 'time '"):
        turns.run(["-c", program], launch, 1, "time ")
    with pytest.raises(ValueError, match=r"failed \(.*log says why\)"):
        turns.run(["-c", "raise SystemExit(3)"], launch, 1)


def test_overhead_is_what_a_sampler_takes_beyond_its_evaluations() -> None:
    case = measured({"nfe": 10}, sampler=[10.5, 22.0, 33.0], network=[1.0, 2.0, 3.0])
    assert tables.overhead(case) == pytest.approx(0.1)


def test_few_images_tell_what_five_thousand_take() -> None:
    """The distance is added once: 5,000 x 2 s / 100 + 7 s."""
    case = measured({"images": 100}, features=[1.0, 2.0, 9.0], distance=[7.0])
    assert tables.seconds("fid", case) == pytest.approx(107.0)


def test_the_table_has_ratios_of_medians_and_names_who_was_missing() -> None:
    facts = {"parameters": 2474787, "peak": 1.25}
    contenders = {
        "ours": measured(facts, step=[0.2, 0.1, 9.0]),
        "edm": measured(facts, step=[0.5, 0.4, 0.5]),
    }
    text = tables.markdown({"step": {"vp_32": {"contenders": contenders, "missing": ["azula"]}}})
    assert "| DDPM++, 32 channels, batch 16 | ours | 200 ms | 1.00 | 2,474,787 | 1.2 GB |" in text
    assert "|  | EDM's SongUNet | 500 ms | 2.50 | 2,474,787 | 1.2 GB |" in text
    assert "Not measured, as it was not there: azula." in text
    header, rule = text.splitlines()[2:4]
    assert header.count("|") == rule.count("|") == 7


@pytest.fixture
def asked(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command with the row "toy" of two contenders that are always there; returns what was
    measured by it, anew at each call."""
    for name in ("azula", "hackable"):
        monkeypatch.setitem(rows.CONTENDERS, name, rows.Contender(name, ("json",)))
    monkeypatch.setitem(rows.CONTENDERS, "ours", rows.Contender("ours", ("json",)))
    made: list[tuple[str, str]] = []

    def command(self: Any, row: str, case: str, name: str) -> turns.Spent:
        made.append((row, name))
        return turns.Spent(1.0 + len(made), 1.0)

    monkeypatch.setattr(today.Today, "command", command)

    def run(*options: str) -> list[tuple[str, str]]:
        made.clear()
        today.main([f"--workdir={tmp_path}", "--rows=toy", *options])
        return list(made)

    return run


def test_what_was_measured_is_not_measured_again(asked: Any, tmp_path: pathlib.Path) -> None:
    """But for other settings."""
    names = [("toy", name) for name in ("ours", "azula", "hackable")]
    assert asked("--rounds=2") == names * 2
    assert asked() == []
    assert asked("--threads=1") == names
    assert asked("--threads=1", "--quick") == names


def test_a_damaged_result_is_refused(asked: Any, tmp_path: pathlib.Path) -> None:
    asked()
    (tmp_path / "toy-toy.json").write_text("{")
    with pytest.raises(SystemExit, match="remove it, and it is measured again"):
        asked()


def test_the_page_gets_the_table(asked: Any, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: benchmarks.today -->\n<!-- end: benchmarks.today -->\nb\n")
    asked(f"--page={page}")
    text = page.read_text()
    assert text.startswith("a\n<!-- begin: benchmarks.today -->\n\n**Two moons")
    assert text.endswith("<!-- end: benchmarks.today -->\nb\n")
    assert "|  | azula | 3.00 s | 1.50 |" in text
