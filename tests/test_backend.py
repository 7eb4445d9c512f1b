"""What XLA reads in the environment."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import pytest

from runtime import backend

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
