"""What a mode of the program is, and how it is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from configs import command_line
from runtime import stop


class Mode(NamedTuple):
    """A mode of the program.

    Attributes:
      function: "package.module:function", imported late so that --help is quick.
      required: the flags that it needs; they are arguments of the function, by name.
      optional: further flags that the function takes.
      writes: the folder in the workdir that it alone may write to, from the flags; or None.
      must_write: False if it may find all that it is to write there already.
      weights: "package.module:function" of config, source and workdir, which puts the weights of a
        `--source` into the workdir before; or None.
      platform: what it computes on ("cpu"), where it leaves the accelerators to others; or None.
      tables: of a mode that only tells what there is: where, by topic; its function takes them
        first.
    """

    function: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    writes: str | None = None
    must_write: bool = True
    weights: str | None = None
    platform: str | None = None
    tables: Mapping[str, Sequence[str] | Mapping[str, str]] | None = None


def run(values: flags.FlagValues, modes: Mapping[str, Mode]) -> None:
    """Runs the function of the mode that the flags name."""
    name, config = str(values["mode"].value), values["config"].value
    mode = modes[name]
    arguments: dict[str, Any] = {f: values[f].value for f in (*mode.required, *mode.optional)}
    if mode.tables is not None:
        _function(mode.function)(mode.tables, **arguments)
        return
    from runtime import cluster, devices, effects, files, lock

    cluster.join(values["distributed"].value, command_line.facts(values))
    devices.start_platform(mode.platform)
    if name != "train":  # where jax.distributed has the signals agree on a step
        stop.reclaim()
    if config is not None:
        effects.warn(config, name, config_flags.get_override_values(values["config"]))
    if arguments.get("workdir"):
        arguments["workdir"] = files.as_path(arguments["workdir"], "--workdir")
    source = arguments.pop("source") if mode.weights else None
    if source is not None:
        with lock.inside(arguments["workdir"], ".", f"--mode={name} --source={source}", False):
            _function(str(mode.weights))(config, source, arguments["workdir"])
    function = _function(mode.function)
    folder = mode.writes and mode.writes.format(**{"config": config, **arguments})
    with lock.inside(arguments.get("workdir"), folder, f"--mode={name}", mode.must_write):
        function(**arguments)
    stop.check("stopped when the command was finished")


def _function(name: str) -> Any:
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)
