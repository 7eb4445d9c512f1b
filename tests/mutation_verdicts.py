"""What became of the mutants of `tests/mutation.py`, and for how long a verdict holds.

A mutant stays killed as long as its program, and the test that noticed it with all that it uses in
its file, are the same; a survivor, or one that did not end, as long as all its tests' files are.
Programs and tests are compared without comments and docstrings.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "mutants.json"  # the verdicts that come with the project
DIGITS = 12  # hexadecimal, of a digest

KILLED, SURVIVED = "killed", "survived"


class Verdict(NamedTuple):
    """What became of a mutant.

    Attributes:
      by: the test that failed; "" if none did, or the mutant ended the process or did not end.
      depends: the digest of that test, or else of all the mutant's tests.
    """

    verdict: str
    by: str
    depends: str


def digest(*texts: str) -> str:
    """The first digits of a hash of all texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:DIGITS]


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree


@functools.cache
def digest_of_code(node: str, root: pathlib.Path = ROOT) -> str:
    """The digest of a file, or of `test_y` in `tests/test_x.py::test_y` and all that it uses there.

    It is that of the syntax tree without docstrings, and "" if there is no such file or test.
    """
    path, _, name = node.partition("::")
    if not (root / path).is_file():
        return ""
    tree = _bare(ast.parse((root / path).read_text()))
    if name:
        tree.body = _used(tree, name)
    return digest(path, ast.dump(tree)) if tree.body else ""


def _used(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The statements of a module that define a name and, one by the other, what these use."""
    statements = [part for statement in tree.body for part in _parts(statement)]
    made_by: dict[str, list[ast.stmt]] = {}
    for statement in statements:
        for made in _made(statement):
            made_by.setdefault(made, []).append(statement)
    used, due = set[ast.stmt](), [name]
    while due:
        for statement in made_by.get(due.pop(), []):
            if statement not in used:
                used.add(statement)
                due += {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
                due += {node.arg for node in ast.walk(statement) if isinstance(node, ast.arg)}
    return [statement for statement in statements if statement in used]


def _parts(statement: ast.stmt) -> list[ast.stmt]:
    """An import of several names as several imports; any other statement as it is."""
    if isinstance(statement, ast.Import):
        return [ast.Import([name]) for name in statement.names]
    if isinstance(statement, ast.ImportFrom):
        return [ast.ImportFrom(statement.module, [n], statement.level) for n in statement.names]
    return [statement]


def _made(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module defines, imports, or changes."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(name.asname or name.name).partition(".")[0] for name in statement.names}
    targets = {ast.Assign: "targets", ast.AnnAssign: "target", ast.AugAssign: "target"}
    changed = getattr(statement, targets.get(type(statement), ""), statement)
    nodes = changed if isinstance(changed, list) else [changed]
    return {node.id for part in nodes for node in ast.walk(part) if isinstance(node, ast.Name)}


def depends(by: str, tests: Sequence[str]) -> str:
    """What a verdict depends on beside the mutant: the test that noticed it, or else all."""
    return digest_of_code(by) if by else digest(*tests, *map(digest_of_code, tests))


def holds(verdict: Verdict, tests: Sequence[str]) -> bool:
    """True if the verdict is that of the tests as they are."""
    by = verdict.by
    among = not by or any(by == node or by.startswith(f"{node}::") for node in tests)
    return among and verdict.depends == depends(by, tests)


def recorded(folder: pathlib.Path | None) -> dict[str, list[Verdict]]:
    """By mutant, all that the project keeps and that a record found, in whatever order.

    A line that is cut short, or of an earlier version, counts as none.
    """
    known: dict[str, list[Verdict]] = {}
    for mutant, verdict in _kept(json.loads(KEPT.read_text())) if KEPT.exists() else ():
        known.setdefault(mutant, []).append(verdict)
    for file in folder.glob("*.jsonl") if folder else ():
        for line in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError):
                entry = json.loads(line)
                verdict = Verdict(*(entry[name] for name in Verdict._fields))
                known.setdefault(entry["key"], []).append(verdict)
    return known


def _kept(content: Mapping[str, Any]) -> Iterator[tuple[str, Verdict]]:
    for verdict, tests in content.items():
        for by, of_test in tests.items():
            for dependence, mutants in of_test.items():
                for mutant in mutants:
                    yield mutant, Verdict(verdict, by, dependence)


def text_of(verdicts: Iterable[tuple[str, Verdict]]) -> str:
    """The file of verdicts by mutant: under verdict, test and digest the mutants, one in a line."""
    content: dict[str, dict[str, dict[str, list[str]]]] = {}
    for mutant, (verdict, by, dependence) in verdicts:
        of_test = content.setdefault(verdict, {}).setdefault(by, {})
        of_test.setdefault(dependence, []).append(mutant)
        of_test[dependence].sort()
    return json.dumps(content, indent=0, sort_keys=True) + "\n"
