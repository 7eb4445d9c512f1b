"""Command lines by chance, made from the schema: each succeeds or is refused in one line.

    python -m tests.fuzz [--lines 500] [--seed 0] [--first 0] [--whole] [--show]

A line is a function of the seed and its number. Its only ends are success, and one line on stderr
that begins with "error: " with exit code 1 or 2 and is no fault of the program; warnings may stand
before it. All lines run in one process, with a tiny run of random weights; a line counts as
a success where its first program for the devices has been traced and lowered, or with `--whole`
where it has run. The exit code is 1 if a line failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import gc
import io
import json
import os
import pathlib
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 120.0  # of CPU for one line, beyond which it hangs
PATIENCE = 600.0  # seconds that an answer may take on a busy machine
MEMORY = 8 << 30  # bytes of the process that runs the lines
ANSWER = "answer: "

# --- lines ---

BASES = ("quickstart", "toy/two_moons_edm", "toy/mixture_ssm", "digits/classifier", "emoji/vp")
MODES = ("train", "sample", "eval", "control", "export", "import", "stats")


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


WHOLE_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 10**30)
NUMBERS = words_of(
    """
    0.0 -0.0 1.0 -1.0 0.5 0.999999999 1e-8 1e-30 1e-39 1e-300 1e9 1e30 3.3e38 1e39 1e300
    nan -nan inf -inf 2 -7
    """
)
TEXTS = [
    *("", " ", "two\nlines", "a" * 5000, "é\u202e\U0001f600"),
    *words_of(
        """
    none None unknown True 0 -1 ../x / /dev/null /dev/zero %s%n {0} ' " a,b ~ . * ٣ ddim pc fid
    latest best range raw 0.9 6 -5 posthoc:0.1 posthoc:0.1@4 posthoc:nan posthoc:1e5 1e400
    99999999999999999999
    """
    ),
]
TUPLES = [
    *("", "(" * 200, "lambda: 0"),
    *words_of(
        """
    () (0,) (1,) (1,2) (2,4) (4,) (16,) (-1,) (1.5,) ('x',) (1,'x') (True,) (None,) ((1,),) ([],)
    ({},) (1e400,) (10**30,) (4294967296,) (9223372036854775808,) (0.5,0.5) (0.1,0.2) (0.2,0.1)
    ('ddim:0','ddim') ('ddim:-1',) ('ddim:x',) ('ddim:99999999999',) ('fid','kid') ('fid','fid')
    ('inception_score',) ('a'*9,) (1,)*3 1 x [ (1,2
    """
    ),
]
SYNTAX = [
    *("--config.seed=1 2", "--config.seed= 1", "--config.seed=\0", "--workdir=\0", "--config=\0"),
    *("--workdir=" + "w" * 300, "--eval_folder= "),
    *words_of(
        """
    --config.model.nff=8 --config.modle.nf=8 --config.model=8 --config.model.nf.x=8 --config.=1
    --config --config= --config. --config=README.md --config=configs --config=configs/absent.py
    --config.model.nf --noconfig.model.nf --confg.x=1 --noconfig.training.continuous
    --config.training.continuous -config.seed=3 -- - surplus --config.seed=1_000 --config.seed=0x10
    --config.model.fir=maybe --config.model.fir=2 --config.optim.lr=1,5 --config.training=None
    --config.training.sde --config.seed= --seed=1 --traceback=x --mode= --mode=trian --mode=TRAIN
    --mode --nomode --workdir= --workdir=README.md --workdir=/dev/null/x --workdir=/proc/x
    --eval_folder= --eval_folder=../../x --eval_folder=/x --source= --source=/dev/null
    --source=README.md --source=configs --target= --target=/proc/x --distributed=maybe
    --flagfile=absent --undefok=x
    """
    ),
]


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line after `main.py`, with {tmp} for a folder, and what is unusual in it."""

    number: int
    kind: str
    arguments: tuple[str, ...]

    def argv(self, folder: str) -> list[str]:
        return ["main.py", *(argument.replace("{tmp}", folder) for argument in self.arguments)]


def line(seed: int, number: int) -> Line:
    """Line `number` of a seed."""
    chance = random.Random(f"{seed}/{number}")
    kind = chance.choice([*KINDS, "combinations", "combinations"])
    mode = chance.choice(MODES)
    base = chance.choice(BASES) if chance.random() < 0.3 else BASES[0]
    arguments = [f"--config=configs/{base}.py", f"--mode={mode}"]
    if mode != "stats":
        workdir = "run" if base == BASES[0] and mode != "import" else chance.choice(("new", "file"))
        if mode == "train" and chance.random() < 0.8:
            workdir = f"new_{number}"
        arguments.append(f"--workdir={{tmp}}/{workdir}")
    if mode == "import":
        arguments.append("--source=" + chance.choice(("{tmp}/file", "{tmp}/run", "{tmp}/absent")))
    if mode == "export":
        arguments.append("--target=" + chance.choice(("{tmp}/export", "{tmp}/run", "{tmp}/file/x")))
    if base == BASES[0]:
        arguments += base_overrides(mode)
    return Line(number, kind, (*arguments, *KINDS[kind](chance, mode)))


def base_overrides(mode: str) -> list[str]:
    """Those that make the quickstart small, as far as the mode reads them."""
    from runtime import effects
    from tests import tiny

    small = tiny.OVERRIDES.items()
    return [override(name, value) for name, value in small if effects.acts_in(name, mode)]


def fields() -> dict[str, Any]:
    """The defaults of all fields by their dotted names."""
    from configs import schema

    return {name: field.default for name, field in schema.fields().items()}


def field_of(chance: random.Random, mode: str, *types: type) -> str:
    """A field of one of these types, mostly one that the mode reads."""
    from runtime import effects

    names = [name for name, value in fields().items() if type(value) in types]
    if chance.random() < 0.8:
        read = [name for name in names if effects.acts_in(name, mode)]
        sections = ("sampling", "eval", "control")
        names = [name for name in read if mode == "train" or name.startswith(sections)] or read
    return chance.choice(names)


def override(name: str, value: Any) -> str:
    return f"--config.{name}={value}"


def wrong_type(chance: random.Random, mode: str) -> list[str]:
    name = field_of(chance, mode, int, float, bool, str, tuple)
    pool = [*WHOLE_NUMBERS, *NUMBERS, *TEXTS, *TUPLES]
    return [override(name, chance.choice(pool))]


def bounds(chance: random.Random, mode: str) -> list[str]:
    return [_number(chance, mode)]


def _number(chance: random.Random, mode: str) -> str:
    name = field_of(chance, mode, int, float)
    whole = isinstance(fields()[name], int)
    return override(name, chance.choice(WHOLE_NUMBERS if whole else NUMBERS))


def texts(chance: random.Random, mode: str) -> list[str]:
    return [override(field_of(chance, mode, str), chance.choice(TEXTS))]


def tuples(chance: random.Random, mode: str) -> list[str]:
    return [override(field_of(chance, mode, tuple), chance.choice(TUPLES))]


def names_of_choices() -> dict[str, list[str]]:
    """The names that fields know, for lines that are right in each field."""
    import data
    import losses
    import models
    import sampling
    import sde_lib
    from control.run import TASKS
    from diffusion import grids, heun, ode, parametrisation, times
    from training import optimizers

    return {
        "training.sde": list(sde_lib.SDES),
        "training.objective": [*losses.OBJECTIVES, *models.FLOW_MAPS, *models.GUIDES],
        "training.time": list(times.TIMES),
        "training.time_draws": list(times.TIME_DRAWS),
        "training.weighting": ["", *losses.WEIGHTINGS],
        "sampling.method": list(sampling.SAMPLERS),
        "sampling.predictor": list(sampling.PREDICTORS),
        "sampling.corrector": list(sampling.CORRECTORS),
        "sampling.corrector_norm": ["image", "batch"],
        "sampling.time_grid": ["", *grids.GRIDS, *grids.NOISE_GRIDS],
        "sampling.schedule": list(heun.SCHEDULES),
        "sampling.scaling": list(heun.SCALINGS),
        "sampling.solver": [*ode.solvers(), "ShARK", "SEA"],
        "model.name": ["ncsnpp", "ddpm", "mlp", "ncsn", "ncsnv2_64"],
        "model.prediction": ["", *parametrisation.PREDICTIONS],
        "model.embedding_type": ["fourier", "positional"],
        "model.resblock_type": ["biggan", "ddpm"],
        "model.progressive": ["none", "output_skip", "residual"],
        "model.progressive_input": ["none", "input_skip", "residual"],
        "model.progressive_combine": ["sum", "cat"],
        "model.nonlinearity": ["swish", "elu", "relu", "lrelu"],
        "model.dtype": ["float32", "bfloat16"],
        "model.normalization": ["GroupNorm", "none", "InstanceNorm++"],
        "data.dataset": [*data.DATASETS],
        "control.task": list(TASKS),
        "control.method": sorted({name for task in TASKS.values() for name in task.methods}),
        "control.mask": ["half", "box", "random", "README.md", "{tmp}/file"],
        "eval.features": ["auto", "inception", "classifier"],
        "eval.checkpoint": ["latest", "best", "range", "6", "5"],
        "eval.bpd_probe": ["rademacher", "gaussian", "exact"],
        "optim.optimizer": list(optimizers.OPTIMIZERS),
        "optim.schedule": ["constant", *optimizers.SCHEDULES],
        "optim.clip_rule": ["max", "add"],
    }


def plausible(chance: random.Random, mode: str) -> str:
    """An override that is right by itself; mostly one that does not make it another run."""
    choices = names_of_choices()
    small: dict[str, tuple[Any, ...]] = {
        "training.accumulation": (1, 2, 3),
        "training.batch_size": (4, 8, 12),
        "training.n_jitted_steps": (1, 5),
        "training.continuous": (True, False),
        "training.likelihood_weighting": (True, False),
        "training.label_dropout": (0.1, 1.0),
        "model.num_labels": (0, 2, 10),
        "model.ch_mult": ("(1,)", "(1,2)", "(1,1,1,1)", "(1,1,1,1,1)"),
        "model.attn_resolutions": ("()", "(4,)", "(8,)", "(16,)"),
        "model.num_scales": (1, 2, 10, 1000),
        "model.scale_by_sigma": (True, False),
        "model.fir": (True, False),
        "model.conditional": (True, False),
        "model.nf": (1, 8, 12),
        "model.sigma_max": (0.001, 1.0, 50.0),
        "model.beta_max": (0.05, 20.0),
        "data.image_size": (1, 8, 28, 32),
        "data.num_channels": (1, 2, 3),
        "data.centered": (True, False),
        "data.random_flip": (True, False),
        "data.uniform_dequantization": (True, False),
        "sampling.num_steps": (0, 1, 2, 5, 25),
        "sampling.num_frames": (0, 1, 2, 40),
        "sampling.eps": (0.001, 0.5, 1.0, 2.0),
        "sampling.seed": (0, 2**32 - 1),
        "sampling.probability_flow": (True, False),
        "sampling.eta": (0.0, 1.0),
        "sampling.churn": (0.0, 40.0),
        "eval.seeds": (1, 2),
        "eval.enable_sampling": (True, False),
        "eval.enable_bpd": (True, False),
        "eval.enable_loss": (True, False),
        "eval.samplers": ("('ddim:2','unipc_3')", "('pc',)"),
        "eval.ema": ("raw", "0.9", "0.5", "posthoc:0.1"),
        "eval.bpd_bound": (True, False),
        "control.num_images": (1, 2, 10**6),
        "control.num_variants": (1, 2),
        "control.classes": ("()", "(0,1)", "(99,)"),
        "control.factor": (2, 3, 8, 9),
        "control.noise_std": (0.0, 0.1),
        "control.interval": ("()", "(0.1,1.0)"),
        "control.prompt": ("a cat", ";", ""),
        "control.jump": (1, 100),
    }
    names = [*choices, *small]
    if mode != "train" and chance.random() < 0.9:
        names = [name for name in names if name.startswith(("sampling", "eval", "control"))]
    name = chance.choice(names)
    return override(name, chance.choice(choices.get(name) or list(small[name])))


def combinations(chance: random.Random, mode: str) -> list[str]:
    return [plausible(chance, mode) for _ in range(chance.randint(1, 5))]


def extremes(chance: random.Random, mode: str) -> list[str]:
    return [*(plausible(chance, mode) for _ in range(chance.randint(0, 2))), _number(chance, mode)]


def repeats(chance: random.Random, mode: str) -> list[str]:
    name = field_of(chance, mode, int, float, tuple)
    default = fields()[name]
    pool = TUPLES if isinstance(default, tuple) else WHOLE_NUMBERS[:6]
    return [
        override(name, chance.choice(pool)),
        *combinations(chance, mode),
        override(name, default),
    ]


def syntax(chance: random.Random, mode: str) -> list[str]:
    more = [plausible(chance, mode)] if chance.random() < 0.3 else []
    return [*more, *(chance.choice(SYNTAX) for _ in range(chance.randint(1, 2)))]


KINDS: dict[str, Callable[[random.Random, str], list[str]]] = {
    "wrong types": wrong_type,
    "bounds": bounds,
    "texts": texts,
    "tuples": tuples,
    "combinations": combinations,
    "extremes": extremes,
    "repeats": repeats,
    "syntax": syntax,
}

# --- their ends ---


@dataclasses.dataclass(frozen=True)
class End:
    """How a line ended: its exit code, what it wrote to stderr, and its seconds of CPU."""

    code: int
    stderr: list[str]
    seconds: float

    @property
    def verdict(self) -> str:
        """ "success", "exit 1", "exit 2", or what is wrong."""
        errors = [line for line in self.stderr if not is_warning(line)]
        if self.seconds > SECONDS:
            return "hangs"
        if self.code == 0:
            return "success" if not errors else "success with more than warnings on stderr"
        if self.code not in (1, 2):
            return f"exit code {self.code}"
        if len(errors) != 1:
            return f"{len(errors)} lines"
        if not errors[0].startswith("error: ") or "fault of the program" in errors[0]:
            return "a fault of the program"
        return f"exit {self.code}"

    @property
    def fine(self) -> bool:
        return self.verdict in ("success", "exit 1", "exit 2")


def is_warning(line: str) -> bool:
    """True of warnings and of the bars of progress."""
    return line.startswith("warning: ") or "%|" in line


def zeros(leaf: Any) -> Any:
    """An array of zeros, or a key, of the shape and type of `leaf`."""
    import jax
    import numpy as np

    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key(0) if is_key else np.zeros(leaf.shape, leaf.dtype)


class Accepted(SystemExit):
    """The end of a line whose first program for the devices has been lowered."""


@contextlib.contextmanager
def lowering_only() -> Iterator[None]:
    """A context in which `pmap` lowers a program and ends the line instead of running it.

    The state of a new run is traced, and then one of zeros.
    """
    import jax

    from runtime import devices
    from training import loop

    pmap, replicate, new_or_resumed = jax.pmap, devices.replicate, loop.new_or_resumed

    def traced(config: Any, parts: Any, optimizer: Any, checkpoints: Any) -> Any:
        if checkpoints.steps_anywhere():
            return new_or_resumed(config, parts, optimizer, checkpoints)
        state = jax.eval_shape(lambda: loop.state_from_config(config, parts, optimizer))
        return jax.tree.map(zeros, state), None, None

    def lowered(function: Any, **options: Any) -> Callable[..., None]:
        program = pmap(function, **options)

        def call(*arrays: Any) -> None:
            program.lower(*arrays)
            raise Accepted(0)

        call.lower = call  # type: ignore[attr-defined]
        return call

    def replicated(tree: Any) -> Any:
        with mock.patch.object(jax, "pmap", pmap):
            return replicate(tree)

    with (
        mock.patch.object(jax, "pmap", lowered),
        mock.patch.object(loop, "new_or_resumed", traced),
        mock.patch.object(devices, "replicate", replicated),
    ):
        yield


def run(argv: list[str], whole: bool) -> End:
    """Runs a line in this process; what C libraries write to stderr counts too."""
    from absl import flags
    from absl.testing import flagsaver

    import main

    began, code = time.process_time(), 0
    with tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        before = os.dup(2)
        stack.callback(os.close, before)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(flagsaver.flagsaver())
        flags.FLAGS.unparse_flags()
        if not whole:
            stack.enter_context(lowering_only())
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            main.main(list(argv))
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
        except BaseException as error:
            code = 99
            print(f"{type(error).__name__} came through: {error}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
        file.seek(0)
        text = file.read().decode(errors="replace")
    lines = [part for part in text.replace("\r", "\n").split("\n") if part.strip()]
    return End(code, lines, time.process_time() - began)


def make_run(workdir: pathlib.Path) -> None:
    """A run of the tiny config, as its training would leave it, with random weights."""
    import jax
    import numpy as np

    from runtime import ema, experiment, files
    from runtime.workdir import open_run
    from tests import tiny
    from tests.weights import normal_weights
    from training import optimizers, state

    config = tiny.config()
    parts, optimizer = experiment.build(config), optimizers.from_config(config)
    averages = ema.from_config(config).further
    fresh = functools.partial(
        state.new_state, parts.module, optimizer, config.seed, parts.image_shape, averages
    )
    first = jax.eval_shape(fresh)
    params = normal_weights(first.params, 0.01)
    tree = {
        "step": np.int32(6),
        "params": params,
        "opt_state": jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), first.opt_state),
        "ema_params": params,
        "key": np.asarray(jax.random.key_data(jax.random.key(config.seed))),
        "averages": dict.fromkeys(first.averages, params),
    }
    assert tree.keys() == vars(first).keys()
    checkpoints = open_run(config, workdir)
    checkpoints.save(6, tree, None, json.dumps(config.to_dict()))
    checkpoints.wait()
    files.write_json(workdir / "config.json", config.to_dict())


def serve(seed: int, folder: pathlib.Path, whole: bool) -> None:
    """Answers numbers of lines on stdin by their ends on stdout, as JSON."""
    gc.set_threshold(100_000, 20, 50)  # as in tests/conftest.py
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    if not (folder / "run").exists():
        make_run(folder / "run")
        (folder / "file").write_text("no weights")
        shutil.copytree(folder / "run", folder / "untouched")
    print(ANSWER + "ready", file=answers, flush=True)
    for number in sys.stdin:
        end = run(line(seed, int(number)).argv(str(folder)), whole)
        print(ANSWER + json.dumps(dataclasses.asdict(end)), file=answers, flush=True)


class Server:
    """The process that runs lines; a new one where it has died or hung."""

    def __init__(self, seed: int, whole: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        options = [f"--seed={seed}", *(["--whole"] if whole else [])]
        self.command = [sys.executable, "-m", "tests.fuzz", f"--serve={self.folder.name}", *options]
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.folder.cleanup()

    def stop(self) -> int:
        """Ends the process; its exit code."""
        if self.process is None:
            return 0
        self.process.kill()
        code = self.process.wait()
        self.process = None
        return code

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.process = process
        self.answer(process, 600.0)
        return process

    def answer(self, process: subprocess.Popen[bytes], seconds: float) -> str | None:
        """The next answer, None if there is none in that time or ever."""
        assert process.stdout is not None
        end = time.monotonic() + seconds
        text = b""
        while not text.endswith(b"\n"):
            readable, _, _ = select.select([process.stdout], [], [], max(end - time.monotonic(), 0))
            part = os.read(process.stdout.fileno(), 1 << 16) if readable else b""
            if not part:
                return None
            text += part
        return text.decode().rpartition(ANSWER)[2]

    def run(self, number: int) -> End:
        """The end of a line, even if it ends the process."""
        process = self.process or self.start()
        assert process.stdin is not None
        began = time.monotonic()
        process.stdin.write(f"{number}\n".encode())
        process.stdin.flush()
        answer = self.answer(process, PATIENCE)
        if answer is None:
            seconds, code = time.monotonic() - began, self.stop()  # a late answer is never the next
            return End(code if seconds < PATIENCE else -1, [], seconds)
        return End(**json.loads(answer))


def ends_of_lines(
    seed: int, numbers: range, whole: bool = False, show: bool = False
) -> list[tuple[Line, End]]:
    """The lines and their ends, up to Ctrl-C; failures are printed as they come."""
    ends = []
    with contextlib.suppress(KeyboardInterrupt), Server(seed, whole) as server:
        for number in numbers:
            each, end = line(seed, number), server.run(number)
            ends.append((each, end))
            if show or not end.fine:
                print(f"{number} ({each.kind}): {end.verdict}, {end.seconds:.1f} s", flush=True)
                usual = base_overrides("eval")
                unusual = [argument for argument in each.arguments if argument not in usual]
                print("   ", " ".join(map(repr, unusual))[:600])
                print("   ", "\n    ".join(end.stderr[:3])[:600], flush=True)
    return ends


def table(ends: list[tuple[Line, End]]) -> str:
    """Counts per kind: tried, success, exit 1, exit 2, failed."""
    columns = ("tried", "success", "exit 1", "exit 2", "failed")
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for each, end in ends:
        for kind in (each.kind, "all"):
            counts[kind].update(["tried", end.verdict if end.fine else "failed"])
    order = [kind for kind in (*KINDS, "all") if kind in counts]
    rows = [[kind, *(str(counts[kind][column]) for column in columns)] for kind in order]
    return "\n".join(
        "  ".join(cell.rjust(12) for cell in row) for row in [["kind", *columns], *rows]
    )


def command() -> int:
    """Runs lines and prints their counts; the exit code of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seed, pathlib.Path(options.serve), options.whole)
        return 0
    numbers = range(options.first, options.first + options.lines)
    ends = ends_of_lines(options.seed, numbers, options.whole, options.show)
    print(table(ends))
    return int(not all(end.fine for _, end in ends))


if __name__ == "__main__":
    sys.exit(command())
