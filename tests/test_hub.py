"""Weights by name: fetched once, resumed, verified; and one line where they cannot be."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from interop import cards, hub

CONTENT = np.random.RandomState(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A server of one file on this machine, that may break off and remembers what it was asked.

    Attributes:
      breaks: how many bytes each of the next answers has; then it sends all.
      tag: the version of the file.
      asked: the Range of each request, "" of none.
    """

    def __init__(self) -> None:
        self.breaks: list[int] = []
        self.tag = '"one"'
        self.content = CONTENT
        self.asked: list[str] = []
        self.status = 200

    def answer(self, handler: Any) -> None:
        asked = handler.headers.get("Range", "")
        self.asked.append(asked)
        if self.status != 200:
            handler.send_error(self.status)
            return
        fresh = handler.headers.get("If-Range") == self.tag
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fresh else 0
        if first >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        body = self.content[first:]
        handler.send_response(206 if asked and fresh else 200)
        handler.send_header("ETag", self.tag)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)
        handler.close_connection = True


@pytest.fixture
def server(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server, `address` included; and weights in an empty folder."""
    monkeypatch.setenv("SCORE_SDE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv(hub.OFFLINE, raising=False)
    file = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    file.address = f"http://127.0.0.1:{running.server_port}/net.pkl"  # type: ignore[attr-defined]
    yield file
    running.shutdown()
    running.server_close()


def card(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> str:
    """The name of the only card."""
    made = cards.Card("someone/net", config="quickstart", **fields)
    monkeypatch.setattr(cards, "cards", lambda: {made.name: made})
    return made.name


def test_a_file_is_fetched_once(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = card(monkeypatch, address=server.address, sha256=SHA256)
    path = hub.local(name)
    assert path.read_bytes() == CONTENT
    assert path == hub.folder() / "someone/net/net.pkl"
    assert hub.local(f"{name}:flow") == path
    assert server.asked == [""]
    by_address = hub.local(server.address)
    assert by_address.read_bytes() == CONTENT
    assert by_address != path
    assert {p.name for p in hub.folder().rglob("*") if p.is_file()} == {
        "net.pkl",
        "net.pkl.verified",
    }


def test_a_download_that_breaks_off_goes_on(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = card(monkeypatch, address=server.address, sha256=SHA256)
    server.breaks = [131_072, 65_536]
    assert hub.local(name).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=131072-", "bytes=196608-"]


def test_what_a_killed_program_had_is_not_asked_again(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = card(monkeypatch, address=server.address)
    server.breaks = [65_536, 0, 0, 0, 0, 0]
    with pytest.raises(FileNotFoundError, match="broke off after 65536 of 300000"):
        hub.local(name)
    server.breaks = []
    assert hub.local(name).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=65536-"


def test_another_version_begins_anew(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = card(monkeypatch, address=server.address)
    server.breaks = [65_536, 0]
    with pytest.raises(FileNotFoundError):
        hub.local(name)
    server.content, server.tag = CONTENT[::-1], '"two"'
    assert hub.local(name).read_bytes() == CONTENT[::-1]


def test_a_whole_part_is_taken(server: Any) -> None:
    """A program that was killed between the last byte and the file's name."""
    target = hub.folder() / "net.pkl"
    target.parent.mkdir(parents=True)
    target.with_name("net.pkl.part").write_bytes(CONTENT)
    target.with_name("net.pkl.part.version").write_text(server.tag)
    hub.download(server.address, target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=300000-"]


def test_another_file_than_the_published_one_is_refused(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = card(monkeypatch, address=server.address, sha256="0" * 64)
    with pytest.raises(ValueError, match="is not the published file: its SHA-256"):
        hub.local(name)
    assert not [path for path in hub.folder().rglob("*") if path.is_file()]
    path = hub.folder() / name / "net.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT[:-1])  # as a browser leaves it that was stopped
    with pytest.raises(ValueError, match="is not the published file"):
        hub.local(name)


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_refuses_is_one_line(
    server: Any, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    name = card(monkeypatch, address=server.address)
    server.status = status
    monkeypatch.setattr(hub, "AGAIN", 0)
    with pytest.raises(FileNotFoundError, match=f"answers {status} .*and put it at") as refusal:
        hub.local(name)
    assert "\n" not in str(refusal.value)
    path = hub.folder() / name / "net.pkl"
    assert str(path) in str(refusal.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    assert hub.local(name) == path, "put there by hand"


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(hub.OFFLINE, "1")
    name = card(monkeypatch, address=server.address)
    with pytest.raises(FileNotFoundError, match=f"{hub.OFFLINE} is set.*fetch it elsewhere"):
        hub.local(name)
    assert not server.asked


def test_a_folder_for_the_browser_says_so(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://drive.google.com/drive/folders/abc"
    name = card(monkeypatch, address=address, file="checkpoint_8.pth")
    with pytest.raises(
        FileNotFoundError, match=rf"open {address}, fetch checkpoint_8\.pth, put it"
    ):
        hub.local(name)
    path = hub.folder() / name / "checkpoint_8.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert hub.local(name) == path


def test_what_is_nothing_names_the_nearest_card() -> None:
    with pytest.raises(FileNotFoundError, match="edm/cifar10-cond-vp"):
        hub.local("edm/cifar10-cond-pv")


def test_a_path_is_itself(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(CONTENT)
    assert hub.local(str(path)) == path
