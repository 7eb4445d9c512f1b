"""The demo's server and page: who is answered, what is refused, and a visitor who clicks through.

The picture of the README is made by the last test:
DEMO_PICTURE=docs/pictures/demo.png python -m pytest -m slow tests/test_demo_server.py -k picture
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo import server as demo_server
from demo import weights as demo_weights
from runtime.errors import Refused
from tests import tiny
from tests.test_demo import mask_of, picture
from tests.test_site import BROWSERS, opened
from tests.test_training import ROOT, use_devices

pytest.importorskip("starlette", reason="pip install -e '.[demo]'")
pytest.importorskip("uvicorn", reason="pip install -e '.[demo]'")
from demo import app as demo_app


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[demo_app.Demo, int]]:
    """The demo on a port of this machine, in a thread, as `server.run` starts it."""
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        demo = demo_app.Demo(demo_weights.shipped())
        listener = demo_server.listening_socket("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = demo_server.make_server(demo_app.application(demo, "127.0.0.1"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        yield demo, port
        server.should_exit = True
        thread.join(30)
        assert demo.queue.close(60)
        listener.close()


class Visitor:
    """A program that sends requests."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer; `body` is sent as JSON, bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"content-type": "application/json", **headers}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {n.lower(): v for n, v in answer.getheaders()}, content

    def events(self, number: str) -> list[tuple[str, dict[str, Any]]]:
        """The events of a job, until it is over."""
        status, headers, content = self.ask("GET", f"/jobs/{number}/events")
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        found = re.findall(r"event: (\w+)\n(?:id: \d+\n)?data: (.*)\n\n", content.decode())
        return [(name, json.loads(data)) for name, data in found]


@pytest.fixture
def visitor(demo: tuple[demo_app.Demo, int]) -> Visitor:
    return Visitor(demo[1])


POINTS = {
    "task": "sample",
    "weights": "two-moons",
    "settings": {"sampling.num_steps": 4, "sampling.num_samples": 10},
}


def test_an_order_is_done_and_told_of(visitor: Visitor) -> None:
    status, _, content = visitor.ask("POST", "/jobs", POINTS)
    assert status == 200
    events = visitor.events(json.loads(content)["job"])
    assert {name for name, _ in events[:-2]} <= {"waiting", "running"}
    (part_name, part), (name, words) = events[-2:]
    assert (part_name, name) == ("part", "done")
    assert words["command"].startswith("python main.py --mode=sample --source=two-moons")
    assert (words["nfe"], words["count"]) == (9, 10)
    assert (part["first"], part["count"], len(part["scatters"])) == (0, 10, 5)
    later = visitor.ask("GET", f"/jobs/{words['job']}/events", last_event_id="1")
    assert later[2].startswith(b"event: done")


def test_the_page_is_whole_and_has_all_tasks(visitor: Visitor) -> None:
    """Nothing is loaded from elsewhere, and nothing runs but the page's own script."""
    status, headers, content = visitor.ask("GET", "/")
    page = content.decode()
    assert status == 200
    for title in ("Sample", "In-paint", "Colourise", "Interpolate", "Score field", "Likelihood"):
        assert f">{title}</button>" in page
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sorted(sources) == ["data:,", "page.css", "page.js"]
    for name in ("page.js", "page.css"):
        status, headers, content = visitor.ask("GET", f"/{name}")
        assert status == 200
        assert not re.search(rb"https?://|@import|url\(", content)


