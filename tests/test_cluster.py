"""Processes that work together: they find, await and miss each other, and say so in one line."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from absl import logging

from runtime import cluster, rendezvous, watch
from runtime.checkpoints import Checkpoints
from runtime.errors import Refused
from runtime.rendezvous import Member
from tests import network
from tests.marks import slow
from tests.pod import Pod, pod

ROOT = pathlib.Path(__file__).resolve().parent.parent
BY_HAND = ("host:1234", "2", "1")
SRUN = {
    "SLURM_JOB_ID": "5",
    "SLURM_STEP_NODELIST": "node[01-04]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
}


def by_hand(*values: str) -> dict[str, str]:
    return dict(zip(cluster.VARIABLES, values, strict=True))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets variables; those of clusters that are not named are absent. Returns the warnings."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: lines.append(text % a))

    def choose(**variables: str) -> list[str]:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_")) or name in (
                *cluster.VARIABLES, cluster.SECONDS, "KUBERNETES_SERVICE_HOST",
            ):  # fmt: skip
                monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return lines

    return choose


@pytest.mark.parametrize(
    ("variables", "required", "member"),
    [
        ({}, False, None),
        ({"SLURM_NTASKS": ""}, False, None),
        ({"SLURM_NTASKS": "1", "OMPI_COMM_WORLD_SIZE": " "}, False, None),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False, None),
        (by_hand(*BY_HAND), False, None),
        (by_hand(*BY_HAND), True, Member("host:1234", 2, 1)),
        (by_hand("[::1]:7", "1", "0"), True, Member("[::1]:7", 1, 0)),
        (SRUN, False, Member("node01:61445", 4, 2)),
        (SRUN, True, Member("node01:61445", 4, 2)),
        (SRUN | by_hand(*BY_HAND), True, Member("host:1234", 2, 1)),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "host:9"}, False, Member("host:9", 4, 2)),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, True, None),
        (MPIRUN, False, Member("10.96.0.1:62624", 3, 1)),
        (MPIRUN | {"SLURM_NTASKS": "9"}, False, Member("10.96.0.1:62624", 3, 1)),
    ],
)
def test_a_process_finds_its_cluster(
    environment: Any, variables: dict[str, str], required: bool, member: Member | None
) -> None:
    lines = environment(**variables)
    assert cluster.find(required) == member
    assert not lines


def test_machines_of_a_tpu_slice_are_known_by_name(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value_from_metadata", lambda key: None)
    names = "localhost,t1,t2"
    environment(TPU_WORKER_HOSTNAMES=names, TPU_WORKER_ID="2", TPU_SKIP_MDS_QUERY="1")
    assert cluster.find(False) == Member("localhost:8482", 3, 2, ("localhost", "t1", "t2"))


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"SLURM_NTASKS": "4"}, "SLURM_NTASKS=4 without srun, which starts the tasks"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, "SLURM_NTASKS=4 without srun"),  # salloc's shell
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES names several hosts"),
    ],
)
def test_what_is_left_of_a_scheduler_is_said_in_one_line(
    environment: Any, variables: dict[str, str], line: str
) -> None:
    lines = environment(**variables)
    assert cluster.find(False) is None
    assert len(lines) == 1
    assert line in lines[0]
    assert lines[0].endswith(": this process works alone")
    with pytest.raises(Refused, match=f"--distributed found no cluster .*{line}.*; set JAX_COO"):
        cluster.find(True)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": "four"}, "SLURM_NTASKS='four' in the environment must be a number"),
        ({"OMPI_COMM_WORLD_SIZE": "-3"}, "OMPI_COMM_WORLD_SIZE='-3' in the environment"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "OMPI_COMM_WORLD_SIZE=3: this Open MPI does not tell JAX"),
        (by_hand("host:1", "two", "0"), "JAX_NUM_PROCESSES='two' in the environment must be a"),
        (by_hand("host:1", "2", "2"), "JAX_PROCESS_ID=2 must be below JAX_NUM_PROCESSES=2"),
        (by_hand("host", "2", "0"), "JAX_COORDINATOR_ADDRESS='host' in the environment must be h"),
        ({"JAX_NUM_PROCESSES": "2"}, "--distributed found no cluster; set JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    environment: Any, variables: dict[str, str], message: str
) -> None:
    environment(**variables)
    with pytest.raises(Refused, match=message):
        cluster.find(True)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "1e3"])
def test_a_waiting_time_that_is_none_is_refused(environment: Any, text: str) -> None:
    environment(SCORE_SDE_JOIN_SECONDS=text)
    with pytest.raises(Refused, match=f"SCORE_SDE_JOIN_SECONDS='{text}' in the environment must"):
        cluster.waiting_time()


def test_a_cluster_that_cannot_be_read_is_one_line(environment: Any) -> None:
    environment(**SRUN | {"SLURM_JOB_ID": "five"})
    with pytest.raises(OSError, match=r"the cluster \(slurm\) cannot be read: invalid literal"):
        cluster.find(False)


def test_a_version_of_jax_without_its_environments_joins_by_itself(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, calls = environment(**SRUN), []
    monkeypatch.setitem(sys.modules, "jax._src.clusters", None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda: calls.append(1))
    cluster.join(None, {})
    assert calls == [1]
    assert len(lines) == 1
    cluster.join(False, {})
    environment()
    cluster.join(None, {})
    assert calls == [1]


def test_processes_that_met_are_joined(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    environment(**by_hand("host:1", "1", "0"))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **o: calls.append((a, o)))
    cluster.join(True, {})
    [(member, options)] = calls
    assert member == ("host:1", 1, 0)
    assert options["cluster_detection_method"] == "deactivate"
    assert 30 < options["initialization_timeout"] <= 60
    assert options["heartbeat_timeout_seconds"] > watch.STILLNESS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def meeting(*members: Member, seconds: float = 10.0, facts: Any = None) -> dict[int, Any]:
    """What each of the members, in a thread of its own, gets of a meeting: links, or an error.

    `facts` are those of the last one, where they are not all the same."""
    results: dict[int, Any] = {}

    def one(number: int, member: Member) -> None:
        same = facts if facts is not None and number == len(members) - 1 else {"seed": 0, "n": [1]}
        try:
            results[number] = rendezvous.meet(member, same, seconds)
        except ConnectionError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def members(count: int, *indices: int) -> list[Member]:
    address = f"127.0.0.1:{free_port()}"
    return [Member(address, count, index) for index in indices]


def test_all_processes_meet_on_the_coordinators_port() -> None:
    group = members(3, 2, 1, 0)
    links = meeting(*group)
    assert sorted(links[2]) == [1, 2]
    assert sorted(links[0]) == sorted(links[1]) == [0]
    with socket.create_server(("0.0.0.0", group[0].place()[1])):  # free for JAX's own service
        pass
    for each in links.values():
        for link in each.values():
            link.close()


def test_whoever_is_missing_is_named_on_every_host() -> None:
    results = meeting(*members(4, 0, 2), seconds=0.5)
    line = "processes 1, 3 of 4 are missing after 0.5 s; there: 0 (127.0.0.1), 2 (127.0.0.1)"
    assert results == {0: line, 1: line}
    hosts = ("a", "b", "c")
    alone = Member(f"127.0.0.1:{free_port()}", 3, 0, hosts)
    line = "processes 1 (b), 2 (c) of 3 are missing after 0.2 s; there: 0 (127.0.0.1)"
    assert meeting(alone, seconds=0.2) == {0: line}
    away = Member(f"192.0.2.1:{free_port()}", 2, 0)
    assert meeting(away, seconds=0.2)[0] == (
        "process 1 of 2 is missing after 0.2 s; there: 0 (192.0.2.1); but 192.0.2.1 is no address "
        "of this machine, which says it is process 0"
    )


def test_a_coordinator_that_is_not_there_is_named() -> None:
    (member,) = members(2, 1)
    line = meeting(member, seconds=0.4)[0]
    assert line == (
        f"process 1 of 2 finds no process 0 at {member.address} after 0.4 s (connection refused)"
    )
    line = meeting(Member("nobody.invalid:7", 2, 1), seconds=0.3)[0]
    assert line.endswith("(this name is not known)")


def test_another_program_on_the_port_is_told_from_process_0() -> None:
    first, second = members(2, 0, 1)
    with socket.create_server(first.place()) as stale:
        line = rendezvous_fault(first, 0.2)
        assert line.startswith(f"process 0 cannot listen on port {first.place()[1]} of this machin")

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stale.accept()[0].sendall(b"\0\0\x12\4\0\0\0\n\0")

        threading.Thread(target=answer, daemon=True).start()
        line = rendezvous_fault(second, 0.4)
        assert line.endswith("(what answers there is another program)")


def rendezvous_fault(member: Member, seconds: float) -> str:
    with pytest.raises(ConnectionError) as caught:
        rendezvous.meet(member, {}, seconds)
    return str(caught.value)


def test_strangers_at_the_door_are_left_alone() -> None:
    first, second = members(2, 0, 1)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(rendezvous.meet(first, {}, 10.0)))
    thread.start()
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"greeting": "score_sde meets"}\n', b"[1]\n", b""):
        with connected(first) as stranger:
            stranger.sendall(words)
    rendezvous.meet(second, {}, 10.0)
    thread.join(10)
    assert list(results[0]) == [1]


def test_what_process_0_says_just_after_the_beginning_is_heard() -> None:
    first, second = members(2, 0, 1)
    results: list[Any] = []

    def begin() -> None:
        with rendezvous._listener(first, time.monotonic() + 10) as listener:
            link = rendezvous.Link(listener.accept()[0])
            link.receive()
            link.socket.sendall(b'{"go": true}\n{"goodbye": true, "failure": "it is full"}\n')
            results.append(link)

    thread = threading.Thread(target=begin)
    thread.start()
    (link,) = rendezvous.meet(second, {}, 10.0).values()
    thread.join(10)
    assert link.receive() == [{"goodbye": True, "failure": "it is full"}]
    link.close()
    results[0].close()


@contextlib.contextmanager
def connected(member: Member) -> Iterator[socket.socket]:
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError):
            with socket.create_connection(member.place()) as connection:
                yield connection
            return
        time.sleep(0.02)
    raise AssertionError


@pytest.mark.parametrize(
    ("group", "facts", "line"),
    [
        ((3, 0, 1, 1), None, "two processes call themselves 1 of 3: 127.0.0.1 and 127.0.0.1"),
        ((2, 0, 1), {"seed": 1, "n": [1]}, "process 1 of 2 (127.0.0.1) differs: seed=1 there and "),
        ((2, 0, 1), {"seed": 0}, "differs: n=nothing there and [1] on process 0"),
    ],
)
def test_processes_that_do_not_fit_are_told_so_on_every_host(
    group: tuple[int, ...], facts: Any, line: str
) -> None:
    results = meeting(*members(*group), facts=facts)
    assert len(set(results.values())) == 1
    assert line in results[0]


def test_processes_that_count_differently_are_told_so() -> None:
    first, second = members(3, 0, 1)
    results = meeting(first, Member(second.address, 2, 1), seconds=0.5)
    line = "process 1 (127.0.0.1) counts 2 processes, and process 0 (127.0.0.1) counts 3"
    assert results == {0: line, 1: line}


def test_hosts_compare_what_they_compute_with() -> None:
    names = cluster.versions()
    assert names["jax"] == jax.__version__
    assert len(names["the program's files"]) == 8


# A process of a cluster, without JAX; it ends by itself after what its last argument says.
PROCESS = """
    import sys, time
    from runtime import cluster, endings, rendezvous, watch
    index, address = int(sys.argv[1]), sys.argv[2]
    member = rendezvous.Member(address, 3, index)
    if sys.argv[3] == "short":
        watch.BEAT, watch.STILLNESS = 0.1, 3.0
    with endings.in_one_line():
        print("waits", flush=True)
        links = rendezvous.meet(member, {}, 20.0)
        cluster._Joined.watch = watch.Watch(member, links)
        print("met", flush=True)
        if sys.argv[3] == "end":
            sys.exit(0)
        if sys.argv[3] == "fail":
            raise ValueError("a file is missing")
        for number in range(3) if sys.argv[3] == "meet" else ():
            time.sleep(0.4 if number == index else 0.0)
            print("calls", number, time.monotonic(), flush=True)
            cluster.await_others()
            print("goes on", number, time.monotonic(), flush=True)
        if sys.argv[3] == "meet":
            sys.exit(0)
        time.sleep(200)
