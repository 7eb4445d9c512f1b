"""Configs in files: the ones of this folder, those of earlier runs, and how two of them differ."""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from configs import schema
from configs.attention import with_levels_only
from configs.names import dotted, first_sentence

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def shipped() -> Mapping[str, ConfigDict]:
    """Every config of this folder and its sub-folders by its path, "ve/cifar10_ncsnpp", in order.

    They are shared and cannot be changed; `load` makes one that can.
    """
    paths = (path.relative_to(FOLDER).with_suffix("") for path in sorted(FOLDER.rglob("*.py")))
    names = (path.as_posix() for path in paths if not path.name.startswith("_"))
    modules = {name: _module(name) for name in names}
    return MappingProxyType(
        {
            name: FrozenConfigDict(module.get_config())
            for name, module in modules.items()
            if hasattr(module, "get_config")
        }
    )


def names() -> list[str]:
    """The names of the files of this folder and its sub-folders that define `get_config`."""
    return list(documented())


def documented() -> dict[str, str]:
    """What each config is, the first sentence of its docstring, by its path; none is imported."""
    documents = {}
    for path in sorted(FOLDER.rglob("*.py")):
        tree = ast.parse(path.read_text())
        defined = {getattr(node, "name", "") for node in tree.body}
        defined |= {a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        if "get_config" in defined and not path.name.startswith("_"):
            name = path.relative_to(FOLDER).with_suffix("").as_posix()
            documents[name] = first_sentence(ast.get_docstring(tree) or "")
    return documents


def load(name: str) -> ConfigDict:
    """The config `configs/<name>.py`, "ve/cifar10_ncsnpp" for instance, locked and to be changed.

    Raises:
      ModuleNotFoundError: there is none.
    """
    return _module(name).get_config()


def from_file(path: str | os.PathLike[str]) -> ConfigDict:
    """The config of any Python file with a `get_config()`, such as an imported run's config.py."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an earlier run, nested, with the defaults of fields that are newer than it, and
    without attention where its network has no level."""
    config = schema.base().to_dict()
    for section, values in stored.items():
        defaults = config.get(section)
        config[section] = {**defaults, **values} if isinstance(defaults, dict) else values
    return with_levels_only(config)


def from_stored(stored: Mapping[str, Any]) -> ConfigDict:
    """The config of an earlier run, from its config.json, in which tuples are lists."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(inner) for name, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ConfigDict(tuples(complete(stored))).lock()


class _Absent:
    """The value of a field that one of two configs does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
LONGEST = 40  # characters of a value that are said

# How one difference is said, from (dotted name, old value, new value), where a value may be ABSENT.
Wording = Callable[[str, Any, Any], str]


def stored_and_given(name: str, old: Any, new: Any) -> str:
    """`model.nf: 64 (stored) != 32 (given)`, or with a comma where one of the two has no value."""
    relation = "," if old is ABSENT or new is ABSENT else " !="
    return f"{name}: {short(old)} (stored){relation} {short(new)} (given)"


def short(value: Any) -> str:
    """A value as it is written in Python, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def config_differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    ignore: Iterable[str] = (),
    wording: Wording = stored_and_given,
) -> list[str]:
    """A line for each value that differs, in the order of the dotted names.

    Args:
      old, new: configs, or parts of them; nested, or with dotted names. Tuples equal lists, as JSON
        has no tuples.
      ignore: shell patterns of dotted names to leave out: "eval.*", "training.log_freq".
      wording: from a name and its two values to the line. Tuples come as lists, and a value that is
        not there as `ABSENT`, which reads "nothing".
    """
    patterns, before, after = tuple(ignore), _lists_by_name(old), _lists_by_name(new)
    lines = []
    for name in sorted(before.keys() | after.keys()):
        values = before.get(name, ABSENT), after.get(name, ABSENT)
        if _equal(*values) or any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        lines.append(wording(name, *values))
    return lines


def _equal(old: Any, new: Any) -> bool:
    """True for equal values; of numbers, NaN equals NaN."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_equal, old, new))
    return bool(old == new or (old != old and new != new))


def _lists_by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by their dotted names, with lists for tuples."""
    return {name: _lists(value) for name, value in dotted(config).items()}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _module(name: str) -> Any:
    return importlib.import_module("configs." + name.replace("/", "."))