def test_the_page_knows_what_can_be_set(visitor: Visitor) -> None:
    _, _, content = visitor.ask("GET", "/state")
    state = json.loads(content)
    by_name = {weights["name"]: weights for weights in state["weights"]}
    assert list(by_name) == list(demo_weights.shipped())
    assert by_name["two-moons"]["sde_name"] == "EDMSDE"
    assert "colour needs colour" in by_name["digits"]["tasks"]["colorize"]["refusal"]
    method = by_name["digits"]["tasks"]["sample"]["fields"][0]
    assert method["default"] == "dpmpp_2m_sde"
    assert set(method["names"]) <= set(state["samplers"])


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "line"),
    [
        ("GET", "/", {"host": "evil.example"}, 403, "this server is not 'evil.example'"),
        ("GET", "/", {"host": "127.0.0.1.evil.example:80"}, 403, "open it by the address"),
        ("GET", "/", {"host": "10.0.0.1"}, 403, "this server is not '10.0.0.1'"),
        ("GET", "/", {"host": ""}, 403, "this server is not ''"),
        ("GET", "/state", {"host": "localhost:1234"}, 200, ""),
        ("GET", "/state", {"host": "[::1]:1234"}, 200, ""),
        ("POST", "/jobs", {"origin": "https://evil.example"}, 403, "is another page"),
        ("POST", "/jobs", {"origin": "null"}, 403, "'null' is another page"),
        ("DELETE", "/jobs/1", {"origin": "http://127.0.0.1:1"}, 403, "is another page"),
        ("POST", "/jobs", {"content_type": "text/plain"}, 415, "must be application/json"),
        ("POST", "/picture", {"content_type": "multipart/form-data"}, 415, "application/json"),
        ("GET", "/jobs", {}, 405, ""),
        ("GET", "/../etc/passwd", {}, 404, ""),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404, ""),
        ("GET", "/page.js/../server.py", {}, 404, ""),
        ("GET", "/server.py", {}, 404, ""),
        ("GET", "/examples?weights=../../etc", {}, 404, "no such weights of images"),
        ("GET", "/examples?weights=two-moons", {}, 404, "no such weights of images"),
        ("GET", "/jobs/999/events", {}, 404, "no such job"),
        ("GET", "/jobs/..%2f/mask.png", {}, 404, ""),
        ("GET", "/jobs/999/mask.png", {}, 404, "no such mask"),
    ],
)
def test_who_may_ask_what(
    visitor: Visitor, method: str, path: str, headers: dict[str, str], status: int, line: str
) -> None:
    body = b"{}" if method == "POST" else None
    if method == "POST" and "content_type" not in headers:
        headers = {**headers, "content_type": "application/json"}
    answer, given, content = visitor.ask(method, path, body, **headers)
    assert answer == status, content
    assert line in content.decode() or status == 200
    assert given["content-security-policy"]


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"{", 400, "Expecting property name"),
        (b"\xff\xfe", 400, ""),
        (b"[" * 100_000, 400, ""),
        (b'{"task": NaN}', 400, "what is asked names no weights"),
        (b'{"weights": "digits", "task": "sample", "settings": []}', 400, "settings must be"),
        (b"[" + b"1," * (2**20) + b"1]", 413, "what is sent has up to 2 MiB"),
    ],
)
def test_a_body_that_means_nothing_is_refused_in_one_line(
    visitor: Visitor, body: bytes, status: int, line: str
) -> None:
    answer, _, content = visitor.ask("POST", "/jobs", body, content_type="application/json")
    assert answer == status
    told = json.loads(content)["line"]
    assert line in told
    assert "\n" not in told


def test_a_strangers_picture_is_seen_as_the_weights_see_it(visitor: Visitor) -> None:
    status, _, content = visitor.ask(
        "POST",
        "/picture",
        {"weights": "digits", "data": picture()},
        origin=f"http://127.0.0.1:{visitor.port}",
    )
    assert status == 200
    assert json.loads(content)["shape"] == [1, 8, 8, 1]


