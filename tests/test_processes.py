"""Processes that decode: what comes back is what this process would have made."""

import fcntl
import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from data import crops, images, processes
from data.pictures import Fit

SHAPE = (8, 8, 3)
DECODE = Fit().decoder(SHAPE)


@pytest.fixture(scope="module")
def workers():
    started = processes.Workers(2)
    yield started
    started.close()


@pytest.fixture
def pool(workers, monkeypatch):
    """Everything is decoded by the workers; the list of those who asked for them."""
    asked: list[int] = []

    def answer(decode, records, into):
        asked.append(len(records))
        return workers.answer(decode, records, into)

    monkeypatch.setattr(processes._Pool, "workers", lambda self, count: Asked(answer))
    yield asked
    assert len(children(workers.process.pid)) == 2, "they are all there"


class Asked:
    """Stands for workers."""

    def __init__(self, answer):
        self.answer = answer


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[pathlib.Path]:
    """Forty small pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(40)]
    for path in paths:
        height, width = rng.integers(8, 20, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return paths


def decoded(decode, records, rows, warn=images.warn_always, size=8, dtype=np.uint8):
    """The images of `rows` by `processes.decoded`."""
    into = np.full((len(rows), size, size, 3), 77, dtype)
    processes.decoded(decode, records.__getitem__, rows, into, warn)
    return into


def images_of(workers, files) -> np.ndarray:
    """The images of files, asked of workers."""
    into = np.zeros((len(files), *SHAPE), np.uint8)
    answer = workers.answer(DECODE, files, into)
    assert answer == ([], None)
    assert into.any((1, 2, 3)).all()
    return into


def children(pid: int) -> list[int]:
    return [
        int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def with_chunk(path: pathlib.Path, name: bytes, body: bytes) -> bytes:
    """A PNG file with one more chunk, before its pixels."""
    content = path.read_bytes()
    chunk = len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    return content[:33] + chunk + content[33:]


def test_images_are_those_of_this_process_in_their_order(pool, files):
    rows = np.random.default_rng(1).permutation(len(files)).tolist()
    found = decoded(DECODE, files, rows)
    expected = [images.read_image(files[row], SHAPE) for row in rows]
    np.testing.assert_array_equal(found, expected)
    assert sum(pool) == 40
    assert max(pool) <= 16


def test_bytes_and_the_official_crops_go_there_too(pool, files):
    contents = [images.Content(path.name, path.read_bytes()) for path in files]
    decode = functools.partial(crops.lsun, size=8, rounded=True)
    found = decoded(decode, contents, range(40))
    np.testing.assert_array_equal(found, [decode(content) for content in contents])
    assert pool


@pytest.mark.parametrize("rounded", [False, True])
def test_pixels_may_lie_in_any_order_of_axes(pool, files, rounded):
    decode = functools.partial(crops.lsun, size=4, rounded=rounded)
    image = decode(files[0])
    assert not image.flags.c_contiguous
    for rows in (range(1), range(40)):
        found = decoded(decode, files, rows, size=4, dtype=image.dtype)
        np.testing.assert_array_equal(found, [decode(files[row]) for row in rows])
    assert pool


def test_answers_that_are_larger_than_the_shared_memory_come_too(workers, files):
    """1024 pixels: 3 MB an image, five of which the memory has room for."""
    decode = Fit().decoder((1024, 1024, 3))
    for count in (5, 6):
        into = np.zeros((count, 1024, 1024, 3), np.uint8)
        assert workers.answer(decode, files[:count], into) == ([], None)
        for image, path in zip(into, files, strict=False):
            np.testing.assert_array_equal(image, decode(path))


def test_flaws_are_told_here(pool, files):
    broken = images.Content("text.png", with_chunk(files[0], b"zTXt", b"Comment\0\1"))
    told: list[tuple[str, str]] = []
    (found,) = decoded(DECODE, [broken], [0], lambda *flaw: told.append(flaw))
    np.testing.assert_array_equal(found, images.read_image(files[0], SHAPE))
    here: list[tuple[str, str]] = []
    images.read_image(broken, SHAPE, lambda *flaw: here.append(flaw))
    assert told == here
    assert len(told) == 1


def test_the_first_row_that_fails_is_named(pool, files):
    records = [*files[:20], images.Content("a.png", b"x"), images.Content("b.png", b"y"), *files]
    with pytest.raises(ValueError, match=r"^a\.png cannot be read: it is no image"):
        decoded(DECODE, records, range(len(records)))
    assert (decoded(DECODE, records, range(20))[19] != 77).any()


def test_a_process_that_ends_is_replaced_by_this_one(files, caplog):
    workers = processes.Workers(2)
    images_of(workers, files)  # both have begun
    for pid in children(workers.process.pid):
        os.kill(pid, signal.SIGKILL)
    for _ in range(4):
        found = images_of(workers, files)
        np.testing.assert_array_equal(found[3], images.read_image(files[3], SHAPE))
    assert caplog.text.count("a process that decodes images has ended") == 1
    workers.close()
    assert workers.process.returncode == 0


def test_a_request_that_cannot_be_sent_leaves_the_workers_as_they_were(workers, files):
    for _ in range(3):
        with pytest.raises((AttributeError, TypeError, ValueError), match=r"pickle|local object"):
            workers.answer(lambda record, warn: record, files, np.empty((40, *SHAPE), np.uint8))
    images_of(workers, files)


def test_workers_hold_no_more_than_decoders_need(workers, files):
    images_of(workers, files)
    (pid, *_) = children(workers.process.pid)
    mapped = pathlib.Path(f"/proc/{pid}/maps").read_text()
    assert "_imaging" in mapped
    assert "jaxlib" not in mapped


def test_few_images_start_no_process(monkeypatch):
    started: list[int] = []
    monkeypatch.setattr(processes, "Workers", started.append)
    monkeypatch.setattr(processes, "processors", lambda: 3)
    pool = processes._Pool()
    pool.workers(processes.FEW)
    assert started == []
    pool.workers(1)
    pool.workers(1)
    assert started == [3]


def test_without_processes_threads_decode(monkeypatch, caplog, files):
    monkeypatch.setattr(processes, "FEW", 0)
    monkeypatch.setattr(processes, "_pool", processes._Pool())
    monkeypatch.setattr(processes, "processors", lambda: 2)
    monkeypatch.setattr(processes.sys, "executable", "/nowhere/python")
    for _ in range(2):
        found = decoded(DECODE, files, range(40))
    np.testing.assert_array_equal(found, [images.read_image(path, SHAPE) for path in files])
    assert caplog.text.count("no processes decode images, threads do") == 1


def test_large_images_are_decoded_by_one_process_at_a_time():
    with tempfile.NamedTemporaryFile() as shared:
        exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
        code = f"import fcntl; fcntl.lockf(open({shared.name!r}, 'r+'), {exclusive})"
        other = [sys.executable, "-S", "-c", code]
        with processes.OneProcess(shared.fileno()):
            assert subprocess.run(other, capture_output=True, check=False).returncode != 0
        assert subprocess.run(other, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_no_process_is_left_when_this_one_is_killed():
    code = (
        "from data import processes, images\n"
        "workers = processes.Workers(2)\n"
        "workers.answer(images.read_image, [], [])\n"
        "print(workers.process.pid, flush=True)\n"
        "import time; time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        server = int(user.stdout.readline())
        limit = time.monotonic() + 20.0
        while time.monotonic() < limit and len(children(server)) < 2:
            time.sleep(0.05)
        everyone = [server, *children(server)]
        user.kill()
    assert len(everyone) == 3
    limit = time.monotonic() + 20.0
    while time.monotonic() < limit and any(map(alive, everyone)):
        time.sleep(0.05)
    assert not any(map(alive, everyone))


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