"""


def three(*wishes: str) -> list[subprocess.Popen[str]]:
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), str(index), address, wish],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index, wish in enumerate(wishes)
    ]  # fmt: skip


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and what was said, of all."""
    texts = [process.communicate(timeout=60) for process in processes]
    return [(p.returncode, error) for p, (_, error) in zip(processes, texts, strict=True)]


@pytest.mark.parametrize("victim", [1, *slow(0)])
def test_the_others_end_with_a_line_when_one_is_killed(victim: int) -> None:
    processes = three("wait", "wait", "wait")
    for process in processes:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["waits\n", "met\n"]
    begin = time.monotonic()
    os.kill(processes[victim].pid, signal.SIGKILL)
    line = f"error: process {victim} of 3 (127.0.0.1) is gone; the same command goes on from what "
    for index, (code, text) in enumerate(ends(processes)):
        assert (code, text.startswith(line)) == ((-9, False) if index == victim else (1, True))
        assert text.count("\n") == (index != victim)
    assert time.monotonic() - begin < 10


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_one_that_stands_still_ends_all_with_a_line(victim: int) -> None:
    processes = three("short", "short", "short")
    for process in processes:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["waits\n", "met\n"]
    time.sleep(4)
    assert [process.poll() for process in processes] == [None] * 3
    os.kill(processes[victim].pid, signal.SIGSTOP)
    others = [process for index, process in enumerate(processes) if index != victim]
    name = f"error: process {victim} of 3 (127.0.0.1)"
    line = f"{name} gives no sign of life, for 3 s; the same command goes on from what is on disk\n"
    assert ends(others) == [(1, line)] * 2
    os.kill(processes[victim].pid, signal.SIGCONT)
    ((code, text),) = ends([processes[victim]])
    assert code == 1
    assert text.count("\n") == 1
    assert text.startswith("error: process ")


