"""What the environment says about processes and platforms: used, or refused in one line."""

import jax
import pytest

from runtime import devices
from runtime.errors import Refused

DISTRIBUTED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def environment(monkeypatch):
    """Sets variables; those of clusters that are not named are absent."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))

    def choose(**variables):
        names = (*DISTRIBUTED, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return calls

    return choose


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": ""},
        {"SLURM_NTASKS": "1", "OMPI_COMM_WORLD_SIZE": " "},
        {"TPU_WORKER_HOSTNAMES": "a"},
    ],
)
def test_a_process_alone_joins_none(environment, variables):
    calls = environment(**variables)
    devices.join_processes(False)
    assert calls == []


def test_processes_of_a_cluster_are_joined(environment):
    calls = environment(SLURM_NTASKS="4")
    devices.join_processes(False)
    assert calls == [()]


def test_processes_of_the_environment_are_joined(environment):
    calls = environment(**dict(zip(DISTRIBUTED, ("host:1234", "2", "1"), strict=True)))
    devices.join_processes(True)
    assert calls == [("host:1234", 2, 1)]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": "four"}, "SLURM_NTASKS='four' in the environment must be a number"),
        ({"OMPI_COMM_WORLD_SIZE": "-3"}, "OMPI_COMM_WORLD_SIZE='-3' in the environment"),
        (
            dict(zip(DISTRIBUTED, ("host:1", "two", "0"), strict=True)),
            "JAX_NUM_PROCESSES='two' in the environment must be a number",
        ),
        (
            dict(zip(DISTRIBUTED, ("host:1", "2", "2"), strict=True)),
            "JAX_PROCESS_ID=2 must be below JAX_NUM_PROCESSES=2",
        ),
        ({"JAX_NUM_PROCESSES": "2"}, "--distributed found no cluster; set JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(environment, variables, message):
    calls = environment(**variables)
    with pytest.raises(Refused, match=message):
        devices.join_processes(True)
    assert calls == []


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            RuntimeError("Unable to initialize backend 'tpu': no\nlibtpu (set JAX_PLATFORMS='')"),
            "Unable to initialize backend 'tpu': no libtpu",
        ),
        (AssertionError(), "its plugin is not installed"),
    ],
)
def test_a_platform_that_is_not_there_is_refused_and_others_are_named(monkeypatch, error, why):
    def fail():
        raise error

    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    monkeypatch.setattr(jax, "devices", fail)
    jax.config.update("jax_platforms", "tpu")
    try:
        with pytest.raises(Refused, match=f"JAX_PLATFORMS=tpu: {why}; without it, .* cpu on this"):
            devices.start_platform()
    finally:
        jax.config.update("jax_platforms", before)
