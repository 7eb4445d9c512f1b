"""The page and what it asks for, as an application of Starlette.

It answers browsers of this machine: a request must name the server by an address or a name that is
its own (a page of a stranger whose name was bent to 127.0.0.1 cannot), and what changes anything
must come from the page itself. Bodies are JSON, bounded, and read by `orders`; no path of a request
is ever one of the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import pathlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import jinja2
import numpy as np
from absl import logging
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.names import sentence
from data.datasets import class_names
from demo import choices, jobs, orders
from demo.fields import Field
from demo.programs import Programs
from demo.queue import OVER, RUNNING, Full, Job, Queue, Tell
from demo.weights import Weights
from runtime import stop
from runtime.errors import one_line
from runtime.progress import Compilation
from sampling import SAMPLERS

FOLDER = pathlib.Path(__file__).parent
FILES = {"page.css": "text/css", "page.js": "text/javascript"}
MOST_BYTES = 2 * orders.MOST_UPLOADED
MOST_STREAMS = 32
HEARTBEAT, PAUSE = 10.0, 0.05  # seconds
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Refuses requests to another name than the server's, and changes that another page asks for.

    Args:
      host: that the server is bound to.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self.names = {*LOOPBACK, host.lower()}
        self.anywhere = host not in LOOPBACK
        if self.anywhere:
            self.names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        if reason := self.refusal(Request(scope)):
            await PlainTextResponse(reason, 403)(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)

    def refusal(self, request: Request) -> str:
        """Why a request is not answered; "" if it is."""
        host = request.headers.get("host", "")
        if not self.is_own(host):
            return f"this server is not {host!r:.80}; open it by the address that it printed"
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            if origin is not None and origin != f"{request.url.scheme}://{host}":
                return f"{origin!r:.80} is another page; only the demo's own may ask for this"
        return ""

    def is_own(self, host: str) -> bool:
        """True if the header Host names this server; elsewhere than at home any number does, of
        which a stranger's page has none."""
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        name = name.removeprefix("[").removesuffix("]").lower()
        if name in self.names:
            return True
        with contextlib.suppress(ValueError):
            return self.anywhere and bool(ipaddress.ip_address(name))
        return False


class Demo:
    """The demo: its weights, programs and jobs.

    Args:
      offered: the weights by name.
    """

    def __init__(self, offered: Mapping[str, Weights]) -> None:
        self.offered = offered
        self.programs = Programs()
        self.queue: Queue[orders.Order] = Queue(self.work)
        self.compilation = Compilation()
        self.streams = 0

    def work(self, order: orders.Order, tell: Tell) -> jobs.Result:
        """Does the work of an order."""
        return jobs.work(order, self.programs, tell)

    def samples(self, number: str) -> np.ndarray | None:
        """What a finished job drew."""
        job = self.queue.get(number)
        return None if job is None or job.result is None else job.result.samples

    # What the page asks for.

    async def page(self, request: Request) -> Response:
        """The page itself."""
        template = jinja2.Environment(autoescape=True).from_string(
            (FOLDER / "page.html.jinja").read_text()
        )
        return Response(template.render(tasks=choices.TASKS), media_type="text/html")

    async def state(self, request: Request) -> Response:
        """The weights, their tasks, and what can be set."""
        return JSONResponse(await run_in_threadpool(self._state))

    def _state(self) -> dict[str, Any]:
        samplers = {name: sentence(entry) for name, entry in SAMPLERS.items()}
        weights = [described(each) for each in self.offered.values()]
        return {"weights": weights, "samplers": samplers, "upload": orders.MOST_UPLOADED}

    async def examples(self, request: Request) -> Response:
        """The first test images of the weights that the query names."""
        weights = self.offered.get(request.query_params.get("weights", ""))
        if weights is None or not weights.parts.levels:
            return refused("there are no such weights of images", 404)
        try:
            images = await run_in_threadpool(lambda: weights.test_examples)
        except (ValueError, OSError) as error:
            return refused(f"there are no test images here: {one_line(error)}", 404)
        return JSONResponse(jobs.pictures(images, weights.parts.levels))

    async def picture(self, request: Request) -> Response:
        """A picture of the user's as the weights see it."""

        def read(content: Any) -> dict[str, Any]:
            weights = orders.weights_of(content, self.offered)
            return jobs.pictures(
                orders.uploaded(content.get("data"), weights)[None], weights.parts.levels
            )

        return await answered(request, read)

    async def order(self, request: Request) -> Response:
        """Takes an order, which then waits or is done."""

        def add(content: Any) -> dict[str, Any]:
            job = self.queue.add(orders.read(content, self.offered, self.samples))
            return {"job": job.number, "position": self.queue.position(job)}

        return await answered(request, add)

    async def events(self, request: Request) -> Response:
        """The course of a job, as server-sent events: waiting, running, parts of it, then its end.

        Where the demo ends before, the last event says so.

        A browser whose connection broke asks again, and says which part it had last.
        """
        job = self.queue.get(request.path_params["number"])
        if job is None:
            return refused("there is no such job any more", 404)
        if self.streams >= MOST_STREAMS:
            return refused("too many jobs are watched at once", 503)
        last = request.headers.get("last-event-id", "")
        begin = int(last) if last.isascii() and last.isdigit() and len(last) < 9 else 0
        return StreamingResponse(self.course(job, begin), media_type="text/event-stream")

    async def course(self, job: Job[orders.Order], begin: int) -> AsyncIterator[str]:
        """The events of a job, from the part `begin` on."""
        before, sent, part = "", time.monotonic(), begin
        self.streams += 1
        try:
            while True:
                state = job.state
                while part < len(job.parts):
                    part += 1
                    yield f"event: part\nid: {part}\ndata: {json.dumps(job.parts[part - 1])}\n\n"
                words = self.words(job, state)
                text = f"event: {state}\ndata: {json.dumps(words)}\n\n"
                if state in OVER:
                    yield text
                    return
                if stop.requested():
                    yield "event: ended\ndata: {}\n\n"
                    return
                if text != before:
                    before, sent = text, time.monotonic()
                    yield text
                elif time.monotonic() - sent > HEARTBEAT:
                    sent = time.monotonic()
                    yield ": still there\n\n"
                await asyncio.sleep(PAUSE)
        finally:
            self.streams -= 1

    def words(self, job: Job[orders.Order], state: str) -> dict[str, Any]:
        """What is to be said of a job in a state."""
        words: dict[str, Any] = {"job": job.number}
        if state == RUNNING:
            since = self.compilation.since
            words["seconds"] = int(time.monotonic() - job.began)
            words["compiling"] = since is not None
        elif state not in OVER:
            words["position"] = self.queue.position(job)
        elif job.result is not None:
            words |= job.result.words
        else:
            words["line"] = job.line
        return words

    async def cancel(self, request: Request) -> Response:
        """Takes a waiting job out of the queue, or has a running one stop where it can."""
        done = self.queue.cancel(request.path_params["number"])
        return JSONResponse({"cancelled": done})

    async def mask(self, request: Request) -> Response:
        """The mask of an in-painting, as the file that the command reads."""
        job = self.queue.get(request.path_params["number"])
        if job is None or job.work.mask is None:
            return refused("there is no such mask any more", 404)
        headers = {"content-disposition": f'attachment; filename="{orders.MASK}"'}
        return Response(jobs.mask_file(job.work.mask), 200, headers, "image/png")


