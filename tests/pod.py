"""Three hosts on this machine that run the program together, for tests that are slow."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from runtime import cluster
from tests import network

pod = pytest.mark.skipif("not network.possible()", reason="this machine lets nobody make networks")
"""Marks tests whose processes are on hosts of their own."""

TRAINING = (
    "--mode=train",
    "--config=configs/toy/mixture_dsm_vp.py",
    "--distributed",
    "--config.training.batch_size=48",
    "--config.training.n_jitted_steps=5",
    "--config.training.snapshot_freq_for_preemption=10",
    "--config.training.snapshot_sampling=False",
    "--config.training.eval_freq=1000",
)


class Pod:
    """Three hosts that train together, in one network and with one disk, or each with its own."""

    def __init__(
        self, net: network.Network, folder: pathlib.Path, several_disks: bool = False
    ) -> None:
        self.net, self.folder, self.port, self.several_disks = net, folder, 7000, several_disks
        self.numbers: list[int] = []

    def workdir(self, name: str, host: int = 0) -> pathlib.Path:
        """The folder of a run on a host."""
        return self.folder / (f"disk{host}" if self.several_disks else "disk") / name

    def start(self, workdir: str, *more: str, hosts: tuple[int, ...] = (0, 1, 2)) -> None:
        """Starts the program on some of the hosts."""
        self.port += 1
        self.numbers = []
        for host in hosts:
            options = (*TRAINING, f"--workdir={self.workdir(workdir, host)}", *more)
            place = f"10.9.0.1:{self.port}", "3", str(host)
            places = dict(zip(cluster.VARIABLES, place, strict=True))
            flag = "--xla_force_host_platform_device_count=1"
            places |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
            self.begin(host, [sys.executable, "main.py", *options], places)

    def begin(self, host: int, command: list[str], places: dict[str, str]) -> None:
        """Starts a command on a host."""
        output = str(self.folder / f"{host}.txt")
        request = {"host": host, "environment": places, "output": output}
        self.numbers.append(self.net.ask(start=command, **request))

    def send(self, host: int, number: int) -> None:
        """Sends a signal to the program on a host."""
        self.net.ask(signal=number, to=self.numbers[host])

    def saved(self, workdir: str, host: int = 0) -> list[int]:
        """The steps of which there is a checkpoint on a host's disk."""
        folder = self.workdir(workdir, host) / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())

    def await_step(self, workdir: str) -> None:
        """Waits for a checkpoint that is not there yet."""
        deadline, before = time.monotonic() + 600, self.saved(workdir)
        while self.saved(workdir) == before:
            assert time.monotonic() < deadline, self.text(0)
            time.sleep(0.05)

    def train_through(self, begin: Callable[[], Any], seconds: int, end: Callable[[], Any]) -> None:
        """Trains to the end, though something begins at the first checkpoint, and lasts a while."""
        self.start("run", "--config.training.n_iters=100")
        self.await_step("run")
        begin()
        time.sleep(seconds)
        end()
        assert [code for code, _ in self.ends()] == [0, 0, 0], self.text(0)

    def await_end(self, host: int) -> None:
        """Waits until the program on a host ends."""
        self.net.ask(wait=self.numbers[host])

    def finish(self, workdir: str, *more: str) -> None:
        """Starts the program and waits for its good end."""
        self.start(workdir, *more)
        assert [code for code, _ in self.ends()] == [0, 0, 0], self.text(0)

    def text(self, host: int) -> str:
        return (self.folder / f"{host}.txt").read_text()

    def ends(self) -> list[tuple[int, str]]:
        """Exit codes and last lines, of all."""
        codes = [self.net.ask(wait=number) for number in self.numbers]
        texts = [self.text(host).rstrip("\n") for host in range(len(codes))]
        return [(code, text.rpartition("\n")[2]) for code, text in zip(codes, texts, strict=True)]
