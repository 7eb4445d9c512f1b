"""Mutants of the update rules: a changed sign, factor or time index, which the tests must notice.

    python tests/mutation.py [--sample N] [--seed 0] [--file sampling.py]
    python tests/mutation.py --record=runs/mutants [--shard=1/2]
    python tests/mutation.py --record=runs/mutants --page=docs/testing.md

Mutants of the update rules are made from their syntax trees, one at a time, in a copy of the
project. A mutant that its quick tests (`RULES` of `tests/mutation_rules.py`) let pass has survived,
and the exit code is 1.

All of them take hours. With `--record` each verdict is kept in a folder, the same command goes on
where it was stopped, and only mutants of what has changed since run again; `--shard=2/3` is the
second of three shares, for several processes or machines whose folders are put together. `--page`
writes the table of all verdicts into a page, and the verdicts into `tests/mutants.json`, which
count in every later run (`tests/mutation_verdicts.py` says for how long).
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import multiprocessing
import os
import pathlib
import random
import resource
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import mutation_verdicts
from mutation_rules import EQUIVALENT, RULES
from mutation_verdicts import KILLED, SURVIVED, Verdict

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU_SECONDS = 150  # after which a mutant counts as noticed: it does not end
SECONDS = 3600.0  # the same on the clock, for one that waits for ever
LOG, WITNESS = "log.txt", "witness.txt"  # in the copy: pytest's output, the test that failed


class Mutant(NamedTuple):
    file: str
    function: str
    number: int  # of all mutants of the function
    line: int
    old: str  # the line as it is, and as the mutant has it
    new: str
    source: str
    tests: list[str]


def edits(function: ast.AST) -> Iterator[tuple[ast.expr, str, str]]:
    """(node, text, other text): what to replace where, in the executed parts of a function."""
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    times = {"t": "s", "s": "t"} if {"t", "s"} <= names else {}
    for node in executed(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            yield node, *("+-" if isinstance(node.op, ast.Add) else "-+")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "-", ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            other = {0.5: "1.0", 2.0: "1.0", 1.5: "1.0", 1.0: "2.0"}.get(node.value)
            if other:
                yield node, str(node.value), other
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            if ast.unparse(node.right) == "2":
                yield node.right, "2", "1"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in times:
            yield node, node.id, times[node.id]
        elif isinstance(node, ast.Slice):
            other = {"1:": ":-1", ":-1": "1:"}.get(ast.unparse(node))
            if other:
                yield node, ast.unparse(node), other
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            index = ast.unparse(node.slice)
            if index in ("0", "1", "2", "3"):
                yield node.slice, index, str(abs(int(index) - 1))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` without annotations, defaults, decorators and refusals."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "args", "decorator_list", "test") and not isinstance(
            node, ast.Call | ast.Lambda | ast.IfExp
        ):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.arguments):
                yield child
                yield from executed(child)


def mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of the rules in a file.

    Raises:
      ValueError: a name in RULES that the file does not define.
    """
    source = (ROOT / file).read_text()
    offsets, lines = [0], source.splitlines()
    for text in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(text))
    tops: dict[str, ast.AST] = {}
    for top in ast.parse(source).body:
        targets = top.targets if isinstance(top, ast.Assign) else [getattr(top, "target", top)]
        tops |= {getattr(t, "id", getattr(t, "name", "")): top for t in targets}
    for owner, functions, tests in RULES:
        nodes = [
            f"tests/test_{stem}.py" + (f"::test_{name}" if name else "")
            for stem, names in tests.items()
            for name in names.split() or [""]
        ]
        for function in functions.split() if owner == file else ():
            if function not in tops:
                raise ValueError(f"{file} has no {function}: bring RULES in tests/mutation.py up")
            for number, (node, old, new) in enumerate(edits(tops[function])):
                # The operator of a sum stands after its left operand.
                before = end_of(node.left) if isinstance(node, ast.BinOp) else None
                line, column = before or (node.lineno, node.col_offset)
                at = source.index(old, offsets[line - 1] + column)
                line = source.count("\n", 0, at)
                mutated = source[:at] + new + source[at + len(old) :]
                was, at = lines[line], at - offsets[line]
                now = was[:at] + new + was[at + len(old) :]
                texts = was.strip(), now.strip(), mutated
                yield Mutant(file, function, number, line + 1, *texts, nodes)


