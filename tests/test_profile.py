"""A trace of some steps."""

from __future__ import annotations

import gzip
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from training.profile import Profile

STATE: Any = None


def test_the_trace_is_of_ten_steps_after_the_calls_that_compile(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settled: list[int] = []
    profile = Profile(tmp_path, lambda: settled.append(profile.calls))
    work = jax.jit(lambda x: jnp.sin(x) @ x)
    for step in range(4, 33, 4):
        work(jnp.ones((8, 8))).block_until_ready()
        profile.after_call(step, STATE)
    profile.close(32)
    assert settled == [2, 5], "before it begins, after call 2, and ends, 12 steps later"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"--profile: steps 9 to 20 are in {tmp_path / 'profile'}: open it with")
    (trace,) = tmp_path.rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_a_short_run_ends_its_trace_and_a_shorter_one_has_none(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    for calls, words in ((3, "steps 9 to 12 are in"), (1, "no trace, which needs more than 2")):
        profile = Profile(tmp_path, lambda: None)
        for call in range(calls):
            profile.after_call(4 * call + 4, STATE)
        profile.close(4 * calls)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"--profile: {words}")
