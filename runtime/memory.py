"""How much memory this process can still have, and the refusal of what needs more.

Linux grants memory that there is not, and kills the process that uses it. Standard library only.
"""

from __future__ import annotations

import os
import pathlib
import resource
from collections.abc import Iterator

GIB = 2**30
PROC = pathlib.Path("/proc")
GROUPS = pathlib.Path("/sys/fs/cgroup")

# Limit, use and reclaimable cache of a control group, by the version of its system.
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


class Lack(MemoryError):
    """Too little memory; the message is a whole line: what, how much, what to lower."""


def free() -> int | None:
    """Bytes that the machine, the control groups of this process and its limit leave.

    None where the system does not say.
    """
    bounds = [number for number in (_machine(), _limit(), *_groups()) if number is not None]
    return max(min(bounds), 0) if bounds else None


def require(size: int, what: str, lower: str) -> None:
    """Refuses `size` bytes that cannot be had.

    `what` takes them, in words; `lower` says what to lower.

    Raises:
      Lack: fewer bytes are free.
    """
    there = free()
    if there is not None and size > there:
        raise Lack(
            f"out of memory: {what} needs about {size / GIB:.1f} GiB, and {there / GIB:.1f} GiB "
            f"are free; lower {lower}"
        )


def _machine() -> int | None:
    """Memory and swap of the machine that are free or can be freed."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _limit() -> int | None:
    """What `ulimit -v` leaves of the address space."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int((PROC / "self" / "statm").read_text().split()[0])
    except (OSError, ValueError):
        return limit
    return limit - pages * os.sysconf("SC_PAGE_SIZE")


def _groups() -> Iterator[int | None]:
    """What each control group of this process, a container's or a job's, may still take."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        top = GROUPS / "memory" if controllers else GROUPS
        group = top / path.strip("/")
        for folder in (group, *group.parents):  # a container may see its own group at the top
            if folder.is_relative_to(top):
                yield _group(folder, *FILES[version])


def _group(folder: pathlib.Path, limit: str, use: str, cache: str) -> int | None:
    """Bytes that a control group has left, with the cache that can be freed."""
    try:
        most = int((folder / limit).read_text())  # "max": no limit
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most - int((folder / use).read_text()) + int(stat[cache])
    except (OSError, ValueError, KeyError):
        return None