@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_a_signal_ends_the_wait_for_others_with_a_line(number: int) -> None:
    (process,) = three("wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    time.sleep(0.2)
    process.send_signal(number)
    line = "stopped; the same command goes on from what is on disk, if anything is\n"
    assert ends([process]) == [(128 + number, line)]


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 2])
def test_a_failure_on_one_host_is_said_on_all(who: int) -> None:
    wishes = ["fail" if index == who else "wait" for index in range(3)]
    for index, (code, text) in enumerate(ends(three(*wishes))):
        other = "" if index == who else f"process {who} of 3 (127.0.0.1) ended: error: "
        assert (code, text) == (1, f"error: {other}a file is missing\n")


@pytest.mark.slow
def test_processes_wait_for_each_other() -> None:
    processes = three("meet", "meet", "meet")
    texts = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    for number in range(3):
        times = {
            word: [
                float(line.split()[-1])
                for text in texts
                for line in text.splitlines()
                if line.startswith(f"{word} {number} ")
            ]
            for word in ("calls", "goes on")
        }
        assert len(times["calls"]) == len(times["goes on"]) == 3
        assert max(times["calls"]) < min(times["goes on"])


@pytest.mark.slow
def test_processes_that_end_as_they_should_say_nothing() -> None:
    assert ends(three("end", "end", "end")) == [(0, "")] * 3


