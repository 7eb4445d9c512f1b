"""Progress bars say what the program waits for."""

import io
import time

import jax
import jax.numpy as jnp
import pytest

from runtime import progress, stop


@pytest.fixture
def bar():
    with progress.Bar(total=4, desc="training", file=io.StringIO(), mininterval=0) as bar:
        assert progress.Bar.compilation
        progress.Bar.compilation.since = None  # other tests lower what is never compiled
        yield bar


def test_a_bar_that_has_not_moved_is_starting(bar):
    assert bar.state(bar.opened + 7.0) == ("starting", 7.0)
    bar.update(1)
    assert bar.state(bar.opened + 7.0) == ("", 0.0)


def test_compilation_is_seen_as_long_as_xla_compiles(bar):
    states = []

    def watch(event: str, duration_secs: float, **_: str | int) -> None:
        states.append((event, bar.state(time.monotonic())[0]))

    jax.monitoring.register_event_duration_secs_listener(watch)
    try:
        bar.update(1)
        jax.jit(lambda x: jnp.sin(x) * time.monotonic())(1.0)
    finally:
        jax._src.monitoring.unregister_event_duration_listener(watch)
    assert (progress.LOWERED, "compiling") in states
    assert states[-1] == (progress.COMPILED, "")


def test_the_note_goes_away_and_leaves_others_alone(bar):
    bar._say("compiling, 12 s")
    assert bar.postfix == "compiling, 12 s"
    bar._say("")
    assert bar.postfix == ""
    bar._say("compiling, 3 s")
    bar.set_postfix(loss=2)
    bar._say("")
    assert bar.postfix == "loss=2"


def test_a_long_wait_is_said(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.5)
    file = io.StringIO()
    with progress.Bar(total=4, desc="sampling", file=file):
        time.sleep(1.3)
    assert "starting, 1 s" in file.getvalue()


def test_a_signal_that_has_to_wait_is_acknowledged(monkeypatch):
    file = io.StringIO()
    with progress.Bar(total=4, desc="training", file=file) as bar:
        bar.update(1)
        monkeypatch.setattr(stop, "requested", lambda: True)
        time.sleep(1.3)
        assert bar.note == "stopping"
    assert "stopping" in file.getvalue()


def test_a_hidden_bar_has_no_thread():
    with progress.Bar(total=4, disable=True) as bar:
        assert not hasattr(bar, "watch")
        assert progress.Bar.shown == 0


def test_a_bar_whose_line_has_no_end_is_known():
    with progress.Bar(total=4, file=io.StringIO()) as bar:
        assert progress.Bar.shown == 1
        bar.close()
        assert progress.Bar.shown == 0
    assert progress.Bar.shown == 0
