"""Processes of one program notice when another one is gone, stands still, or has failed.

What JAX has for this ends in a C++ stack, after minutes. The connections that processes met by
tell earlier: the kernel closes them when a process ends, however that happens, and gives them up
when a host or its network is gone. No JAX in here.
"""

from __future__ import annotations

import errno
import os
import selectors
import sys
import threading
import time
from typing import NoReturn

from runtime.rendezvous import GRACE, SILENCE, Link, Member
from runtime.stop import GOES_ON

BEAT = 5.0  # seconds between signs of life
STILLNESS = 90.0  # seconds without one, after which a process is given up
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
PARTING = 2.0  # seconds that process 0 waits for others to end before JAX misses it


class Watch:
    """Ends this process with one line when another one is gone, stands still or failed.

    A process that ends as it should says goodbye before. Process 0 sees all others and passes on
    what it sees. Each one gives signs of life, which one that was stopped does not, though its
    machine's kernel answers for it. What ends the process does not wait for its main thread, which
    may be waiting for the other one inside XLA; files are then as after `kill -9`: whole.
    """

    def __init__(self, member: Member, links: dict[int, Link]) -> None:
        self.member, self.links = member, dict(links)
        self.news = threading.Event()
        self.ending = threading.Lock()  # whoever ends this process has it, and keeps it
        self.line, self.due = "", 0.0
        self.goodbyes: set[int] = set()
        self.heard = dict.fromkeys(links, time.monotonic())  # when, of each
        self.beat = 0.0  # when this process gave its last sign of life
        self.calls = threading.Condition()  # of `await_others`: how often each has called it
        self.called = dict.fromkeys((member.index, *links), 0)
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def goodbye(self, failure: str | None = None) -> None:
        """Tells the others that this process ends, after a failure if there is one.

        A failure ends them too, and process 0 waits for that, since JAX would miss it.
        """
        if failure is not None:
            self.ending.acquire()
        for link in list(self.links.values()):
            link.send(goodbye=True, failure=failure)
        if failure is not None and self.member.index == 0:
            self.thread.join(GRACE + PARTING)

    def await_others(self) -> None:
        """Returns when all processes have called this as often, however long that takes."""
        with self.calls:
            self.called[self.member.index] += 1
            number = self.called[self.member.index]
            if self.member.index == 0:
                self.calls.wait_for(lambda: min(self.called.values()) >= number)
        for link in list(self.links.values()):
            link.send(called=number)
        if self.member.index != 0:
            with self.calls:
                self.calls.wait_for(lambda: self.called[0] >= number)

    def settle(self) -> None:
        """After an error that another process may have caused: lets that be said, if it has ended
        or gives no sign of life; process 0 knows."""
        if self.member.index == 0:
            self._doubt()
        for link in list(self.links.values()):
            link.send(doubt=True)
        if self.news.wait(GRACE):
            self.thread.join(GRACE + 2 * PARTING)

    def _doubt(self) -> None:
        """Gives up who has not given a sign of life for a little while."""
        now = time.monotonic()
        for index, link in list(self.links.items()):
            if now - self.heard[index] > 3 * BEAT and index not in self.goodbyes:
                self._lose(self._still(index, link, now - self.heard[index]), 0.0)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, link in self.links.items():
                selector.register(link.socket, selectors.EVENT_READ, index)
                if link.early:
                    self._hear(index)
            while self.links:
                rest = max(self.due - time.monotonic(), 0) if self.line else BEAT
                for key, _ in selector.select(min(rest, BEAT)):
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                        self.links.pop(key.data).close()
                self._live()
                if self.line and time.monotonic() >= self.due:
                    self._end(selector)

    def _live(self) -> None:
        """Gives a sign of life when it is time, and looks who has given none for long."""
        now = time.monotonic()
        if now - self.beat < BEAT:
            return
        if now - self.beat > 3 * BEAT:  # it was this process that stood still
            self.heard = dict.fromkeys(self.heard, now)
        self.beat = now
        for index, link in list(self.links.items()):
            link.send(alive=True)
            if now - self.heard[index] > STILLNESS and index not in self.goodbyes:
                self._lose(self._still(index, link, STILLNESS), 0.0)

    def _still(self, index: int, link: Link, seconds: float) -> str:
        who = self.member.name(index, link.address)
        return f"{who} gives no sign of life, for {seconds:.0f} s; {GOES_ON}"

    def _hear(self, index: int) -> bool:
        """Takes in what another process says; False if it will say no more."""
        who = self.member.name(index, self.links[index].address)
        try:
            for message in self.links[index].receive():
                self.heard[index] = time.monotonic()
                if message.get("failure"):
                    self._lose(f"{who} ended: {message['failure']}", GRACE)
                if message.get("lost"):
                    self._lose(message["lost"], message["grace"])
                if message.get("called"):
                    with self.calls:
                        self.called[index] = message["called"]
                        self.calls.notify_all()
                if message.get("doubt"):
                    self._doubt()
                if message.get("goodbye"):
                    self.goodbyes.add(index)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                return True  # there was nothing to read after all
            silent = f"does not answer any more, for {SILENCE} s"
            lost = isinstance(error, TimeoutError) or error.errno in UNREACHABLE
            what = silent if lost else "is gone"
            if index not in self.goodbyes:
                self._lose(f"{who} {what}; {GOES_ON}", 0.0)
            return False
        return True

    def _lose(self, line: str, grace: float) -> None:
        """Notes why this process has to end; of several reasons, the first."""
        if self.line:
            return
        self.line, self.due = line, time.monotonic() + grace
        self.news.set()
        if self.member.index == 0:
            for link in self.links.values():
                link.send(lost=line, grace=grace)

    def _end(self, selector: selectors.BaseSelector) -> NoReturn:
        self.ending.acquire()  # for ever, if the main thread ends this process itself
        progress = sys.modules.get("runtime.progress")  # if there is JAX
        bar = progress is not None and progress.Bar.shown > 0
        start = b"\n" if bar or sys.stderr.isatty() else b""
        os.write(2, start + f"error: {self.line}\n".encode())
        deadline = time.monotonic() + PARTING * (self.member.index == 0)
        while self.links and (rest := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(rest):
                if not self._hear(key.data):
                    selector.unregister(key.fileobj)
                    self.links.pop(key.data).close()
        os._exit(1)