def described(weights: Weights) -> dict[str, Any]:
    """What the page has to know of weights."""
    parts, config = weights.parts, weights.config
    tasks = {}
    for name, task in choices.TASKS.items():
        refusal = task.refusal(weights)
        fields = [] if refusal else [shown(field) for field in task.fields(weights)]
        tasks[name] = {"refusal": refusal, "fields": fields}
    count = 0 if tasks["class"]["refusal"] else choices.num_classes(weights)
    classes = [str(y) for y in range(count)]
    with contextlib.suppress(ValueError, KeyError):
        names = class_names(parts.dataset_name)
        classes = list(names) if len(names) == count else classes
    return {
        "name": weights.name,
        "shape": parts.image_shape,
        "levels": parts.levels,
        "sde": sentence(type(parts.sde)),
        "sde_name": type(parts.sde).__name__,
        "network": config.model.name,
        "dataset": parts.dataset_name,
        "continuous": parts.continuous,
        "classes": classes,
        "tasks": tasks,
    }


def shown(field: Field) -> dict[str, Any]:
    """A field as the page gets it."""
    return {
        "name": field.name,
        "label": field.label,
        "default": field.default,
        "low": field.low,
        "high": field.high,
        "names": field.names,
        "when": field.when,
        "whole": field.whole,
        "words": field.words,
    }


def refused(line: str, status: int) -> Response:
    """A refusal in one line."""
    return JSONResponse({"line": line}, status)


async def answered(request: Request, read: Callable[[Any], dict[str, Any]]) -> Response:
    """The answer to a request whose body is JSON, or why there is none."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return refused("what is sent must be application/json", 415)
    body = await bounded_body(request)
    if body is None:
        return refused(f"what is sent has up to {MOST_BYTES >> 20} MiB", 413)
    try:
        return JSONResponse(await run_in_threadpool(lambda: read(json.loads(body))))
    except Full as error:
        return refused(str(error), 503)
    except (ValueError, KeyError, OSError, RecursionError, OverflowError) as error:
        return refused(one_line(error, limit=400), 400)


async def bounded_body(request: Request) -> bytes | None:
    """The body of a request; None where it is longer than `MOST_BYTES`."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def application(demo: Demo, host: str) -> Starlette:
    """The application, bound to a host."""

    def file(name: str, kind: str) -> Callable[[Request], Response]:
        return lambda request: Response((FOLDER / name).read_bytes(), media_type=kind)

    async def failure(request: Request, error: Exception) -> Response:
        logging.error("a fault of the demo", exc_info=error)
        return refused(f"this is a fault of the demo: {type(error).__name__}", 500)

    files = [Route(f"/{name}", file(name, kind)) for name, kind in FILES.items()]
    return Starlette(
        routes=[
            Route("/", demo.page),
            *files,
            Route("/state", demo.state),
            Route("/examples", demo.examples),
            Route("/picture", demo.picture, methods=["POST"]),
            Route("/jobs", demo.order, methods=["POST"]),
            Route("/jobs/{number}/events", demo.events),
            Route("/jobs/{number}/mask.png", demo.mask),
            Route("/jobs/{number}", demo.cancel, methods=["DELETE"]),
        ],
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={500: failure},
    )