def test_a_full_queue_takes_no_order_and_a_waiting_one_can_be_cancelled(
    demo: tuple[demo_app.Demo, int], visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask of an order that waits is a file; the next one is done in spite of a failure."""
    going_on, begun = threading.Event(), threading.Event()

    def fail(work: Any, tell: Any) -> None:
        begun.set()
        assert going_on.wait(60)
        raise ValueError("it failed")

    monkeypatch.setattr(demo[0].queue, "do", fail)
    monkeypatch.setattr("demo.queue.MOST_WAITING", 1)
    image = {"from": "test", "index": 0}
    settings = {"weights": "digits", "inputs": [image], "mask": mask_of(demo[0].offered["digits"])}
    orders = []
    for i in range(3):
        status, _, content = visitor.ask("POST", "/jobs", {"task": "inpaint", **settings})
        orders.append((status, json.loads(content)))
        if i == 0:
            assert begun.wait(60)
    assert [status for status, _ in orders] == [200, 200, 503]
    assert orders[2][1]["line"].startswith("1 jobs wait already")
    first, second = orders[0][1]["job"], orders[1][1]["job"]
    status, headers, content = visitor.ask("GET", f"/jobs/{second}/mask.png")
    assert (status, headers["content-type"], content[:4]) == (200, "image/png", b"\x89PNG")
    _, _, content = visitor.ask("DELETE", f"/jobs/{second}")
    assert json.loads(content) == {"cancelled": True}
    assert visitor.events(second) == [("cancelled", {"job": second, "line": ""})]
    going_on.set()
    assert visitor.events(first)[-1] == ("failed", {"job": first, "line": "it failed"})


def test_a_stream_tells_that_the_demo_ends(
    demo: tuple[demo_app.Demo, int], visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself, though its job does not."""
    going_on = threading.Event()
    monkeypatch.setattr(demo[0].queue, "do", lambda work, tell: going_on.wait(60))
    _, _, content = visitor.ask("POST", "/jobs", POINTS)
    monkeypatch.setattr(demo_app.stop, "requested", lambda: True)
    try:
        assert visitor.events(json.loads(content)["job"]) == [("ended", {})]
    finally:
        going_on.set()


# How it starts and ends.


def test_names_of_a_server_that_is_bound_elsewhere() -> None:
    """Whoever binds it to all addresses may open it by any of them, or by the machine's name."""
    guard = demo_app.Guard(lambda *a: None, "0.0.0.0")  # type: ignore[arg-type, return-value]
    assert guard.is_own("192.168.1.7:8000")
    assert guard.is_own(f"{socket.gethostname()}:8000")
    assert not guard.is_own("evil.example:8000")


def test_a_place_that_cannot_be_listened_at_is_refused_in_one_line() -> None:
    with demo_server.listening_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"--port={port} is in use; --port=0 takes a free one"):
            demo_server.listening_socket("127.0.0.1", port)
        assert demo_server.address(taken, "127.0.0.1") == f"http://127.0.0.1:{port}/"
        assert demo_server.address(taken, "::1") == f"http://[::1]:{port}/"
    with pytest.raises(Refused, match="--port=65536 is no port"):
        demo_server.listening_socket("127.0.0.1", 2**16)
    with pytest.raises(Refused, match="--host=no such name: this is no address"):
        demo_server.listening_socket("no such name", 0)
    with pytest.raises(OSError, match=r"--host=203\.0\.113\.1 --port=0: "):
        demo_server.listening_socket("203.0.113.1", 0)


def test_without_its_library_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_server, "PACKAGES", ("starlette", "no_such_server"))
    code, lines = tiny.run(capsys, "main.py", "--mode=demo")
    assert code == 1
    assert lines == ["error: --mode=demo needs no_such_server: pip install -e '.[demo]'"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_one_line(tmp_path: pathlib.Path, number: int) -> None:
    """Of a job that runs, its listener, and of what was no request, nothing else is said."""
    command = [sys.executable, str(ROOT / "main.py"), "--mode=demo", "--port=0"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"the demo is at http://127\.0\.0\.1:(\d+)/; Ctrl-C ends it\n", line)
        assert match, process.stderr.read()
        assert Visitor(int(match[1])).ask("GET", "/")[0] == 200
        with socket.create_connection(("127.0.0.1", int(match[1])), timeout=60) as stranger:
            stranger.sendall(b"no request\r\n\r\n")
            assert b" 400 " in stranger.recv(1000)
        _, _, content = Visitor(int(match[1])).ask("POST", "/jobs", POINTS)
        connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=60)
        connection.request("GET", f"/jobs/{json.loads(content)['job']}/events")
        answer = connection.getresponse()
        assert answer.readline().startswith(b"event: ")
        process.send_signal(number)
        assert b"event: ended\ndata: {}\n\n" in answer.read()
        connection.close()
        assert process.wait(60) == 128 + number
        assert process.stderr.read() == f"{demo_server.ENDED}\n"
        assert process.stdout.read() == ""
    assert not list(tmp_path.iterdir())


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


