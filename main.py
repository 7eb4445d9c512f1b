"""Command line: `python main.py --mode=train --config=configs/quickstart.py --workdir=runs/x`."""

from __future__ import annotations

from runtime import stop

if __name__ == "__main__":
    stop.end_imports()  # of all else

import importlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from runtime import backend

backend.prepare()

from absl import app, flags
from ml_collections import config_flags

from configs import command_line
from interop import cards
from runtime import config_flag, endings
from runtime.errors import Refused, one_line


class Mode(NamedTuple):
    """A mode of the program.

    Attributes:
      function: "package.module:function", imported late so that --help is quick.
      required: the flags that it needs; they are arguments of the function, by name.
      optional: further flags that the function takes.
      writes: the folder in the workdir that it alone may write to, from the flags; or None.
      must_write: False if it may find all that it is to write there already.
    """

    function: str
    required: tuple[str, ...] = ("config", "workdir")
    optional: tuple[str, ...] = ()
    writes: str | None = None
    must_write: bool = True


MODES = {
    "train": Mode("training.loop:train", optional=("profile",), writes="."),
    "eval": Mode("evaluation.evaluate:evaluate", optional=("eval_folder",), writes="{eval_folder}"),
    "sample": Mode("generation.sample:sample", writes="samples", must_write=False),
    "control": Mode("control.run:control", writes="control/{config.control.task}"),
    "stats": Mode("evaluation.reference:write_statistics", ("config",)),
    "import": Mode("interop.convert:import_weights", ("workdir", "source"), ("config",), "."),
    "reproduce": Mode("evaluation.reproduce:reproduce", ("config", "source", "workdir"), (), "."),
    "export": Mode("interop.exports:export_weights", ("config", "workdir", "target")),
    "plan": Mode("planning.plan:plan", ("config", "topology"), ("workdir", "compile")),
}

FLAGS = flags.FLAGS
config_flag.define("Config; override a value by --config.a.b=value.")
flags.DEFINE_enum("mode", None, list(MODES), "What to do.")
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, pictures, results.")
flags.DEFINE_string("eval_folder", "eval", "Folder inside the workdir for results of --mode=eval.")
flags.DEFINE_string("source", None, "Weights: a file, a card's name, hf:owner/name, https://...")
flags.DEFINE_string(
    "target", None, "Of --mode=export: a folder, .safetensors, .pth, hf:owner/name."
)
flags.DEFINE_string("topology", None, "Chips of --mode=plan, such as v5e:4x4, v4:2x2x2 or h100:8.")
flags.DEFINE_bool("compile", True, "Compile in --mode=plan; --nocompile estimates, in a minute.")
flags.DEFINE_bool(
    "distributed",
    None,
    "Join other processes; by itself on a detected cluster, --nodistributed: never. Outside one "
    "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
flags.DEFINE_bool("profile", False, "Trace ten steps of --mode=train, into <workdir>/profile.")
flags.DEFINE_bool("traceback", False, "Show the traceback of an error instead of one line.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with every complaint (also of the config overrides) as one line."""
    if {"-h", "-help", "--help"} & set(argv[1:]):
        listing = FLAGS.module_help(FLAGS.find_module_defining_flag("mode"))
        print(f"{__doc__}\n{listing}\n\nConfigs are in configs/; docs/ shows each mode.")
        sys.exit(0)
    try:
        argv = FLAGS.read_flags_from_files(list(argv), force_gnu=False)
        argv = command_line.last_overrides(cards.completed(argv, pathlib.Path(__file__).parent))
        sys.argv[:] = argv  # where ml_collections looks for overrides
        config_flag.check(argv)
        rest = FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise Refused(one_line(error)) from error
    required = {name: mode.required for name, mode in MODES.items()}
    optional = {name: mode.optional for name, mode in MODES.items()}
    if complaint := command_line.complaint(FLAGS, rest[1:], required, optional):
        raise Refused(complaint)
    return rest


def run(argv: Sequence[str]) -> None:
    """Runs the function of the mode."""
    del argv
    from runtime import cluster, devices, effects, files, lock

    cluster.join(FLAGS.distributed, command_line.facts(FLAGS))
    devices.start_platform("cpu" if FLAGS.mode == "plan" else None)
    if FLAGS.mode != "train":  # where jax.distributed has the signals agree on a step
        stop.reclaim()
    if FLAGS.config is not None:
        effects.warn(FLAGS.config, FLAGS.mode, config_flags.get_override_values(FLAGS["config"]))
    mode = MODES[FLAGS.mode]
    module, _, name = mode.function.partition(":")
    arguments: dict[str, Any] = {f: FLAGS[f].value for f in (*mode.required, *mode.optional)}
    if arguments.get("workdir"):
        arguments["workdir"] = files.as_path(arguments["workdir"], "--workdir")
    function = getattr(importlib.import_module(module), name)
    folder = mode.writes and mode.writes.format(**{"config": FLAGS.config, **arguments})
    with lock.inside(arguments.get("workdir"), folder, f"--mode={FLAGS.mode}", mode.must_write):
        function(**arguments)
    stop.check("stopped when the command was finished")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program; whatever stops it ends in one line and an exit code."""
    with endings.in_one_line(FLAGS):
        app.run(run, argv=None if argv is None else list(argv), flags_parser=parse_flags)


if __name__ == "__main__":
    main()
