"""JAX's connection to its coordinator, led through this process, so that its end can be said.

When the coordinator's process is gone, a thread of JAX ends this one at once, with pages of its own
and a C++ stack; nothing can be registered against it. Through a relay it sees a coordinator that is
silent, and `rendezvous.Watch`, which sees the truth, ends the process with its line. JAX's own
heartbeat stays: it gives up a silent coordinator after 100 s. Little goes this way (who is there,
barriers, keys); arrays have connections of their own.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

PATIENCE = 30.0  # seconds that the coordinator has to begin
RETRY = 0.05
_OPEN: list[socket.socket] = []  # what JAX still uses, though it leads nowhere any more


def to(place: tuple[str, int]) -> str:
    """The address on this machine, "host:port", that leads to `place` as long as the process lives.

    Raises:
      OSError: this machine lets nothing listen.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(listener, place), daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _serve(listener: socket.socket, place: tuple[str, int]) -> None:
    while True:
        near = listener.accept()[0]
        threading.Thread(target=_lead, args=(near, place), daemon=True).start()


def _lead(near: socket.socket, place: tuple[str, int]) -> None:
    """Leads one connection of this process on to `place`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            far = socket.create_connection(place, PATIENCE)
            break
        except OSError:
            if time.monotonic() >= deadline:
                near.close()
                return
            time.sleep(RETRY)
    for end in (near, far):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_pump, args=(far, near), daemon=True).start()
    if _pump(near, far):
        for end in (near, far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # the other thread waits at it
            end.close()
    else:
        _OPEN.append(near)


def _pump(source: socket.socket, sink: socket.socket) -> bool:
    """Passes on bytes until there are no more; True if `source` has ended. Both stay open."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        return True
    return False
