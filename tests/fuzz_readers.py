"""The readers of foreign files under inputs that nobody would write: guided by coverage.

    python -m tests.fuzz_readers --reader=pth --seconds=3600 --corpus=runs/fuzz

needs the extra `fuzz` (atheris). Inputs that reached new lines are kept in `<corpus>/<reader>/`, so
that another call goes on from there; with no corpus they are forgotten. Whatever a reader does but
return, raise a ValueError or an OSError of one line, is a fault: its input is cut down and kept in
tests/data/fuzz/<reader>/, where tests/test_fuzz_readers.py tries it again for ever.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import hashlib
import importlib
import importlib.util
import io
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

FAULTS = pathlib.Path(__file__).parent / "data" / "fuzz"
SEPARATOR = b"\n----\n"  # between the files of a folder, or of an archive, in one input
SECONDS = 5.0  # of CPU that a reader may take for an input of a few kilobytes
MEMORY = 2**30  # bytes that it may need more than before
LONGEST = 8192  # bytes of an input
INSTRUMENTED = [
    "interop", "data", "evaluation.metrics", "zipfile", "tarfile", "pickle", "PIL", "numpy.lib",
    "flax.serialization",
]  # fmt: skip
MODULES = (
    "data", "evaluation.metrics.statistics", "interop.diffusers", "interop.flax_msgpack",
    "interop.sources",
)  # fmt: skip


class Reader(NamedTuple):
    """A reader of one kind of file: what it does with an input, and inputs that are in order.

    Attributes:
      function: (input, empty folder) -> value; writes the input into the folder and reads it.
      seeds: valid inputs, and ones that a person thought of.
    """

    function: Callable[[bytes, pathlib.Path], Any]
    seeds: Callable[[], list[bytes]]


class Hang(BaseException):
    """The time is up; no reader may catch it."""


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive that compresses nothing, with the right checksums."""
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def read_pth(data: bytes, folder: pathlib.Path) -> Any:
    """An input is a file, or a pickle that is put into an archive with two storages."""
    from interop import formats, pth, sources

    if not data.startswith((b"PK", pth.LEGACY_MAGIC)):
        storages = {f"a/data/{i}": bytes(range(96)) for i in range(2)}
        data = zipped({"a/data.pkl": data, **storages})
    path = folder / "a.pth"
    path.write_bytes(data)
    if formats.recognise(path) == "pth":
        pth.read_pth(path)
        return sources.open_source(path)
    return None


def pth_seeds() -> list[bytes]:
    """Checkpoints of all ages and the pickles within, bombs of nesting."""
    import collections

    import numpy as np

    from tests.test_interop_files import Pickler, Tensor, write_legacy_pth, write_pth

    def pickled(value: Any) -> bytes:
        stream = io.BytesIO()
        Pickler(stream).dump(value)
        return stream.getvalue()

    weight = Tensor(np.arange(24, dtype=np.float32), 0, (4, 6), (6, 1))
    model = {"module.all_modules.0.weight": weight, "module.sigmas": weight}
    state = {"model": model, "step": 7, "ema": {"shadow_params": [weight], "decay": 0.9}}
    ordered = collections.OrderedDict(begin_conv=weight)
    contents: list[Any] = [state, model, {"a": np.float64(1), "b": (1, None, True)}, ordered]
    contents += [[model, {"state": {}}, 3, 4, model], {"model": model, "model_ema": ordered}]
    doubling: list[Any] = []
    for _ in range(40):
        doubling = [doubling, doubling]
    circle: list[Any] = []
    circle.append(circle)
    seeds = [pickled(value) for value in [*contents, doubling, circle]]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        seeds.append(write_pth(folder / "new", state).read_bytes())
        seeds.append(write_legacy_pth(folder / "old", state).read_bytes())
    seeds.append(b"\x80\x02" + b"]" * 60 + b"a" * 59 + b".")  # very deep
    seeds.append(  # an OrderedDict with another `items`
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    )
    return seeds


def read_flax(data: bytes, folder: pathlib.Path) -> Any:
    """A file of Flax's msgpack."""
    from interop import sources

    path = folder / "checkpoint_1"
    path.write_bytes(data)
    return sources.FlaxFile(path)


