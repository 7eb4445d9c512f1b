"""A network of hosts on this machine, for tests: each a network namespace with its own address.

    unshare --user --map-root-user --net --mount --pid --mount-proc --fork --kill-child \\
        python -m tests.network 3

Host i has the name host<i> and the address 10.9.0.<i + 1>, behind a bridge. Requests come as lines
of JSON, one answer each: {"start": command, "host": i, "environment": {}, "output": file} gives the
number of the process, {"wait": number} its exit code, {"signal": n, "to": number} sends it one,
{"cut": i} and {"mend": i} pull and plug host i's cable, {"narrow": i} lets it have 2 Mbit/s until
{"widen": i}, {"mount": folder, "kilobytes": n} puts a small disk there, which hosts see, {"bytes":
i} gives those that host i has sent, without headers. All of it is gone when this process ends.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADERS = 14 + 20 + 32  # bytes of Ethernet's, IP's and TCP's
UNSHARE = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--mount-proc"),
    *("--fork", "--kill-child"),
)


def possible() -> bool:
    """True if this machine lets a user make such a network."""
    if not all(map(shutil.which, ("unshare", "ip"))):
        return False
    words = "mount -t tmpfs tmpfs /run && ip netns add x && ip link add y type bridge"
    return not subprocess.run([*UNSHARE, "sh", "-c", words], capture_output=True).returncode


class Network:
    """Such a network, used by a test as a context."""

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts

    def __enter__(self) -> Network:
        self.process = subprocess.Popen(
            [*UNSHARE, sys.executable, "-m", "tests.network", str(self.hosts)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, **request: Any) -> Any:
        """The answer to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def build(hosts: int) -> None:
    run("mount", "-t", "tmpfs", "tmpfs", "/run")  # where `ip netns` keeps its names
    pathlib.Path("/run/hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"10.9.0.{i + 1} host{i}\n" for i in range(hosts))
    )
    run("mount", "--bind", "/run/hosts", "/etc/hosts")
    run("ip", "link", "add", "bridge", "type", "bridge")
    run("ip", "link", "set", "bridge", "up")
    for i in range(hosts):
        run("ip", "netns", "add", f"host{i}")
        run("ip", "link", "add", f"port{i}", "type", "veth", "peer", "name", f"net{i}")
        run("ip", "link", "set", f"port{i}", "master", "bridge", "up")
        run("ip", "link", "set", f"net{i}", "netns", f"host{i}")
        there = ("ip", "-n", f"host{i}")
        run(*there, "link", "set", "lo", "up")
        run(*there, "addr", "add", f"10.9.0.{i + 1}/24", "dev", f"net{i}")
        run(*there, "link", "set", f"net{i}", "up")


def inside(host: int, command: list[str]) -> list[str]:
    """The command as one that runs on a host, under its name."""
    named = f'echo host{host} > /proc/sys/kernel/hostname; exec "$@"'
    there = ("ip", "netns", "exec", f"host{host}", "unshare", "--uts")
    return [*there, "sh", "-c", named, "-", *command]


def serve(hosts: int) -> None:
    build(hosts)
    processes: dict[int, subprocess.Popen[bytes]] = {}
    for line in sys.stdin:
        request, answer = json.loads(line), None
        if "start" in request:
            with open(request["output"], "wb") as output:
                process = subprocess.Popen(
                    inside(request["host"], request["start"]),
                    env={**os.environ, **request["environment"]},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                )  # fmt: skip
            answer = process.pid
            processes[answer] = process
        elif "wait" in request:
            answer = processes[request["wait"]].wait()
        elif "signal" in request:
            processes[request["to"]].send_signal(request["signal"])
        elif "mount" in request:
            size = f"size={request['kilobytes']}k"
            run("mount", "-t", "tmpfs", "-o", size, "tmpfs", request["mount"])
        elif "narrow" in request:
            limit = ("tbf", "rate", "2mbit", "burst", "32kbit", "latency", "400ms")
            run("tc", "qdisc", "add", "dev", f"port{request['narrow']}", "root", *limit)
        elif "bytes" in request:
            rows = pathlib.Path("/proc/net/dev").read_text().splitlines()
            (row,) = [row for row in rows if row.strip().startswith(f"port{request['bytes']}:")]
            received, packets = map(int, row.split()[1:3])  # that the bridge receives
            answer = received - HEADERS * packets
        elif "widen" in request:
            run("tc", "qdisc", "del", "dev", f"port{request['widen']}", "root")
        else:
            ((verb, host),) = request.items()
            run("ip", "link", "set", f"port{host}", "down" if verb == "cut" else "up")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
