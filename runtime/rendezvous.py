"""Processes of one program meet before JAX joins them.

What JAX has for this ends in a C++ stack, after minutes. So process 0 listens on the coordinator's
own port until all have come, and gives it up to JAX then; no other port has to be open. Each one
says who it is and how it was started; whoever is missing, comes twice or was started otherwise is
named in one line on every host. The connections stay, for `watch`. No JAX in here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from configs import stored

GREETING = "score_sde meets"
RETRY = 0.3  # seconds between attempts to reach process 0
LINGER = 10.0  # seconds in which latecomers are told why it does not begin
SILENCE = 40  # seconds without any answer of a host's kernel, after which it is given up
RTO_MAX_MS = 44  # Linux's option for how long it waits at most before it sends anew
GRACE = 5.0  # seconds that a process has to end by itself after another one failed
LONGEST = 1 << 20  # bytes of a message


@dataclasses.dataclass(frozen=True)
class Member:
    """This process as one of those that work together.

    Attributes:
      address: host and port of process 0, "host:port", where JAX's coordinator will be.
      count: of all processes.
      index: of this one.
      hosts: the machine of each process, if known.
    """

    address: str
    count: int
    index: int
    hosts: tuple[str, ...] = ()

    def place(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    def name(self, index: int, address: str = "") -> str:
        """A process in words: `process 1 of 3 (10.0.0.2)`."""
        known = self.hosts[index] if index < len(self.hosts) else ""
        address = address or known or (self.place()[0] if index == 0 else "")
        return f"process {index} of {self.count}" + (f" ({address})" if address else "")


class Link:
    """A connection to another process: messages, each one line of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.address = str(connection.getpeername()[0]).removeprefix("::ffff:")
        self.rest = b""
        self.early: list[dict[str, Any]] = []  # that came before somebody asked for them
        self.sending = threading.Lock()
        connection.settimeout(GRACE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        seconds = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": SILENCE // 5}
        for option, value in {**seconds, "TCP_USER_TIMEOUT": 1000 * SILENCE}.items():
            if hasattr(socket, option):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with contextlib.suppress(OSError):  # before Linux 6.15
            connection.setsockopt(socket.IPPROTO_TCP, RTO_MAX_MS, 5000)

    def send(self, **message: Any) -> None:
        """Sends a message; one to a process that is gone is lost."""
        try:
            with self.sending:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # whoever listens to this link learns of it

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come, after waiting for some bytes.

        Raises:
          OSError: the connection has ended, or ends here, because what came is no message.
        """
        if self.early:
            messages, self.early = self.early, []
            return messages
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("it ended the connection")
        *lines, self.rest = (self.rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
            if len(self.rest) > LONGEST or not all(isinstance(m, dict) for m in messages):
                raise ValueError
        except ValueError:
            raise ConnectionError("what answers there is another program") from None
        return messages

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()


def meet(member: Member, facts: Mapping[str, Any], seconds: float) -> dict[int, Link]:
    """Waits until all processes are there; the links to them by their index.

    Process 0 has one to each, the others to process 0 alone.

    Args:
      facts: what all have to have in common, by name; JSON.
      seconds: that process 0 waits for the others, and they for it.

    Raises:
      ConnectionError: not all came, or two with one index, or with other facts; all raise this.
    """
    facts = json.loads(json.dumps(facts, default=str))
    if member.index == 0:
        return _Host(member, facts, seconds).gather() if member.count > 1 else {}
    return {0: _arrive(member, facts, seconds)}


class _Host:
    """Process 0 while it waits for the others."""

    def __init__(self, member: Member, facts: Mapping[str, Any], seconds: float) -> None:
        self.member, self.facts, self.seconds = member, facts, seconds
        self.deadline = time.monotonic() + seconds
        self.guests: dict[Link, dict[str, Any]] = {}  # and what they said of themselves
        self.fault = ""

    def gather(self) -> dict[int, Link]:
        """The links to all others, by index."""
        with _listener(self.member, self.deadline) as listener, selectors.DefaultSelector() as door:
            door.register(listener, selectors.EVENT_READ)
            while len(self._arrived()) < self.member.count - 1:
                rest = self.deadline - time.monotonic()
                if rest <= 0:
                    self.fault = self.fault or self._missing()
                    break
                for key, _ in door.select(rest):
                    if key.data is None:
                        link = Link(listener.accept()[0])
                        door.register(link.socket, selectors.EVENT_READ, link)
                    else:
                        self._hear(key.data, door)
        strangers = [key.data for key in (door.get_map() or {}).values() if key.data]
        for link in strangers:
            if link not in self.guests:
                link.close()
        for link in self.guests:
            link.send(refused=self.fault) if self.fault else link.send(go=True)
        if self.fault:
            raise ConnectionError(self.fault)
        return {said["index"]: link for link, said in self.guests.items()}

    def _arrived(self) -> list[dict[str, Any]]:
        return list(self.guests.values())

    def _hear(self, link: Link, door: selectors.BaseSelector) -> None:
        """Takes in who has come; whoever leaves again, or is a stranger, is forgotten."""
        try:
            for message in link.receive():
                words = {"index": int, "count": int, "facts": dict}
                if message.get("greeting") != GREETING or not all(
                    isinstance(message.get(name), kind) for name, kind in words.items()
                ):
                    raise ConnectionError
                self.guests[link] = message
                fault = self._fault(link, message)
                if fault and not self.fault:
                    self.fault = fault
                    self.deadline = min(self.deadline, time.monotonic() + LINGER)
                link.send(wait=max(self.deadline - time.monotonic(), 0.0))
        except OSError:
            door.unregister(link.socket)
            self.guests.pop(link, None)
            link.close()

    def _fault(self, link: Link, said: Mapping[str, Any]) -> str:
        """Why this process cannot take part, in words, or nothing."""
        index, count = said["index"], said["count"]
        who = self.member.name(index, link.address)
        if count != self.member.count:
            return (
                f"process {index} ({link.address}) counts {count} processes, and process 0 "
                f"({self.member.place()[0]}) counts {self.member.count}"
            )
        twins = [other for other, words in self.guests.items() if words["index"] == index]
        if len(twins) > 1 or index == 0:
            addresses = [link.address for link in twins] + [self.member.place()[0]] * (index == 0)
            return f"two processes call themselves {index} of {count}: {' and '.join(addresses)}"

        def words(name: str, ours: Any, theirs: Any) -> str:
            return f"{name}={stored.short(theirs)} there and {stored.short(ours)} on process 0"

        differences = stored.config_differences(self.facts, said["facts"], wording=words)
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        return f"{who} differs: {', '.join(differences[:3])}{more}" if differences else ""

    def _missing(self) -> str:
        """Who has not come, and who has, in words."""
        here = {said["index"]: link.address for link, said in self.guests.items()}
        absent = [i for i in range(1, self.member.count) if i not in here]
        hosts = self.member.hosts
        names = [f"{i} ({hosts[i]})" if i < len(hosts) else str(i) for i in absent]
        present = [f"{i} ({where})" for i, where in sorted(here.items())]
        many = len(absent) > 1
        return (
            f"process{'es' * many} {_listed(names)} of {self.member.count} "
            f"{'are' if many else 'is'} missing after {self.seconds:g} s; there: "
            f"{_listed([f'0 ({self.member.place()[0]})', *present])}{self._elsewhere()}"
        )

    def _elsewhere(self) -> str:
        """In words, that the others look for process 0 on another machine; or nothing."""
        host = self.member.place()[0]
        try:
            place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(place[0], place[1]) as probe:
                probe.bind(place[4])
        except OSError:
            return f"; but {host} is no address of this machine, which says it is process 0"
        return ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _listener(member: Member, deadline: float) -> socket.socket:
    """The coordinator's port, on all addresses of this machine or where JAX is told to bind it.

    An earlier run of this program may need some seconds to give it up.
    """
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    host = bind.rpartition(":")[0].strip("[]") if bind else "::"
    port = int(bind.rpartition(":")[2]) if bind else member.place()[1]
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    deadline = min(deadline, time.monotonic() + LINGER)
    while True:
        try:
            six = ":" in host
            family = socket.AF_INET6 if six else socket.AF_INET
            return socket.create_server(
                (host, port), family=family, backlog=1024, dualstack_ipv6=host == "::"
            )
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(
                    f"process 0 cannot listen on port {port} of this machine, where the others "
                    f"look for it ({os.strerror(error.errno or 0)}): another program has it, or "
                    "another process 0; choose another port"
                ) from error
            time.sleep(RETRY)


def _arrive(member: Member, facts: Mapping[str, Any], seconds: float) -> Link:
    """The link to process 0, once it says that all are there."""
    deadline, reason = time.monotonic() + seconds, "no time"
    host, port = member.place()
    while (rest := deadline - time.monotonic()) > 0:
        try:
            link = Link(socket.create_connection((host, port), min(rest, GRACE)))
            try:
                return _admitted(link, member, facts, rest)
            except BaseException:
                link.close()
                raise
        except _Refused as refusal:
            raise ConnectionError(str(refusal)) from None
        except socket.gaierror:
            reason = "this name is not known"
        except TimeoutError:
            reason = "no answer"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(RETRY, max(deadline - time.monotonic(), 0)))
    raise ConnectionError(
        f"{member.name(member.index)} finds no process 0 at {member.address} after {seconds:g} s "
        f"({reason[:1].lower()}{reason[1:]})"
    )


class _Refused(Exception):
    """Process 0 says why it does not begin."""


def _admitted(link: Link, member: Member, facts: Mapping[str, Any], seconds: float) -> Link:
    """The link, when process 0 has said that all are there."""
    link.send(greeting=GREETING, index=member.index, count=member.count, facts=facts)
    deadline = time.monotonic() + min(seconds, GRACE)
    while (rest := deadline - time.monotonic()) > 0:
        link.socket.settimeout(rest)
        messages = link.receive()
        for number, message in enumerate(messages, start=1):
            if "refused" in message:
                raise _Refused(message["refused"])
            if "go" in message:
                link.socket.settimeout(GRACE)
                link.early = messages[number:]
                return link
            if "wait" not in message:
                raise ConnectionError("what answers there is another program")
            deadline = time.monotonic() + message["wait"] + GRACE
    raise TimeoutError
