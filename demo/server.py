"""`--mode=demo`: starts the server, says where it is, and ends at the first signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import jax
import ml_collections

from configs import extras
from demo import weights
from runtime import stop
from runtime.errors import Refused

if TYPE_CHECKING:
    import uvicorn

PACKAGES = ("starlette", "uvicorn")
PATIENCE = 1.0  # seconds for the job that runs when the demo is to end
LONGEST = 3.0  # seconds from the signal to the end, whatever is asked or done
ENDED = "the demo ends; it keeps nothing"


def serve(
    config: ml_collections.ConfigDict | None,
    source: str | None,
    workdir: pathlib.Path | None,
    host: str | None,
    port: int | None,
) -> None:
    """Serves a page that draws in the browser, until a signal, by the project's weights and, in
    front of them, those that `source` or a run's `workdir` gives.

    Raises:
      ImportError: the server's library is not installed.
      Refused: weights or an address that mean nothing.
      OSError: the port is in use.
    """
    require_packages()
    if jax.process_count() > 1:
        raise Refused("--mode=demo serves one browser's user, and is one process: start it alone")
    offered = weights.offered(config, source, workdir, sys.argv[1:])
    with listening_socket(host or "127.0.0.1", 8000 if port is None else port) as listener:
        run(offered, listener, host or "127.0.0.1")


def require_packages() -> None:
    """Raises ImportError with the cure where the extra is not installed."""
    extras.require("--mode=demo", "demo", **{name: name for name in PACKAGES})


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
      Refused: no such port or host.
      OSError: it is in use, or not to be had.
    """
    if not 0 <= port < 2**16:
        raise Refused(f"--port={port} is no port; valid: 0 (a free one) to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        raise Refused(f"--host={host}: this is no address of this machine") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)  # whoever comes before the server is up waits
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"--port={port} is in use; --port=0 takes a free one") from error
        raise OSError(f"--host={host} --port={port}: {error.strerror}") from error
    return listener


def address(listener: socket.socket, host: str) -> str:
    """The address of the page."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/"


def run(offered: dict[str, weights.Weights], listener: socket.socket, host: str) -> NoReturn:
    """Serves until the program is asked to stop, says so, and ends the process.

    There is nothing to keep, and nothing ends a program that computes but its process.
    """
    from demo import app

    demo = app.Demo(offered)
    server = make_server(app.application(demo, host))
    print(f"the demo is at {address(listener, host)}; Ctrl-C ends it", flush=True)
    if host not in app.LOOPBACK:
        print("whoever reaches this address can draw with it: there is no password", flush=True)
    with stop.listening():
        asyncio.run(until_stopped(server, listener))
    demo.queue.close(PATIENCE)
    end()


def end() -> NoReturn:
    """Ends the process as the signal wants, without the end of Python, which waits for XLA."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(stop.Stopped(ENDED).code or 0))


def make_server(application: object) -> uvicorn.Server:
    """A server that leaves signals to the program."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    settings = uvicorn.Config(
        application,  # type: ignore[arg-type]
        http="h11",
        ws="none",
        lifespan="off",
        log_level="critical",  # of what strangers send, and of streams that end, nothing is said
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=128,
        timeout_graceful_shutdown=1,
    )
    return Server(settings)


async def until_stopped(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serves until a signal was received, of which one line tells at once."""

    async def watch() -> None:
        while not stop.requested():
            await asyncio.sleep(0.1)
        print(ENDED, file=sys.stderr, flush=True)
        latest = threading.Timer(LONGEST, end)
        latest.daemon = True
        latest.start()
        server.should_exit = True

    watching = asyncio.create_task(watch())
    await server.serve([listener])
    watching.cancel()
