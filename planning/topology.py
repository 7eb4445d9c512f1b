"""Chips and how they are put together: `--topology=v5e:4x4`, `h100:8`; and their compilers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from runtime.chips import CHIPS, Chip

VALID = (
    "v5e:AxB, v6e:AxB, v4:AxBxC, v5p:AxBxC (chips on each side, A and B even, or all of them 1) "
    "or a100:N, h100:N, h200:N (1, 2, 4 or a multiple of 8 GPUs)"
)
MACHINE = 8  # GPUs of one machine
MOST_CHIPS = 8960  # of any slice: one of v5p
# What libtpu would otherwise look for, wait for or complain of where no TPU is; and several plans,
# which touch no device, may be made at a time.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
EXTRAS = {"tpu": "plan-tpu", "cuda": "plan-cuda"}


class Topology(NamedTuple):
    """Chips of one kind.

    Attributes:
      name: as it was given.
      chip: the kind.
      sides: chips along each side of a TPU slice, or (the number of GPUs,).
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.sides)

    @property
    def links(self) -> float:
        """Bytes/s that leave a chip in a collective over all of them."""
        several = self.chip.platform == "cuda" and self.size > MACHINE
        return self.chip.network if several else self.chip.links


class Absent(Exception):
    """The compiler of a platform is not installed; the message is a whole line."""


def parse(name: str) -> Topology:
    """The topology of a name such as "v5e:4x4" or "h100:8".

    Raises:
      ValueError: another name.
    """
    match = re.fullmatch(r"([a-z0-9]+):([1-9][0-9]{0,4}(?:x[1-9][0-9]{0,4})*)", name.lower())
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None:
        raise ValueError(f"--topology={name} must be one of {VALID}")
    sides = tuple(int(side) for side in match[2].split("x"))
    count = math.prod(sides)
    if chip.sides:
        whole = count == 1 or all(side % 2 == 0 for side in sides[:2])
        valid = len(sides) == chip.sides and whole and count <= MOST_CHIPS
    else:
        valid = len(sides) == 1 and (count in (1, 2, 4) or count % MACHINE == 0)
        valid = valid and count <= MOST_CHIPS
    if not valid:
        raise ValueError(f"--topology={name}: there is no such slice; it must be one of {VALID}")
    return Topology(name.lower(), chip, sides)


def require_compiler(platform: str) -> None:
    """Refuses a platform whose compiler is not installed.

    Raises:
      Absent: it is not; says what to install.
    """
    package = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}[platform]
    missing = "" if _installed(package) else package.replace("jax_plugins.xla_", "jax-")
    if platform == "cuda" and not missing and not (shutil.which("ptxas") or _ptxas_of_wheel()):
        missing = "ptxas (of nvidia-cuda-nvcc, or of a CUDA toolkit on the PATH)"
    if missing:
        extra = EXTRAS[platform]
        raise Absent(
            f"nothing is compiled for want of {missing}: pip install -e '.[{extra}]'; the numbers "
            "below are estimates from the program before compilation"
        )


def _ptxas_of_wheel() -> bool:
    """Whether the assembler of the package nvidia-cuda-nvcc is there, where JAX looks for it."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc") or ()
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(
        file.name == "ptxas" and pathlib.Path(str(file.locate())).is_file() for file in files
    )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def devices(topology: Topology) -> list[Any]:
    """The chips for the compiler alone: nothing can be run on them.

    Raises:
      Absent: their compiler is not installed.
      ValueError: the compiler knows no such slice.
    """
    chip = topology.chip
    require_compiler(chip.platform)
    # What is compiled without a device can be written to JAX's cache, but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    if chip.platform == "cuda":
        machines = max(topology.size // MACHINE, 1)
        shape = f"1x{machines}x{topology.size // machines}"
        description = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=shape, target_config=chip.target
        )
        return list(description.devices)
    for variable, value in WITHOUT_TPU.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"chip_config_name": chip.cores}
    if topology.size == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except RuntimeError as error:
        raise ValueError(f"--topology={topology.name} is refused by libtpu: {error}") from error
    return list(description.devices)