@pytest.fixture
def hosts(tmp_path: pathlib.Path) -> Iterator[Pod]:
    with network.Network(3) as net:
        yield Pod(net, tmp_path)


@pod
@pytest.mark.slow
def test_a_host_that_is_missing_is_named_on_the_others(hosts: Pod) -> None:
    begin = time.monotonic()
    hosts.start("run", hosts=(0, 1))
    line = "error: process 2 of 3 is missing after 60 s; there: 0 (10.9.0.1), 1 (10.9.0.2)"
    assert hosts.ends() == [(1, line)] * 2
    assert time.monotonic() - begin < 180  # start-up included


@pod
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_host_ends_the_others_and_the_restart_continues_to_the_bit(
    hosts: Pod, victim: int
) -> None:
    length = "--config.training.n_iters=100"
    hosts.start("killed", length)
    hosts.await_step("killed")
    begin = time.monotonic()
    hosts.send(victim, signal.SIGKILL)
    name = f"process {victim} of 3 (10.9.0.{victim + 1})"
    line = f"error: {name} is gone; the same command goes on from what is on disk"
    for host, end in enumerate(hosts.ends()):
        assert end == (1, line) if host != victim else end[0] == -9, end
    assert time.monotonic() - begin < 20
    assert hosts.saved("killed")[-1] < 100
    hosts.finish("killed", length)
    assert "resuming at step" in hosts.text(0)
    hosts.finish("whole", length)
    whole, killed = (
        Checkpoints(hosts.workdir(run) / "checkpoints").restore() for run in ("whole", "killed")
    )
    assert whole.step == killed.step == 100
    before, after = (jax.tree.leaves(restored.state) for restored in (whole, killed))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pod
