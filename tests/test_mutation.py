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


def test_verdicts_are_read_again_and_a_line_cut_short_is_none(tmp_path: pathlib.Path) -> None:
    first, second, *_ = mutation.mutants("losses.py")
    lines = [
        json.dumps({"key": mutation.key_of(m), "verdict": v})
        for m, v in ((first, "killed"), (second, "survived"))
    ]
    (tmp_path / "1_of_2.jsonl").write_text(lines[0] + "\n" + lines[1][:-5])
    assert set(mutation.verdicts(tmp_path)) == {mutation.key_of(first)}
    (tmp_path / "2_of_2.jsonl").write_text(lines[1] + "\n")
    known = mutation.verdicts(tmp_path)
    assert known[mutation.key_of(second)]["verdict"] == "survived"
    count = len(list(mutation.mutants("losses.py")))
    row = mutation.table(["losses.py"], known).splitlines()[2]
    assert row == f"| `losses.py` | {count} | 1 | 1 | 0 | {count - 2} |"


def test_a_mutant_is_another_one_when_its_tests_change() -> None:
    mutant = next(mutation.mutants("losses.py"))
    other = mutant._replace(tests=[*mutant.tests, "tests/test_ema.py"])
    assert mutation.key_of(mutant) != mutation.key_of(other)
