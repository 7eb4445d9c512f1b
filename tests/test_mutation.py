"""The machine that makes mutants: what it changes, shares and keeps (`tests/mutation.py`)."""

from __future__ import annotations

import argparse
import ast
import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import mutation
import mutation_verdicts


def test_signs_factors_powers_and_times_are_changed_one_at_a_time() -> None:
    source = "def step(x, t, s):\n    return x[1:] + 0.5 * x[:-1] ** 2 - f(t)\n"
    changes = [(old, new) for _, old, new in mutation.edits(ast.parse(source).body[0])]
    assert sorted(changes) == sorted(
        [
            ("+", "-"),
            ("-", "+"),
            ("-", ""),  # of -1
            ("0.5", "1.0"),
            ("2", "1"),
            ("t", "s"),
            ("1:", ":-1"),
            (":-1", "1:"),
        ]
    )


def test_refusals_annotations_and_defaults_are_left_as_they_are() -> None:
    source = "def step(x: list[1], h=0.5):\n    if h > 2.0:\n        raise ValueError(1.0 - h)\n"
    assert not list(mutation.edits(ast.parse(source).body[0]))


def test_every_mutant_is_another_program_and_names_tests_that_exist() -> None:
    for file in dict.fromkeys(file for file, *_ in mutation.RULES):
        original = (mutation.ROOT / file).read_text()
        for mutant in mutation.mutants(file):
            assert mutant.source != original, mutant.line
    for _, _, tests in mutation.RULES:
        for stem, names in tests.items():
            text = (mutation.ROOT / "tests" / f"test_{stem}.py").read_text()
            for name in names.split():
                assert f"def test_{name}(" in text, (stem, name)


def test_shares_of_the_mutants_are_apart_and_all_of_them() -> None:
    keys = [mutation.key_of(m) for m in mutation.mutants("losses.py")]
    shares = [mutation.shard_of(text) for text in ("1/3", "2/3", "3/3")]
    assert [sum(int(key, 16) % n == i for key in keys) for i, n in shares] != [0, 0, 0]
    assert sorted(keys) == sorted(key for i, n in shares for key in keys if int(key, 16) % n == i)
    for text in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(argparse.ArgumentTypeError, match="of the form 1/2"):
            mutation.shard_of(text)


def known_by(mutant: mutation.Mutant, verdict: str, by: str = "") -> str:
    """A line of a record."""
    depends = mutation_verdicts.depends(by, mutant.tests)
    found = mutation_verdicts.Verdict(verdict, by, depends)
    return json.dumps({"key": mutation.key_of(mutant), **found._asdict()})


def test_verdicts_are_read_again_and_a_line_cut_short_is_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = list(mutation.mutants("losses.py"))
    first, second, *_ = everything
    lines = [known_by(first, "killed"), known_by(second, "survived")]
    (tmp_path / "1_of_2.jsonl").write_text(lines[0] + "\n" + lines[1][:-5])
    monkeypatch.setattr(mutation_verdicts, "KEPT", tmp_path / "mutants.json")
    assert set(mutation.known_of(everything, tmp_path)) == {mutation.key_of(first)}
    (tmp_path / "2_of_2.jsonl").write_text(lines[1] + "\n")
    known = mutation.known_of(everything, tmp_path)
    assert known[mutation.key_of(second)].verdict == "survived"
    # What held for other tests changes nothing, in whatever file it is.
    earlier = json.loads(lines[1]) | {"verdict": "killed", "depends": "0" * 12}
    for name in ("0.jsonl", "9.jsonl"):
        (tmp_path / name).write_text(json.dumps(earlier) + "\n")
    assert mutation.known_of(everything, tmp_path) == known
    count = len(everything)
    alike = sum((m.file, m.new) in mutation.EQUIVALENT for m in everything)
    row = mutation.table(everything, known).splitlines()[2]
    assert row == f"| `losses.py` | {count} | 1 | 1 | {alike} | {count - 2 - alike} |"


TESTS = """
'''Words.'''
import math, re
LIMIT = 1e-3
OTHER = 7

def helper(x):
    return x + LIMIT

def test_one():
    assert f(1) < helper(math.pi)  # a comment

def test_two():
    assert g(1) < OTHER
"""


@pytest.mark.parametrize(
    ("old", "new", "holds"),
    [
        ("g(1)", "g(2)", True),  # another test
        ("def test_two", "def test_three", True),
        ("OTHER = 7", "OTHER = 8", True),  # what another test uses
        ("math, re", "math, re, io", True),
        ("# a comment", "# another", True),
        ("Words", "Other words", True),
        ("1e-3", "1e-2", False),  # what the test uses by its helper
        ("x + LIMIT", "x - LIMIT", False),
        ("import math, re", "import re; from cmath import pi as math", False),
        ("f(1)", "f(2)", False),  # the test that noticed
        ("def test_one", "def test_first", False),
    ],
)
def test_a_mutant_stays_killed_as_long_as_the_test_that_noticed_it_is_the_same(
    old: str, new: str, holds: bool, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "tests" / "test_x.py"
    file.parent.mkdir()
    by = "tests/test_x.py::test_one"
    file.write_text(TESTS)
    before = mutation_verdicts.digest_of_code(by, tmp_path)
    file.write_text(TESTS.replace(old, new))
    mutation_verdicts.digest_of_code.cache_clear()
    assert (mutation_verdicts.digest_of_code(by, tmp_path) == before) == holds


def test_a_survivor_runs_again_when_any_of_its_tests_changes_or_is_another() -> None:
    tests = next(mutation.mutants("losses.py")).tests
    survived = mutation_verdicts.Verdict("survived", "", mutation_verdicts.depends("", tests))
    assert mutation_verdicts.holds(survived, tests)
    assert not mutation_verdicts.holds(survived, [*tests, "tests/test_ema.py"])
    changed = survived._replace(depends="0" * mutation_verdicts.DIGITS)
    assert not mutation_verdicts.holds(changed, tests)
    by = "tests/test_ema.py::test_one"
    elsewhere = mutation_verdicts.Verdict("killed", by, mutation_verdicts.digest_of_code(by))
    assert not mutation_verdicts.holds(elsewhere, ["tests/test_losses.py::test_one"])


def test_the_file_of_verdicts_says_what_it_was_written_from(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_test = mutation_verdicts.Verdict("killed", "tests/test_x.py::test_y", "1")
    found = {
        "b": of_test,
        "a": of_test,
        "c": of_test._replace(depends="2"),
        "d": mutation_verdicts.Verdict("survived", "", "3"),
    }
    kept = tmp_path / "mutants.json"
    monkeypatch.setattr(mutation_verdicts, "KEPT", kept)
    kept.write_text(mutation_verdicts.text_of(found.items()))
    assert mutation_verdicts.recorded(None) == {key: [one] for key, one in found.items()}


def test_tests_of_a_mutant_import_the_project_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the package that `conftest` takes something from, before there is a mutant."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert "runtime" in sys.modules
    mutation.forget_project()
    left = {name.partition(".")[0] for name in sys.modules}
    assert not left & {"runtime", "tests", "sde_lib", "diffusion"}
    assert {"pytest", "ast"} <= left