def end_of(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


class Witness:
    """A plugin of pytest: it begins with the tests that noticed most of what has been tried in the
    same file, and writes the name of the one that fails, without parameters."""

    def __init__(self, noticed: Mapping[str, int]) -> None:
        self.noticed = noticed

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: -self.noticed.get(_name(item), 0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            pathlib.Path(WITNESS).write_text(_name(report))


def _name(of: Any) -> str:
    name: str = of.nodeid.partition("[")[0]
    return name


def forget_project() -> None:
    """Has what was imported of the project, such as the package of `conftest`'s, imported anew."""
    own = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]


def run_tests(folder: str, nodes: list[str], noticed: Mapping[str, int], limited: bool) -> None:
    """In a process of its own, with the libraries imported already: exits with pytest's code."""
    import pytest

    if limited:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.chdir(folder)
    sys.path.insert(0, folder)
    forget_project()
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    options = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    os._exit(pytest.main([*options, *nodes], plugins=[Witness(noticed)]))


def exit_code(
    folder: str, nodes: list[str], noticed: Mapping[str, int], limited: bool = True
) -> int | None:
    """The exit code of the tests: 0 passed, 1 failed, None not finished in time."""
    process = multiprocessing.get_context("fork").Process(
        target=run_tests, args=(folder, nodes, noticed, limited)
    )
    process.start()
    process.join(SECONDS if limited else None)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def key_of(mutant: Mutant) -> str:
    """The digest of a mutant's program: the file, and which mutant of which function it is."""
    program = mutation_verdicts.digest_of_code(mutant.file)
    return mutation_verdicts.digest(program, mutant.function, str(mutant.number))


def known_of(chosen: list[Mutant], record: pathlib.Path | None) -> dict[str, Verdict]:
    """The verdicts on these mutants that still hold, by key."""
    known = mutation_verdicts.recorded(record)
    found = {}
    for mutant in chosen:
        key = key_of(mutant)
        for verdict in known.get(key, ()):
            if mutation_verdicts.holds(verdict, mutant.tests):
                found[key] = verdict
    return found


def table(chosen: list[Mutant], known: Mapping[str, Verdict]) -> str:
    """Markdown: of the mutants of every file, how many are killed, survived, alike, not yet run."""
    lines = [
        "| file | mutants | killed | survived | alike | not run |",
        "|---|---|---|---|---|---|",
    ]
    by_file: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for mutant in chosen:
        alike = (mutant.file, mutant.new) in EQUIVALENT
        found = known.get(key_of(mutant))
        by_file[mutant.file]["alike" if alike else found.verdict if found else "-"] += 1
    lines += [_row(f"`{file}`", counts) for file, counts in sorted(by_file.items())]
    total = sum(by_file.values(), collections.Counter[str]())
    lines += [
        _row("all", total),
        "",
        "Alike, as they compute the same, or draw from the same law:",
        "",
    ]
    lines += [f"- `{file}`: `{line}`: {why}." for (file, line), why in EQUIVALENT.items()]
    return "\n".join(lines)


def _row(name: str, counts: collections.Counter[str]) -> str:
    columns = [counts.total(), *(counts[v] for v in (KILLED, SURVIVED, "alike", "-"))]
    return f"| {name} | " + " | ".join(map(str, columns)) + " |"


def shard_of(text: str) -> tuple[int, int]:
    """`2/3`, the second of three shares, as (1, 3)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1/2: a share of so many")
    return int(number) - 1, int(count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="only so many mutants, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", help="only the mutants of this file, or of several: a.py,b.py")
    parser.add_argument("--record", type=pathlib.Path, help="folder of verdicts, which are kept")
    parser.add_argument("--shard", type=shard_of, default=(0, 1), help="2/3: the second of three")
    parser.add_argument("--page", type=pathlib.Path, help="with --record: the page of the table")
    args = parser.parse_args()
    known_files = list(dict.fromkeys(file for file, *_ in RULES))
    files = args.file.split(",") if args.file else known_files
    if unknown := sorted(set(files) - set(known_files)):
        parser.error(f"--file: {', '.join(unknown)} is none of {', '.join(known_files)}")
    everything = [mutant for file in files for mutant in mutants(file)]
    if args.page:
        if args.file:
            parser.error("--page is of all files")
        known = known_of(everything, args.record)
        sys.path.insert(0, str(ROOT))
        from benchmarks import pages

        mutation_verdicts.KEPT.write_text(mutation_verdicts.text_of(known.items()))
        pages.write(args.page, "tests/mutation.py", table(everything, known))
        return 0
    chosen = [m for m in everything if (m.file, m.new) not in EQUIVALENT]
    index, count = args.shard
    chosen = [m for m in chosen if int(key_of(m), 16) % count == index]
    if args.sample:
        chosen = random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))
    if not args.record:
        return run(chosen, None)
    args.record.mkdir(parents=True, exist_ok=True)
    known = known_of(chosen, args.record)
    due = [m for m in chosen if key_of(m) not in known]
    print(f"{len(chosen)} mutants, {len(known)} with a verdict already", flush=True)
    if due and (code := run(due, args.record / f"{index + 1}_of_{count}.jsonl")):
        return code
    known = known_of(chosen, args.record)
    survivors = [m for m in chosen if known[key_of(m)].verdict == SURVIVED]
    for m in survivors:
        print(f"survived: {m.file}:{m.line} {m.function}\n    {m.old}\n    {m.new}")
    print(f"{len(chosen)} mutants, {len(survivors)} survived in all")
    return 1 if survivors else 0


def run(due: list[Mutant], log: pathlib.Path | None) -> int:
    """The verdict of each mutant, printed and added to the log; 1 if one survived without a log."""
    # Most programs are those of the mutant before: a third of the time.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))  # the environment, then JAX: once for all
    for library in ("diffrax", "flax.linen", "ml_collections", "optax", "pytest", "scipy.stats"):
        __import__(library)
    survived = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = os.path.join(scratch, "project")
        hidden = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "docs")
        shutil.copytree(ROOT, folder, ignore=hidden)
        nodes = list(dict.fromkeys(node for mutant in due for node in mutant.tests))
        if exit_code(folder, nodes, {}, limited=False) != 0:
            print(pathlib.Path(folder, LOG).read_text())
            print("the tests fail without a mutant")
            return 2
        noticed: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for number, mutant in enumerate(due):
            path = pathlib.Path(folder, mutant.file)
            original = path.read_text()
            path.write_text(mutant.source)
            witness = pathlib.Path(folder, WITNESS)
            witness.unlink(missing_ok=True)
            began = time.monotonic()
            code = exit_code(folder, mutant.tests, noticed[mutant.file])
            path.write_text(original)
            survived += code == 0
            by = witness.read_text() if witness.exists() else ""
            noticed[mutant.file][by] += 1
            verdict = "SURVIVED" if code == 0 else "killed" if code == 1 else f"killed ({code})"
            seconds = time.monotonic() - began
            print(
                f"{verdict:9} {seconds:5.1f} s  {number + 1}/{len(due)}  "
                f"{mutant.file}:{mutant.line} {mutant.function}\n"
                f"    {mutant.old}\n    {mutant.new}",
                flush=True,
            )
            if log:
                depends = mutation_verdicts.depends(by, mutant.tests)
                found = Verdict(KILLED if code else SURVIVED, by, depends)
                entry = {"key": key_of(mutant), **found._asdict(), "seconds": round(seconds, 1)}
                entry |= {
                    name: getattr(mutant, name) for name in ("file", "function", "old", "new")
                }
                with log.open("a") as stream:
                    stream.write(json.dumps(entry) + "\n")
    print(f"{len(due)} mutants, {survived} survived; {len(EQUIVALENT)} change nothing")
    return 1 if survived and not log else 0


if __name__ == "__main__":
    sys.exit(main())