PATIENCE = 300_000  # milliseconds: a program is compiled, on a machine that others share


def page(browser: Any, port: int, width: int, complaints: list[str], height: int = 860) -> Any:
    """The page in a tab of this width."""
    tab = opened(browser, width, complaints)
    tab.set_viewport_size({"width": width, "height": height})
    tab.set_default_timeout(PATIENCE)
    tab.goto(f"http://127.0.0.1:{port}/")
    tab.locator(".chip").first.wait_for()
    return tab


def choose(tab: Any, weights: str, task: str, **values: Any) -> None:
    """Chooses weights and a task, and sets fields, the last parts of their names."""
    tab.locator(f"[data-weights='{weights}']").click()
    tab.locator(f"#tab-{task}").click()
    for name, value in values.items():
        element = tab.locator(f"#fields [data-field$='.{name}']")
        if element.evaluate("e => e.tagName") == "SELECT":
            element.select_option(value)
        else:
            element.fill(str(value))


def drawn(tab: Any) -> str:
    """Draws, waits for the result, and returns its command; fails if the page tells of an error."""
    tab.locator("#run").click()
    tab.locator(".command, article > div > .remark, .state.bad").first.wait_for()
    tab.locator("#run:enabled").wait_for()
    assert tab.locator(".state.bad").count() == 0, tab.locator(".state.bad").all_inner_texts()
    return str(tab.locator(".command code").first.inner_text())


def pixels(tab: Any, selector: str = "canvas.picture") -> str:
    """What a canvas shows."""
    return str(tab.locator(selector).first.evaluate("c => c.toDataURL()"))


@pytest.mark.slow
def test_a_visitor_draws_points_and_looks_at_their_score(
    browser: Any, demo: tuple[demo_app.Demo, int]
) -> None:
    """Noise moves to the data, two samplers stand side by side, and the command can be copied."""
    complaints: list[str] = []
    tab = page(browser, demo[1], 1280, complaints)
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(tab, "two-moons", "sample", num_steps=5, num_samples=300, seed=7)
    command = drawn(tab)
    assert "--config.sampling.seed=7" in command
    tab.locator("[data-state=moving]").wait_for()
    moving = pixels(tab)
    tab.locator("[data-state=final]").wait_for()
    assert pixels(tab) != moving
    assert "11 NFE" in tab.locator(".numbers").inner_text()
    tab.locator(".time input").fill("0")
    assert tab.locator(".time output").inner_text() == "noise"
    tab.locator(".copy").click()
    tab.locator(".copy", has_text="copied").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == " ".join(command.split())

    tab.locator("#compare").check()
    tab.locator("#fields-b [data-field$='.method']").select_option("heun")
    drawn(tab)
    tab.locator(".command").nth(1).wait_for()
    assert tab.locator(".panel h2").all_inner_texts() == ["edm", "heun"]
    assert "--config.sampling.method=heun" in tab.locator(".command code").nth(1).inner_text()
    assert tab.locator(".numbers").count() == 2

    tab.locator("#tab-field").click()  # it looks by itself
    tab.locator(".pair canvas").first.wait_for()
    tab.locator("#run:enabled").wait_for()
    before = pixels(tab, ".pair canvas")
    tab.locator("[data-field=noise]").fill("1.5")
    tab.locator(".numbers", has_text="1.5 noise").wait_for()
    assert pixels(tab, ".pair canvas") != before

    choose(tab, "two-moons", "likelihood", bpd_num_images=50, bpd_rtol=0.05)
    assert "--config.eval.bpd_num_images=50" in drawn(tab)
    assert "nats/dim" in tab.locator(".numbers").inner_text()
    tab.locator("#tab-inpaint").click()
    assert "draws points of the plane" in tab.locator("#refusal").inner_text()
    assert complaints == []
    tab.close()


