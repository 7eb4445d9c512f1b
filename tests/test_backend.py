"""What XLA reads in the environment."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import pytest

from runtime import backend

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    ("version", "native", "flags", "expected"),
    [
        ("0.10.2", "0", "", f"{FLAG}="),
        ("0.10.2", "0", "--xla_a=1", f"--xla_a=1 {FLAG}="),
        ("0.10.2", "0", f"{FLAG}=x", f"{FLAG}=x"),
        ("0.10.2", "1", "", ""),
        ("0.12.0.1", "0", "", ""),
    ],
)
def test_the_flag_is_for_the_release_and_the_convolutions_that_it_was_measured_with(
    monkeypatch: pytest.MonkeyPatch, version: str, native: str, flags: str, expected: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setenv("SCORE_SDE_NATIVE", native)
    monkeypatch.setenv("XLA_FLAGS", flags)
    backend.prepare()
    assert os.environ["XLA_FLAGS"] == expected


COMPILES = "from runtime import backend; backend.prepare(); import jax; jax.jit(lambda x: x + 1)(1)"


def test_what_xla_compiled_is_there_for_the_next_process(tmp_path: pathlib.Path) -> None:
    """One folder for this kind of processor; the second process adds no program to it."""
    without = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment = without | {
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    programs = []
    for _ in range(2):
        command = [sys.executable, "-c", COMPILES]
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
        programs.append(sorted(tmp_path.glob(".cache/score_sde/programs-*/*-cache")))
    assert programs[0]
    assert programs[0] == programs[1]


def test_a_folder_that_the_user_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    backend.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_without_a_home_to_write_to_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    backend.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_each_kind_of_processor_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def described(text: str) -> str:
        monkeypatch.setattr(pathlib.Path, "read_text", lambda path: text)
        return backend.processor()

    first = described("processor: 0\nflags\t: fpu avx2\ncpu MHz: 2000\n")
    assert described("processor: 0\nflags\t: fpu avx2\ncpu MHz: 2100\n") == first
    assert described("processor: 0\nflags\t: fpu avx512f\ncpu MHz: 2000\n") != first
