"""Command lines: overrides `--config.section.field=value` in any order, flags without effect."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from absl import flags

from configs import schema
from configs.names import dotted

OVERRIDE = re.compile(r"--?(no)?(config(?:\.[^=\s]+)?)(=.*)?", re.DOTALL)
HELP = re.compile(r"--?config((?:\.\w+)*)\.help(?:=.*)?")
NUMBER = re.compile(r"-(\d|\.\d|inf)")
TRUTHS = ("true", "t", "1", "false", "f", "0")  # that absl reads, in any case

# What each of several processes may have for itself: patterns of flags and fields.
PLACES = ("workdir", "source", "target", "distributed", "traceback", "*_dir", "*_path")


class Mode(Protocol):
    """The flags of a mode."""

    @property
    def required(self) -> Sequence[str]: ...

    @property
    def optional(self) -> Sequence[str]: ...


def ordered(argv: Sequence[str]) -> list[str]:
    """The command line as the parser wants it: the config before what it overrides, and of several
    overrides of one field the last one, as `--config.section.field=value`, where that stands.

    Of several configs the last one is taken. The parser would keep the last override too, but join
    tuples: (1, 2) and then (1,) were (1, 2, 1).
    """
    first: list[str] = []
    rest: dict[tuple[str, int], str] = {}
    place = 1
    while place < len(argv):
        argument, following = argv[place], argv[place + 1] if place + 1 < len(argv) else ""
        match = OVERRIDE.fullmatch(argument)
        place += 1
        if match is None:
            rest["", place] = argument
            continue
        negated, name, value = match.groups()
        if value is None and not negated and _is_value_of(name, following):
            argument = f"--{name}={following}"
            place += 1
        if name == "config":
            first = [argument]
        else:
            rest.pop((name, 0), None)
            rest[name, 0] = argument
    return [*argv[:1], *first, *rest.values()]


def _is_value_of(name: str, following: str) -> bool:
    """True if the argument that follows `--config` or `--config.section.field` is its value."""
    field = schema.fields().get(name.removeprefix("config."))
    if field is not None and isinstance(field.default, bool):
        return following.lower() in TRUTHS
    is_flag = following.startswith("-") and not NUMBER.match(following)
    return bool(following) and not is_flag


def without_help(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The command line without `--config.help`, `--config.section.help` and the like, and the name
    that it asks about, "" or "section"; None where it does not ask."""
    asked = [match[1].removeprefix(".") for arg in argv[1:] if (match := HELP.fullmatch(arg))]
    others = [argument for argument in argv[1:] if not HELP.fullmatch(argument)]
    return [*argv[:1], *others], (asked[-1] if asked else None)


def complaint(values: flags.FlagValues, surplus: Sequence[str], modes: Mapping[str, Mode]) -> str:
    """What is wrong with a command line whose flags are read; "" if nothing is.

    A mode must have the flags that it requires, none may be empty, and none may be there that
    another mode alone reads.

    Args:
      values: the flags of the program.
      surplus: arguments that are no flags.
      modes: by their names.
    """
    if surplus:
        return f"unexpected argument {surplus[0]!r}; options begin with --"
    mode = str(values["mode"].value)
    for name in ("mode", *(modes[mode].required if mode in modes else ())):
        if values[name].value is None:
            or_source = ", or --source" * (name == "config" and "source" in modes[mode].optional)
            return f"--{name} is required{or_source}: {values[name].help.rstrip('.')}"
    readers = {other: (*each.required, *each.optional) for other, each in modes.items()}
    for name in dict.fromkeys(name for names in readers.values() for name in names):
        acts = ", ".join(f"--mode={other}" for other, names in readers.items() if name in names)
        flag = values[name]
        if flag.present and isinstance(flag.value, str) and not flag.value.strip():
            return f"--{name}= is empty: {flag.help.rstrip('.')}"
        if flag.present and name not in readers[mode]:
            return f"--{name} has no effect in --mode={mode}; it acts in {acts}"
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