@pytest.mark.slow
def test_a_visitor_paints_a_mask_and_goes_between_images(
    browser: Any, demo: tuple[demo_app.Demo, int], tmp_path: pathlib.Path
) -> None:
    """Over a test image, then over the visitor's own, of which there is no command."""
    complaints: list[str] = []
    tab = page(browser, demo[1], 1280, complaints)
    choose(tab, "digits", "inpaint", num_steps=4, repeats=1, num_variants=2)
    tab.locator(".thumb").nth(3).click()
    tab.locator(".tools button", has_text="clear").click()
    clean = pixels(tab, "#painter")
    box = tab.locator("#painter").bounding_box()
    tab.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.7 * box["height"])
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.7 * box["height"])
    tab.mouse.up()  # a fast stroke leaves no hole
    assert pixels(tab, "#painter") != clean
    with tab.expect_request("**/jobs") as asked:
        command = drawn(tab)
    assert asked.value.post_data_json["mask"] == "1" * 40 + "0" * 8 + "1" * 16
    assert "--config.control.num_images=4" in command
    assert "--config.control.mask=mask.png" in command
    assert tab.locator(".tiles figure").count() == 2
    with tab.expect_download() as download:
        tab.locator("a", has_text="Save mask.png").click()
    download.value.save_as(tmp_path / "mask.png")
    assert (tmp_path / "mask.png").read_bytes()[:4] == b"\x89PNG"

    (tmp_path / "own.png").write_bytes(base64.b64decode(picture()))
    tab.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    tab.locator(".picker h3", has_text="your picture").wait_for()
    tab.locator("#run").click()
    tab.locator(".remark", has_text="No command draws this").wait_for()
    noise = np.random.default_rng(0).integers(0, 256, (800, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 2**20
    tab.locator("input[type=file]").set_input_files(tmp_path / "large.png")
    tab.wait_for_function(
        "() => page.samples['digits/own'].input.data.startsWith('/9j/')"
    )  # a JPEG
    tab.set_viewport_size({"width": 390, "height": 860})
    tab.evaluate("scrollTo(0, 0)")
    tab.locator("#run").click()
    tab.locator("#run:enabled").wait_for()
    tab.wait_for_function(
        "() => document.querySelector('.tiles').getBoundingClientRect().bottom <= innerHeight"
    )
    tab.set_viewport_size({"width": 1280, "height": 860})
    (tmp_path / "own.png").write_text("no picture")
    tab.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    tab.locator(".picker .remark", has_text="the picture cannot be read").wait_for()
    assert [line for line in complaints if "400" not in line] == []
    complaints.clear()

    choose(tab, "digits", "interpolate", method="ddim", num_steps=4, num_variants=3)
    assert "--config.control.task=interpolate" in drawn(tab)
    assert tab.locator(".tiles figcaption").all_inner_texts() == [
        *("first", "0.25", "0.50", "0.75", "last")
    ]
    assert complaints == []
    tab.close()


@pytest.mark.slow
def test_what_was_drawn_stays_and_what_runs_is_told_of_everywhere(
    browser: Any, demo: tuple[demo_app.Demo, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colours, a second sampler or another tab take nothing away; a job can be cancelled anywhere,
    and its film ends; a server that is gone is told of."""
    tab = page(browser, demo[1], 1280, [])
    choose(tab, "two-moons", "sample", num_steps=4, num_samples=50)
    command = drawn(tab)
    tab.locator("[data-state=final]").wait_for()
    before = pixels(tab)
    tab.locator("#theme").click()
    tab.wait_for_function(
        "before => document.querySelector('canvas.picture').toDataURL() != before", arg=before
    )
    tab.locator("#compare").check()
    assert tab.locator(".panel").count() == 2
    tab.locator("#compare").uncheck()
    choose(tab, "digits", "likelihood")
    assert tab.locator(".command").count() == 0
    choose(tab, "two-moons", "sample")
    assert tab.locator(".command code").inner_text() == command
    assert tab.locator("canvas.picture").count() == 1

    going_on = threading.Event()
    (part,) = list(demo[0].queue.jobs.values())[-1].parts

    def draw(work: Any, tell: Any) -> None:
        tell(part)
        assert going_on.wait(60)
        tell(part)

    monkeypatch.setattr(demo[0].queue, "do", draw)
    tab.locator("#run").click()
    tab.locator(".panel .state button").wait_for()
    tab.locator("#tab-likelihood").click()
    elsewhere = tab.locator("#elsewhere")
    assert elsewhere.inner_text().startswith("two-moons, Sample: ")
    assert tab.locator("#run").is_enabled()
    elsewhere.locator("button").click()
    tab.locator("#elsewhere", has_text="cancelling: it stops after this part").wait_for()
    going_on.set()
    elsewhere.wait_for(state="hidden")
    tab.locator("#tab-sample").click()
    assert tab.locator(".state").inner_text() == "cancelled"
    assert tab.locator(".command").count() == 0  # that of the picture before
    tab.locator("[data-state=final]").wait_for()
    tab.locator("#run:enabled").wait_for()

    choose(tab, "two-moons", "sample", num_steps="")
    tab.locator("#run").click()
    tab.locator(".state.bad", has_text="steps is empty; valid: a whole number").wait_for()
    choose(tab, "two-moons", "sample", num_steps=4)
    going_on.clear()
    answers = iter(["retry: 10\nevent: running\ndata: {}\n\n"])

    def answer(route: Any) -> None:
        if body := next(answers, None):
            route.fulfill(body=body, content_type="text/event-stream")
        else:
            route.abort()

    tab.route("**/jobs/*/events", answer)
    tab.locator("#run").click()
    tab.locator(".state.bad", has_text="does not answer; is it still running?").wait_for()
    assert tab.locator(".spin").count() == 0
    going_on.set()
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_the_screen(
    browser: Any, demo: tuple[demo_app.Demo, int], width: int, theme: str
) -> None:
    """In each task, dark or light; nothing is wider than a phone."""
    complaints: list[str] = []
    tab = page(browser, demo[1], width, complaints)
    tab.emulate_media(color_scheme=theme)
    choose(tab, "two-moons", "sample", num_steps=4, num_samples=200)
    drawn(tab)
    for weights in ("digits", "two-moons"):
        tab.locator(f"[data-weights='{weights}']").click()
        for task in tab.locator("[role=tab]").all():
            task.click()
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator("main").bounding_box()["width"] <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 21, 27)") == (theme == "dark")
    tab.locator("#theme").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != background
    assert complaints == []
    tab.close()


@pytest.mark.slow
def test_the_picture_of_the_readme(
    browser: Any, demo: tuple[demo_app.Demo, int], tmp_path: pathlib.Path
) -> None:
    """Two samplers of digits side by side, on the way and at the end, in a small file."""
    tab = page(browser, demo[1], 1200, [], height=870)
    choose(tab, "digits", "sample", num_samples=16)
    tab.locator("#compare").check()
    tab.locator("#fields-b [data-field$='.method']").select_option("ddim")
    for seed in ("1", "0"):  # at the second time nothing is compiled
        tab.locator("#fields [data-field$='.seed']").fill(seed)
        drawn(tab)
    tab.locator(".panel[data-state=final]").nth(1).wait_for()
    assert "compiling" not in tab.locator(".numbers").first.inner_text()
    tab.locator(".panel").first.locator(".time input").fill("14")
    tab.evaluate("scrollTo(0, 0)")
    path = pathlib.Path(os.environ.get("DEMO_PICTURE", tmp_path / "demo.png"))
    tab.screenshot(path=path)
    assert path.stat().st_size < 300_000
    tab.close()