def flax_seeds() -> list[bytes]:
    """A checkpoint, and arrays and numbers of its own kinds of extension."""
    import flax.serialization
    import numpy as np

    from tests.test_interop_files import jax_state

    parts = {"a": np.arange(6.0).reshape(2, 3), "b": [1j, None, True], "c": np.float32(1)}
    return [flax.serialization.msgpack_serialize(value) for value in (jax_state()[0], parts)]


def read_diffusers(data: bytes, folder: pathlib.Path) -> Any:
    """An input is config.json, scheduler_config.json and the weights, each of which may lack."""
    from interop import diffusers, sources

    config, scheduler, weights = [*data.split(SEPARATOR, 2), b"", b""][:3]
    (folder / "unet").mkdir()
    (folder / "scheduler").mkdir()
    for path, content in (
        (folder / "unet" / "config.json", config),
        (folder / "scheduler" / "scheduler_config.json", scheduler),
        (folder / "unet" / diffusers.WEIGHTS, weights),
    ):
        if content:
            path.write_bytes(content)
    opened = sources.open_source(folder)
    assert isinstance(opened, sources.DiffusersFolder)
    return opened.config_values(None)


def diffusers_seeds() -> list[bytes]:
    """Descriptions of both networks, schedulers of several kinds, tensors of several types."""
    import numpy as np
    import safetensors.numpy

    from interop import diffusers_config
    from tests.test_diffusers import DDPM, NCSNPP, SHAPE

    schedulers: list[dict[str, Any]] = [
        {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"},
        {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 348},
    ]
    tensors: dict[str, np.ndarray] = {
        "time_proj.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "mid_block.attentions.0.query.weight": np.zeros(2, np.float16),
        "n": np.arange(2),
    }
    weights = safetensors.numpy.save(tensors)
    return [
        SEPARATOR.join([json.dumps(value).encode() for value in pair] + [weights])
        for pair in zip(
            (diffusers_config.description(module, SHAPE) for module in (DDPM, NCSNPP)),
            schedulers,
            strict=True,
        )
    ]


def read_statistics(data: bytes, folder: pathlib.Path) -> Any:
    """An input is an .npz file, or its arrays mu, sigma and origin, which are zipped."""
    from evaluation.metrics import statistics

    if not data.startswith(b"PK"):
        names = ("mu", "sigma", "origin") if data.count(SEPARATOR) else ("pool_3",)
        arrays = zip(names, data.split(SEPARATOR), strict=False)
        data = zipped({f"{name}.npy": array for name, array in arrays})
    path = folder / "a.npz"
    path.write_bytes(data)
    return statistics.read(path)


def statistics_seeds() -> list[bytes]:
    """A file with an origin, its arrays, and features."""
    import numpy as np

    def saved(value: Any) -> bytes:
        stream = io.BytesIO()
        np.save(stream, value)
        return stream.getvalue()

    arrays = [np.zeros(2), np.eye(2), np.array('{"network": "inception", "images": 3}')]
    stream = io.BytesIO()
    np.savez(stream, mu=arrays[0], sigma=arrays[1], origin=arrays[2])
    pool = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    return [stream.getvalue(), SEPARATOR.join(map(saved, arrays)), saved(pool)]


def read_cifar10(data: bytes, folder: pathlib.Path) -> Any:
    """An input is a tar archive, which is compressed; whatever its hash."""
    from data import cifar10

    class Unhashed(cifar10.Cifar10):
        CHECKSUMS = {}  # noqa: RUF012
        COUNTS = {"train": 5, "test": 1}  # noqa: RUF012

    (folder / cifar10.ARCHIVE).write_bytes(gzip.compress(data, 1))
    files = Unhashed.find(folder)
    assert files is not None
    return Unhashed.read(files, "test")


def cifar10_seeds() -> list[bytes]:
    """An archive with one record, and one with a link in its place."""
    streams = [io.BytesIO(), io.BytesIO()]
    record = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    link = tarfile.TarInfo("test_batch.bin")
    record.size, link.type, link.linkname = 3073, tarfile.SYMTYPE, "/dev/zero"
    for stream, member, data in ((streams[0], record, bytes(3073)), (streams[1], link, b"")):
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            archive.addfile(member, io.BytesIO(data))
    return [stream.getvalue()[:5120] for stream in streams]


def read_image(data: bytes, folder: pathlib.Path) -> Any:
    """A picture of a folder of images, whatever its name says."""
    from data import images

    path = folder / "a.png"
    path.write_bytes(data)
    return images.read_image(path, (8, 8, 3))


def image_seeds() -> list[bytes]:
    """Pictures of several kinds and modes."""
    from PIL import Image

    seeds = []
    for kind, mode in (
        ("png", "RGBA"), ("png", "P"), ("png", "I;16"), ("jpeg", "L"), ("gif", "P"),
        ("tiff", "RGB"), ("webp", "RGB"), ("bmp", "1"), ("ppm", "RGB"),
    ):  # fmt: skip
        stream = io.BytesIO()
        Image.new(mode, (9, 7), 1).save(stream, kind)
        seeds.append(stream.getvalue())
    return seeds


READERS = {
    "pth": Reader(read_pth, pth_seeds),
    "flax": Reader(read_flax, flax_seeds),
    "diffusers": Reader(read_diffusers, diffusers_seeds),
    "statistics": Reader(read_statistics, statistics_seeds),
    "cifar10": Reader(read_cifar10, cifar10_seeds),
    "images": Reader(read_image, image_seeds),
}


def seeds(reader: str) -> list[bytes]:
    """The seeds of a reader, then the inputs that once were faults, in the order of their names."""
    kept = sorted(path for path in (FAULTS / reader).glob("*") if path.is_file())
    return READERS[reader].seeds() + [path.read_bytes() for path in kept]


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `Hang` when the process has worked for so long."""

    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def fault(reader: str, data: bytes) -> str:
    """What is wrong with a reader's end on this input, "" if it is one that is accepted."""
    start = time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = ""
    with tempfile.TemporaryDirectory(dir=shared_memory()) as folder:
        try:
            with alarm(2 * SECONDS), warnings.catch_warnings(action="ignore"):
                READERS[reader].function(data, pathlib.Path(folder))
        except (ValueError, OSError) as error:
            if "\n" in str(error):
                wrong = f"{type(error).__name__} of several lines"
        except Hang:
            wrong = "hang"
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if f.filename.startswith(str(FAULTS.parents[2]))][-1]
            wrong = f"{type(error).__name__} at {pathlib.Path(own.filename).name}:{own.name}"
    if not wrong and time.process_time() - start > SECONDS:
        wrong = "hang"
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    return wrong or ("memory" if more > MEMORY else "")


