"""Command line: `python main.py --mode=train --config=configs/quickstart.py --workdir=runs/x`."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import os
import pathlib
import re
import sys
from collections.abc import Sequence

# jaxlib releases on which this empty flag was measured to speed up convolutions on the CPU.
FAST_CONVOLUTIONS = {"0.10.2": "--xla_cpu_experimental_ynn_fusion_type="}


def prepare_backend() -> None:
    """Sets what XLA reads from the environment when JAX is imported, where the user has not."""
    given = os.environ.get("XLA_FLAGS", "")
    flag = FAST_CONVOLUTIONS.get(importlib.metadata.version("jaxlib"))
    if flag and flag.rstrip("=") not in given:
        os.environ["XLA_FLAGS"] = f"{given} {flag}".strip()
    fake = re.search(r"host_platform_device_count=(\d+)", given)
    if fake:  # devices that share cores wait for each other in a pool of NPROC threads
        os.environ.setdefault("NPROC", str(max(2 * int(fake[1]), os.cpu_count() or 1)))


prepare_backend()

import jax
from absl import app, flags, logging
from ml_collections import config_flags

MODES = ("train", "eval", "sample", "control", "stats", "import", "export")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "Configuration file; override any value by --config.a.b=value."
)
flags.DEFINE_enum("mode", None, MODES, "What to do.")
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


class Refused(Exception):
    """A command line that cannot be understood; exit code 2."""


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with every complaint (also of the config overrides) as one line."""
    if any(argument in ("-h", "-help", "--help") for argument in argv[1:]):
        print(usage())
        sys.exit(0)
    try:
        rest = FLAGS(list(argv))
        if len(rest) > 1:
            raise Refused(f"unexpected argument {rest[1]!r}; options begin with --")
        optional = {"import": "config", "stats": "workdir"}.get(FLAGS.mode)
        more = {"import": "source", "export": "target"}.get(FLAGS.mode)
        for name in filter(None, ("mode", "config", "workdir", more)):
            if FLAGS[name].value is None and name != optional:
                raise Refused(f"--{name} is required; see python main.py --help")
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
    named = {text.find(name): arg for arg, name in overrides.items() if name and name in text}
    return f"{named[min(named)]}: " if named else ""


def usage() -> str:
    """What --help prints: this program's own flags, and where the rest is to be found."""
    own = FLAGS.module_help(FLAGS.find_module_defining_flag("mode"))
    return f"{__doc__}\n{own}\n\nConfigs are in configs/; README.md has an example of each mode."


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    text = str(error)
    if text.startswith(("'", '"')):  # KeyError quotes its message
        with contextlib.suppress(SyntaxError, ValueError):
            text = str(ast.literal_eval(text))
    text = " ".join(text.split())
    return text or type(error).__name__


def cluster_detected() -> bool:
    """Whether a scheduler or a TPU pod started several processes of this program."""
    environment = os.environ
    return (
        int(environment.get("SLURM_NTASKS", "1")) > 1
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    )


def join_processes() -> None:
    """`jax.distributed.initialize`, from the environment's three variables or the cluster's own."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if all(given):
        address, count, index = given
        jax.distributed.initialize(address, int(count or 1), int(index or 0))
    elif cluster_detected():
        jax.distributed.initialize()
    else:
        raise Refused(f"--distributed found no cluster; set {', '.join(names)}")


def run(argv: Sequence[str]) -> None:
    """Dispatches to the mode; the loops are imported late so that --help is quick."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if FLAGS.distributed or cluster_detected():
        join_processes()
    workdir = pathlib.Path(FLAGS.workdir or "")
    if FLAGS.mode == "train":
        import field
        import train

        train.train(FLAGS.config, workdir)
        field.draw(FLAGS.config, workdir)
    elif FLAGS.mode == "eval":
        import evaluate

        evaluate.evaluate(FLAGS.config, workdir, FLAGS.eval_folder)
    elif FLAGS.mode == "stats":
        import configs
        import quality

        configs.check(FLAGS.config)
        quality.write_statistics(FLAGS.config)
    elif FLAGS.mode == "control":
        import control

        control.control(FLAGS.config, workdir)
    elif FLAGS.mode == "import":
        import convert

        convert.import_weights(FLAGS.config, FLAGS.source, workdir)
    elif FLAGS.mode == "export":
        import convert

        convert.export_weights(FLAGS.config, workdir, FLAGS.target)
    else:
        import generate

        generate.sample(FLAGS.config, workdir)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program; a user's mistake ends in one line and an exit code (usage 2, else 1)."""
    try:
        app.run(run, argv=None if argv is None else list(argv), flags_parser=parse_flags)
    except Refused as error:
        stop(error, code=2)
    except (ValueError, FloatingPointError, OSError) as error:
        if FLAGS.is_parsed() and FLAGS.traceback:
            raise
        stop(error, code=1)


def stop(error: BaseException, code: int) -> None:
    """Prints the error as one line and leaves with `code`."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
