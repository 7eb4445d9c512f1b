"""Command line: `python main.py --mode=train --config=configs/quickstart.py --workdir=runs/x`."""

from __future__ import annotations

from runtime import stop

if __name__ == "__main__":
    stop.end_imports()  # of all else

import sys
from collections.abc import Mapping, Sequence

from runtime import backend

backend.prepare()

from absl import app, flags

from configs import command_line
from interop import cards
from runtime import answers, config_flag, endings, modes
from runtime.errors import Refused, one_line
from runtime.modes import Mode

TOPICS: dict[str, Sequence[str] | Mapping[str, str]] = {  # of --mode=list: tables, or functions
    "configs": ("configs.stored:documented",),
    "sdes": ("sde_lib:SDES",),
    "networks": ("models.build:MODELS",),
    "objectives": ("losses:OBJECTIVES", "losses:FLOW_MAPS", "losses:GUIDES"),
    "samplers": ("sampling:SAMPLERS",),
    "predictors": ("sampling:PREDICTORS",),
    "correctors": ("sampling:CORRECTORS",),
    "tasks": ("control.run:TASKS",),
    "metrics": ("evaluation.metrics.metric:table",),
    "data_sets": ("data:DATASETS",),
    "cards": ("interop.cards:cards",),
}

RUN = ("config", "workdir")
RESULTS = ("source", "eval_folder"), "{eval_folder}"
SOURCE = "interop.convert:import_once"  # of modes that --source may give weights
MODES = {
    "train": Mode("training.loop:train", RUN, ("profile",), "."),
    "eval": Mode("evaluation.evaluate:evaluate", RUN, *RESULTS, weights=SOURCE),
    "sample": Mode("generation.sample:sample", RUN, ("source",), "samples", False, SOURCE),
    "control": Mode(
        "control.run:control", RUN, ("source",), "control/{config.control.task}", weights=SOURCE
    ),
    "stats": Mode("evaluation.reference:write_statistics", ("config",)),
    "import": Mode("interop.convert:import_run", ("workdir", "source"), ("config",), "."),
    "reproduce": Mode("evaluation.reproduce:reproduce", ("config", "source", "workdir"), (), "."),
    "export": Mode("interop.exports:export_weights", (*RUN, "target"), ("source",), weights=SOURCE),
    "plan": Mode(
        "planning.plan:plan", ("config", "topology"), ("workdir", "compile"), platform="cpu"
    ),
    "watch": Mode("evaluation.report.live:watch", ("workdir",), platform="cpu"),
    "demo": Mode("demo.server:serve", (), ("config", "source", "workdir", "host", "port")),
    "list": Mode("runtime.listing:show", (), ("topic",), tables=TOPICS),
}
TOPICS["modes"] = {name: mode.function for name, mode in MODES.items()}

FLAGS = flags.FLAGS
config_flag.define("Config, a file or a name as vp/cifar10_ddpmpp; --config.a.b=value.")
config_flag.define_choice("mode", list(MODES), "What to do.")
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, pictures, results.")
flags.DEFINE_string("eval_folder", "eval", "Folder inside the workdir for results of --mode=eval.")
flags.DEFINE_string("source", None, "Weights: a file, a card's name, hf:owner/name, https://...")
flags.DEFINE_string("target", None, "Of --mode=export: a folder, .pth, .safetensors, hf:name.")
flags.DEFINE_string("topology", None, "Chips of --mode=plan, such as v5e:4x4, v4:2x2x2 or h100:8.")
flags.DEFINE_string("host", None, "Of --mode=demo: where it listens; else this machine alone.")
flags.DEFINE_integer("port", None, "Of --mode=demo: 8000, if it is not given; 0: a free one.")
flags.DEFINE_bool("compile", True, "Compile in --mode=plan; --nocompile estimates, in a minute.")
config_flag.define_choice("topic", list(TOPICS), "Of --mode=list: what to list; else everything.")
flags.DEFINE_bool("distributed", None, "Join other processes, see docs/pods.md; else if detected.")
flags.DEFINE_bool("profile", False, "Trace ten steps of --mode=train, into <workdir>/profile.")
flags.DEFINE_bool("traceback", False, "Show the traceback of an error instead of one line.")
flags.DEFINE_bool("version", False, "Print the versions of the project and what it stands on.")
config_flag.define_choice("completion", answers.COMPLETIONS, "Print a script for this shell.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with every complaint (also of the config overrides) as one line."""
    text = answers.overview(argv, FLAGS, str(__doc__))
    try:
        if not text:
            argv = FLAGS.read_flags_from_files(list(argv), force_gnu=False)
            argv, section = command_line.without_help(argv)
            argv = command_line.ordered(cards.completed(argv, answers.ROOT, MODES))
            sys.argv[:] = argv  # where ml_collections looks for overrides
            config_flag.check(argv)
            rest = FLAGS(argv)
            text = answers.answer(FLAGS, section, {"source": cards.cards})
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise Refused(one_line(error)) from error
    if text:
        print(text)
        sys.exit(0)
    if complaint := command_line.complaint(FLAGS, rest[1:], MODES):
        raise Refused(complaint)
    return rest


def run(argv: Sequence[str]) -> None:
    """Runs the function of the mode."""
    del argv
    modes.run(FLAGS, MODES)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program; whatever stops it ends in one line and an exit code."""
    with endings.in_one_line(FLAGS):
        app.run(run, argv=None if argv is None else list(argv), flags_parser=parse_flags)


if __name__ == "__main__":
    main()