@functools.cache
def shared_memory() -> str | None:
    """The folder for files that never reach a disk, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The input with one to four changes: bytes set, cut out, doubled, or numbers overwritten."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        size = rng.choice((1, 2, 4, 8, 64))
        part = content[place : place + size]
        change = rng.randrange(4)
        if change == 0:
            content[place : place + size] = b""
        elif change == 1:
            content[place:place] = part * rng.choice((1, 2, 20))
        elif change == 2:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1))
            content[place : place + 8] = number.to_bytes(8, rng.choice(("little", "big")))
        else:
            content[place : place + 1] = rng.randbytes(1)
    return bytes(content)


def shortened(reader: str, data: bytes, seconds: float = 20.0) -> bytes:
    """A shorter input with the same fault, as far as it is found in that time."""
    what, end, size = fault(reader, data), time.monotonic() + seconds, max(len(data) // 2, 1)
    if what == "memory":  # is measured once in a process
        return data
    while size:
        place = 0
        while place < len(data) and time.monotonic() < end:
            shorter = data[:place] + data[place + size :]
            if fault(reader, shorter) == what:
                data = shorter
            else:
                place += size
        size //= 2
    return data


def keep(reader: str, data: bytes) -> pathlib.Path:
    """Writes a fault's input beside the others."""
    path = FAULTS / reader / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def child(reader: str, arguments: Sequence[str]) -> None:
    """Fuzzes in this process, which libFuzzer ends; prints its counts as lines of JSON."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        for name in MODULES:  # without a limit on their time
            importlib.import_module(name)
        for data in READERS[reader].seeds():  # imports the rest
            fault(reader, data)
    counts = {"executions": 0, "faults": 0, "cpu": 0.0}
    kinds: set[str] = set()
    last = 0.0

    def test_one_input(data: bytes) -> None:
        nonlocal last
        counts["executions"] += 1
        what = fault(reader, data)
        if what and what not in kinds:
            kinds.add(what)
            counts["faults"] += 1
            print(f"fault: {what}: {keep(reader, shortened(reader, data))}", flush=True)
        if time.monotonic() - last > 5.0:
            last = time.monotonic()
            counts["cpu"] = time.process_time()
            print(json.dumps(counts), flush=True)

    atheris.Setup(["fuzz", *arguments], test_one_input)
    atheris.Fuzz()


class Run:
    """The counts of a fuzzing over all its processes: one that dies of a fault is followed up."""

    def __init__(self, reader: str):
        self.reader = reader
        self.before = {"executions": 0, "faults": 0, "cpu": 0.0}
        self.now = dict(self.before)
        self.edges = 0
        self.printed = time.monotonic()

    def total(self, name: str) -> float:
        return self.before[name] + self.now[name]

    def report(self) -> None:
        print(
            f"{self.reader}: {self.total('executions'):.0f} executions, {self.edges} edges, "
            f"{self.total('faults'):.0f} faults, {self.total('cpu'):.0f} CPU seconds",
            flush=True,
        )
        self.printed = time.monotonic()

    def follow(self, process: subprocess.Popen[str]) -> None:
        """Reads what a child prints, to its end."""
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self.now = json.loads(line)
            elif match := re.match(r"#\d+\s.*cov: (\d+)", line):
                self.edges = max(self.edges, int(match[1]))
            elif line.startswith("fault") or " ERROR: " in line or line.startswith("SUMMARY"):
                print(line, end="", flush=True)
            if time.monotonic() - self.printed > 60.0:
                self.report()
        process.wait()
        for name in self.before:
            self.before[name] += self.now[name]
            self.now[name] = 0


def fuzz(reader: str, seconds: float, corpus: pathlib.Path) -> int:
    """Fuzzes a reader for so many CPU seconds; returns the number of faults."""
    inputs = corpus / reader
    inputs.mkdir(parents=True, exist_ok=True)
    for data in seeds(reader):
        (inputs / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    run = Run(reader)
    while (left := seconds - run.total("cpu")) > 1.0:
        crashes = pathlib.Path(tempfile.mkdtemp(dir=corpus))
        options = [str(inputs), f"-max_total_time={int(left)}", f"-max_len={LONGEST}"]
        options += [f"-artifact_prefix={crashes}/", "-timeout=60", "-rss_limit_mb=4096"]
        command = [sys.executable, "-m", "tests.fuzz_readers", "--reader", reader, "--child"]
        with subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            before = run.total("executions")
            run.follow(process)
        for crash in crashes.iterdir():
            run.before["faults"] += 1
            print(f"fault: {crash.name}: {keep(reader, crash.read_bytes())}", flush=True)
        ended = process.returncode == 0 or any(crashes.iterdir())
        shutil.rmtree(crashes)
        if not ended or run.total("executions") == before:
            raise RuntimeError(f"the fuzzing of {reader} ended with code {process.returncode}")
    run.report()
    return int(run.total("faults"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzzes the readers of foreign files.")
    parser.add_argument("--reader", choices=READERS, action="append", help="all, if not given")
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU time, for each reader")
    parser.add_argument("--corpus", type=pathlib.Path, help="folder for inputs worth keeping")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments, options = parser.parse_known_args()
    if options and not arguments.child:
        parser.error(f"unknown: {' '.join(options)}")
    if importlib.util.find_spec("atheris") is None:
        sys.exit("error: the fuzzer needs atheris: pip install -e '.[fuzz]'")
    if arguments.child:
        child(arguments.reader[0], options)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = arguments.corpus or pathlib.Path(temporary)
        count = sum(fuzz(name, arguments.seconds, corpus) for name in arguments.reader or READERS)
    sys.exit(min(count, 1))


if __name__ == "__main__":
    main()
