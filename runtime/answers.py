"""What the program says of itself: --help, --config.help, --version, --completion."""

from __future__ import annotations

import contextlib
import importlib.metadata
import pathlib
import platform
import subprocess
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence

from absl import flags

from configs import schema, stored, table
from runtime import completion, config_flag

Names = Callable[[], Collection[str]]

ROOT = pathlib.Path(__file__).resolve().parent.parent
STACK = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "grain", "numpy")
COMPLETIONS = tuple(completion.SCRIPTS)


def overview(argv: Sequence[str], values: flags.FlagValues, words: str) -> str:
    """The answer to --help; "" if that is not asked."""
    if not {"-h", "-help", "--help"} & set(argv[1:]):
        return ""
    listing = values.module_help(str(values.find_module_defining_flag("mode")))
    more = (
        "--mode=list --topic=modes says what each mode does, and --mode=list names all configs, "
        "samplers, tasks, ...; --config.help and "
        "--config.sampling.help say what can be set; docs/ shows each mode."
    )
    return f"{words}\n{listing}\n\n{more}"


def answer(values: flags.FlagValues, section: str | None, choices: Mapping[str, Names]) -> str:
    """The answer to --version, --completion or a question for the fields of the config.

    Args:
      values: the flags of the program, parsed.
      section: of which `--config.<section>.help` asks, or None.
      choices: functions that give the names that flags may have, beside what `values` know of.

    Returns:
      "" if nothing of that is asked.

    Raises:
      ValueError: there is no such section or field.
    """
    if values["version"].value:
        return version()
    if shell := values["completion"].value:
        module = str(values.find_module_defining_flag("mode"))
        own = {flag.name: flag for flag in values.flags_by_module_dict()[module]}
        known = {name: list(getattr(f.parser, "enum_values", ())) for name, f in own.items()}
        known |= {name: list(names()) for name, names in choices.items()}
        known["config"] = stored.names()
        words = {name: flag.help or "" for name, flag in own.items()}
        switches = {name for name, flag in own.items() if flag.boolean}
        return completion.script(str(shell), words, switches, known, schema.fields())
    if section is not None:
        config = values["config"].value or schema.base()
        if section and (reason := config_flag.absence(config, section)):
            raise ValueError(f"--config.{section}.help: {reason}")
        return table.listing(section, config)
    return ""


def version() -> str:
    """The project's version, its commit where git knows it, and the stack; no device is looked
    at."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"{project['name']} {project['version']}{commit()}"]
    lines.append(f"Python {platform.python_version()}")
    for package in STACK:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{package} {importlib.metadata.version(package)}")
    return "\n".join(lines)


def commit() -> str:
    """ ", commit 1234567", with "modified" if files differ from it; "" where git cannot tell."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty= (modified)", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {told.stdout.strip()}"