@pytest.mark.slow
def test_a_network_that_is_cut_for_long_ends_all_with_a_line(hosts: Pod) -> None:
    """After 40 s; after 10 s nothing happens. Without JAX, which gives up later."""
    for host in range(3):
        command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(host), "10.9.0.1:7000"]
        hosts.begin(host, [*command, "wait"], {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while any("met" not in hosts.text(host) for host in range(3)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for seconds in (10, 45):
        before = [hosts.text(host) for host in range(3)]
        hosts.net.ask(cut=2)
        time.sleep(seconds)
        hosts.net.ask(mend=2)
        assert [hosts.text(host) == before[host] for host in range(3)] == [seconds == 10] * 3
        time.sleep(6)
    silent = "does not answer any more, for 40 s; the same command goes on from what is on disk"
    line = f"error: process 2 of 3 (10.9.0.3) {silent}"
    assert hosts.ends() == [(1, line)] * 2 + [(1, f"error: process 0 of 3 (10.9.0.1) {silent}")]


@pod
@pytest.mark.slow
def test_a_network_that_is_cut_for_ten_seconds_is_waited_for(hosts: Pod) -> None:
    hosts.train_through(lambda: hosts.net.ask(cut=2), 10, lambda: hosts.net.ask(mend=2))


@pod
@pytest.mark.slow
def test_a_host_that_stands_still_for_a_while_is_waited_for(hosts: Pod) -> None:
    hosts.train_through(
        lambda: hosts.send(1, signal.SIGSTOP), 15, lambda: hosts.send(1, signal.SIGCONT)
    )


SILENT = r"gives no sign of life, for \d\d s; the same command goes on from what is on disk"


@pod
@pytest.mark.slow
def test_a_host_that_stands_still_for_longer_ends_all_with_a_line(hosts: Pod) -> None:
    """After 90 s; JAX, which would end in a C++ stack, is later."""
    hosts.start("run", "--config.training.n_iters=4000")
    hosts.await_step("run")
    hosts.send(1, signal.SIGSTOP)
    begin = time.monotonic()
    hosts.await_end(0)
    hosts.await_end(2)
    assert time.monotonic() - begin < 130
    hosts.send(1, signal.SIGCONT)
    ends = hosts.ends()
    assert [code for code, _ in ends] == [1, 1, 1]
    for host in (0, 2):
        assert re.fullmatch(rf"error: process 1 of 3 \(10\.9\.0\.2\) {SILENT}", ends[host][1])
    assert ends[1][1].startswith("error: ")


@pod
@pytest.mark.slow
def test_a_network_that_is_cut_for_two_minutes_ends_training_with_a_line(hosts: Pod) -> None:
    hosts.start("run", "--config.training.n_iters=4000")
    hosts.await_step("run")
    begin = time.monotonic()
    hosts.net.ask(cut=2)
    ends = hosts.ends()
    assert time.monotonic() - begin < 100
    time.sleep(max(120 - (time.monotonic() - begin), 0))
    hosts.net.ask(mend=2)
    for host, (code, line) in enumerate(ends):
        other = 0 if host == 2 else 2
        assert code == 1
        name = re.escape(f"error: process {other} of 3 (10.9.0.{other + 1}) ")
        assert re.fullmatch(rf"{name}({SILENT}|does not answer any more, for 40 s; .*)", line)
    steps = hosts.saved("run")
    hosts.finish("run", f"--config.training.n_iters={steps[-1] + 10}")
    assert f"resuming at step {steps[-1]}" in hosts.text(0)


@pod
@pytest.mark.slow
def test_a_slow_host_and_a_slow_network_only_take_time(hosts: Pod) -> None:
    """And the numbers are those of three hosts that are all quick."""
    hosts.net.ask(narrow=1)
    hosts.start("slow", "--config.training.n_iters=30")
    hosts.await_step("slow")
    for _ in range(10):
        hosts.send(2, signal.SIGSTOP)
        time.sleep(1)
        hosts.send(2, signal.SIGCONT)
        time.sleep(0.5)
    assert [code for code, _ in hosts.ends()] == [0, 0, 0], hosts.text(0)
    hosts.net.ask(widen=1)
    hosts.finish("quick", "--config.training.n_iters=30")
    slow_state, quick_state = (
        Checkpoints(hosts.workdir(run) / "checkpoints").restore().state for run in ("slow", "quick")
    )
    for name, array in quick_state.items():
        np.testing.assert_array_equal(slow_state[name], array)


@pod
@pytest.mark.slow
def test_a_notice_of_preemption_on_one_host_stops_all_at_one_step(hosts: Pod) -> None:
    hosts.start("run", "--config.training.n_iters=4000")
    hosts.await_step("run")
    hosts.send(1, signal.SIGTERM)
    ends = hosts.ends()
    last = hosts.saved("run")[-1]
    line = f"stopped at step {last} of 4000; the same command goes on"
    assert ends == [(143, line)] * 3


@pytest.mark.parametrize(
    ("variables", "shares"),
    [
        ({}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "5"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, True),
    ],
)
def test_the_only_process_of_a_machine_has_all_of_its_devices(monkeypatch, variables, shares):
    """JAX by itself would take one, also where that is the only process, or it sees one alone."""
    names = ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", *cluster.VISIBLE)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cluster._shares_devices() == shares
