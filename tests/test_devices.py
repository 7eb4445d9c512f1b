"""The environment that says which devices and processes there are."""

from __future__ import annotations

import jax
import pytest

from runtime import devices
from runtime.errors import Refused


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS"])
def test_a_number_of_the_environment_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv(name, "two")
    with pytest.raises(Refused, match=f"{name}='two' is not a number"):
        devices.join_processes(required=True)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_an_empty_number_of_the_environment_is_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "")
    devices.join_processes(required=False)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_a_platform_that_is_not_there_is_named(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = jax.devices()

    def no_tpu() -> list[jax.Device]:
        monkeypatch.setattr(jax, "devices", lambda: here)
        raise error("Unable to\ninitialize backend 'tpu'")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(jax, "devices", no_tpu)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(Refused, match=r"JAX_PLATFORMS='tpu': not there \(Unable.*has cpu$"):
        devices.join_processes(required=False)
