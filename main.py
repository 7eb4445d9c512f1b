"""Command line: `python main.py --mode=train --config=configs/quickstart.py --workdir=runs/x`."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from runtime import backend

backend.prepare()

from absl import app, flags, logging
from ml_collections import config_flags

from configs import command_line
from runtime.errors import Refused, one_line


class Mode(NamedTuple):
    """A mode of the program.

    Attributes:
      function: "package.module:function", imported late so that --help is quick.
      required: the flags that it needs; they are arguments of the function, by name.
      optional: further flags that the function takes.
    """

    function: str
    required: tuple[str, ...] = ("config", "workdir")
    optional: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """All of them."""
        return self.required + self.optional


MODES = {
    "train": Mode("training.loop:train"),
    "eval": Mode("evaluation.evaluate:evaluate", optional=("eval_folder",)),
    "sample": Mode("generation.sample:sample"),
    "control": Mode("control.run:control"),
    "stats": Mode("evaluation.reference:write_statistics", ("config",)),
    "import": Mode("interop.convert:import_weights", ("workdir", "source"), ("config",)),
    "export": Mode("interop.convert:export_weights", ("config", "workdir", "target")),
}

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config; override a value by --config.a.b=value.")
flags.DEFINE_enum("mode", None, list(MODES), "What to do.")
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, pictures, results.")
flags.DEFINE_string("eval_folder", "eval", "Folder inside the workdir for results of --mode=eval.")
flags.DEFINE_string("source", None, "File or folder of weights for --mode=import.")
flags.DEFINE_string("target", None, "Folder that --mode=export is to write for diffusers.")
flags.DEFINE_bool(
    "distributed",
    False,
    "Join other processes (also automatic on a detected cluster). Outside a cluster set "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
flags.DEFINE_bool("traceback", False, "Show the traceback of an error instead of one line.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with every complaint (also of the config overrides) as one line."""
    if {"-h", "-help", "--help"} & set(argv[1:]):
        listing = FLAGS.module_help(FLAGS.find_module_defining_flag("mode"))
        print(f"{__doc__}\n{listing}\n\nConfigs are in configs/; docs/ shows each mode.")
        sys.exit(0)
    try:
        rest = FLAGS(command_line.last_overrides(argv))
        if len(rest) > 1:
            raise Refused(f"unexpected argument {rest[1]!r}; options begin with --")
        for name in ("mode", *(MODES[FLAGS.mode].required if FLAGS.mode else ())):
            if FLAGS[name].value is None:
                raise Refused(f"--{name} is required; see python main.py --help")
        readers = {name: mode.flags for name, mode in MODES.items()}
        given = {f: FLAGS[f].value for f in sum(readers.values(), ()) if FLAGS[f].present}
        if complaint := command_line.idle_flags(given, FLAGS.mode, readers):
            raise Refused(complaint)
        if FLAGS.config is not None:
            path = config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]
            if not pathlib.Path(path).is_file():
                raise Refused(f"--config={path}: there is no such file; see configs/")
        return rest
    except Refused:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise Refused(f"{blamed(argv, error)}{one_line(error)}") from error


def blamed(argv: Sequence[str], error: BaseException) -> str:
    """The config override that a parser's error is about: the one that its text names first."""
    text = str(error)
    overrides = {arg: arg.partition("=")[0].rpartition(".")[2] for arg in argv if ".py" not in arg}
    places = {text.find(name): arg for arg, name in overrides.items() if name and name in text}
    return f"{places[min(places)]}: " if places else ""


def run(argv: Sequence[str]) -> None:
    """Runs the function of the mode."""
    del argv
    logging.set_verbosity(logging.WARNING)
    from runtime import devices, effects

    devices.join_processes(FLAGS.distributed)
    devices.start_platform()
    if FLAGS.config is not None:
        effects.warn(FLAGS.config, FLAGS.mode, config_flags.get_override_values(FLAGS["config"]))
    mode = MODES[FLAGS.mode]
    module, _, name = mode.function.partition(":")
    arguments: dict[str, Any] = {name: FLAGS[name].value for name in mode.flags}
    if "workdir" in arguments:
        arguments["workdir"] = pathlib.Path(arguments["workdir"])
    getattr(importlib.import_module(module), name)(**arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program; a user's mistake ends in one line and an exit code (usage 2, else 1)."""
    try:
        app.run(run, argv=None if argv is None else list(argv), flags_parser=parse_flags)
    except (Refused, ValueError, FloatingPointError, OSError) as error:
        if FLAGS.is_parsed() and FLAGS.traceback:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, Refused) else 1)


if __name__ == "__main__":
    main()
