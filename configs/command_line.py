"""Command lines: repeated overrides `--config.section.field=value`, and flags without effect."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from configs.names import dotted

OVERRIDE = re.compile(r"--?(?:no)?(config(?:\.[^=\s]+)?)(=.*)?", re.DOTALL)

# What each of several processes may have for itself: patterns of flags and fields.
PLACES = ("workdir", "source", "target", "distributed", "traceback", "*_dir", "*_path")


def last_overrides(argv: Sequence[str]) -> list[str]:
    """The command line with the last of several overrides of one field, where the last stands, and
    of several configs the last one, where the first stands.

    The parser would keep the last too, but join tuples: (1, 2) and then (1,) were (1, 2, 1).
    """
    arguments: dict[tuple[str, int], list[str]] = {}
    field, is_value = "", False
    for place, argument in enumerate(argv):
        if is_value and not argument.startswith("-"):  # of `--config.section.field value`
            arguments[field, 0].append(argument)
            is_value = False
            continue
        match = OVERRIDE.fullmatch(argument)
        field, is_value = (match[1], not match[2]) if match else ("", False)
        key = (field, 0) if match else ("", place)
        if field != "config":  # which comes before its overrides
            arguments.pop(key, None)
        arguments[key] = [argument]
    return [argument for group in arguments.values() for argument in group]


def complaint(
    values: flags.FlagValues,
    surplus: Sequence[str],
    required: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
) -> str:
    """What is wrong with a command line whose flags are read; "" if nothing is.

    A mode must have the flags that it requires, none may be empty, and none may be there that
    another mode alone reads.

    Args:
      values: the flags of the program.
      surplus: arguments that are no flags.
      required, optional: the flags of each mode.
    """
    if surplus:
        return f"unexpected argument {surplus[0]!r}; options begin with --"
    mode = str(values["mode"].value)
    for name in ("mode", *required.get(mode, ())):
        if values[name].value is None:
            return f"--{name} is required: {values[name].help.rstrip('.')}"
    readers = {other: (*required[other], *optional[other]) for other in required}
    for name in dict.fromkeys(name for names in readers.values() for name in names):
        modes = ", ".join(f"--mode={other}" for other, names in readers.items() if name in names)
        flag = values[name]
        if flag.present and isinstance(flag.value, str) and not flag.value.strip():
            return f"--{name}= is empty: {flag.help.rstrip('.')}"
        if flag.present and name not in readers[mode]:
            return f"--{name} has no effect in --mode={mode}; it acts in {modes}"
    return ""


def facts(values: flags.FlagValues) -> dict[str, Any]:
    """What processes that work together are to have in common: flags and fields, by their names.

    The flags are those of the module that defines `mode`; none of `PLACES`.
    """
    module = str(values.find_module_defining_flag("mode"))
    own = {flag.name: flag.value for flag in values.flags_by_module_dict()[module]}
    config = values["config"].value
    words = {**own, "config": None if config is None else config.to_dict()}
    return {
        name: value
        for name, value in dotted(words).items()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in PLACES)
    }
