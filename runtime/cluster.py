"""Which processes work together: told by JAX's cluster environments, or by three variables."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from runtime import rendezvous, watch
from runtime.errors import Refused, one_line
from runtime.rendezvous import Member

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SECONDS = "SCORE_SDE_JOIN_SECONDS"  # that processes wait for each other
HEARTBEAT = 600  # seconds without one for JAX to give a process up, where `watch` has not done so

# The names of JAX's environments that are looked for without being asked to: those that several
# processes of one program find, and hardly anybody else.
AUTOMATIC = ("ompi", "slurm", "gketpu", "gcetpu")

# What tells of several processes, also where JAX finds no cluster.
COUNTS = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")

VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")  # the GPUs that a process sees

PACKAGES = ("jax", "jaxlib", "flax", "optax")
SETTINGS = ("JAX_PLATFORMS", "JAX_ENABLE_X64")
ROOT = pathlib.Path(__file__).resolve().parent.parent


class _Joined:
    """The state of this process."""

    watch: watch.Watch | None = None


def join(required: bool | None, facts: Mapping[str, Any]) -> None:
    """Joins the other processes of this program, if there are any: before JAX's first computation.

    Args:
      required: True if there have to be some; None: those of a detected cluster; False: none.
      facts: what they have to have in common, by name, besides versions and the program itself.

    Raises:
      Refused: they are required, and there is no cluster; or a variable that is no number.
      ConnectionError: they did not all come, or were started otherwise.
    """
    if required is False:
        return
    try:
        member = find(bool(required))
    except ImportError:  # a version of JAX whose environments are elsewhere
        if required or _several():
            import jax

            logging.warning("this version of JAX does not say who its processes are: they may wait")
            jax.distributed.initialize()
        return
    if member is not None:
        _join(member, {**facts, **versions()})


def _join(member: Member, facts: Mapping[str, Any]) -> None:
    seconds, begin = waiting_time(), time.monotonic()
    links = rendezvous.meet(member, facts, seconds)
    if links:
        _Joined.watch = watch.Watch(member, links)
    import jax

    rest = int(seconds - (time.monotonic() - begin))
    jax.distributed.initialize(
        member.address,
        member.count,
        member.index,
        cluster_detection_method=None if _shares_devices() else "deactivate",
        initialization_timeout=max(rest, 10),
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def _shares_devices() -> bool:
    """True if JAX has to choose one of this machine's GPUs for this process, by its number here.

    It would also for the only process of a machine, and where the scheduler shows each process its
    own GPU.
    """
    visible = next(filter(None, map(os.environ.get, VISIBLE)), "")
    if visible and "," not in visible:
        return False
    here = [_number("OMPI_COMM_WORLD_LOCAL_SIZE") or 1]
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # "2(x3),1": by node
    here += [int(number) for number in re.findall(r"(?:^|,)(\d+)", tasks)]
    return max(here) > 1


def joined() -> bool:
    """True if this process works with others, and a `leave` ends it after a failure."""
    return _Joined.watch is not None


def await_others() -> None:
    """Waits for the other processes, before a collective to which they may come late.

    On CPUs the collectives themselves, Gloo's, give up after 30 s: for processes that compile for
    longer than others, or read more from their disks.
    """
    if _Joined.watch is not None:
        _Joined.watch.await_others()


def leave(code: int, line: str = "") -> None:
    """Says goodbye to the other processes, if there are any, before this one ends.

    After a failure, of which `line` is the message, this does not return but ends the process:
    JAX would wait minutes for the others, which have to end too.
    """
    if _Joined.watch is None:
        return
    _Joined.watch.goodbye(line if code else None)
    if code:
        os._exit(code)


def settle(error: BaseException) -> None:
    """Waits a little whether an error of JAX came of another process's end, which is then said."""
    if _Joined.watch is not None and re.search(
        r"gloo|nccl|coordination|barrier|connection|socket|unavailable|deadline|timed out",
        str(error),
        re.IGNORECASE,
    ):
        _Joined.watch.settle()


def find(required: bool) -> Member | None:
    """This process as a member of a cluster, None if it works alone.

    Raises:
      Refused: a cluster is required and not found; or a variable that cannot be read.
      OSError: JAX finds a cluster, and cannot read it.
      ImportError: this version of JAX has no environments where they are looked for.
    """
    address = os.environ.get(VARIABLES[0], "").strip()
    if address and not re.fullmatch(r"(\[[^]]+\]|[^:\s]+):\d{1,5}", address):
        raise Refused(f"{VARIABLES[0]}={address!r} in the environment must be host:port")
    count, index = (_number(name) for name in VARIABLES[1:])
    for name in COUNTS:
        _number(name)
    detected = None
    if not (required and address and None not in (count, index)):
        detected = _told_by_jax(required, address, count, index)
        if detected is None or detected.count == 1:
            reason = "" if detected else _leftover()
            if required and not detected:
                why = f" ({reason})" if reason else ""
                raise Refused(f"--distributed found no cluster{why}; set {', '.join(VARIABLES)}")
            if reason:
                logging.warning("%s: this process works alone", reason)
            return None
        address, count, index = detected.address, detected.count, detected.index
    assert count is not None
    assert index is not None
    if index >= count:
        raise Refused(f"{VARIABLES[2]}={index} must be below {VARIABLES[1]}={count}")
    return Member(address, count, index, detected.hosts if detected else ())


def waiting_time() -> float:
    """The seconds that processes wait for each other.

    Raises:
      Refused: the variable is no number of seconds.
    """
    text = os.environ.get(SECONDS, "").strip() or "60"
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        raise Refused(f"{SECONDS}={text!r} in the environment must be a number of seconds")
    return float(text)


@functools.cache
def versions() -> dict[str, str]:
    """What has to be the same on all hosts besides the command line, by name."""
    code = hashlib.sha256()
    packages = [path.parent for path in sorted(ROOT.glob("*/__init__.py"))]
    for folder in (ROOT, *(path for path in packages if path.name != "tests")):
        pattern = "*.py" if folder == ROOT else "**/*.py"
        for path in sorted(folder.glob(pattern)):
            code.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    numbers = {name: importlib.metadata.version(name) for name in PACKAGES}
    settings = {name: os.environ.get(name, "") for name in SETTINGS}
    return {**numbers, **settings, "the program's files": code.hexdigest()[:8]}


def _told_by_jax(
    required: bool, address: str, count: int | None, index: int | None
) -> Member | None:
    """This process as JAX's own cluster environment has it, if there is one.

    The environments are private to JAX. Given values, those not empty, are preferred.

    Raises:
      OSError: the environment cannot be read.
      ImportError: this version of JAX has none.
    """
    try:
        from jax._src.clusters import ClusterEnv

        kinds = [kind for kind in ClusterEnv._cluster_types if kind.name != "mpi4py"]
        opt_in = [kind for kind in ClusterEnv._cluster_types if kind.name == "mpi4py"]
    except (ImportError, AttributeError) as error:
        raise ImportError(str(error)) from error
    for kind in [*kinds, *opt_in] if required else kinds:
        if not (required or kind.name in AUTOMATIC) or (kind.name == "slurm" and not _by_srun()):
            continue
        try:
            if not kind.is_env_present():
                continue
            count = count or int(kind.get_process_count())
            if kind in opt_in and count == 1:  # it is installed, and nothing has started it
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            if count > 1 and not address:
                seconds = int(waiting_time())
                address = kind.get_coordinator_address(
                    timeout_secs=seconds, override_coordinator_port=port
                )
            index = int(kind.get_process_id()) if index is None else index
            return Member(address, count, index, _hosts(kind, count))
        except Exception as error:  # of many libraries; each ends in this line
            name = kind.name or kind.__name__
            raise OSError(
                f"the cluster ({name}) cannot be read: {one_line(error)}; --nodistributed works "
                "alone"
            ) from error
    return None


def _hosts(kind: Any, count: int) -> tuple[str, ...]:
    """The machines by process, where JAX's environment knows them: on TPUs."""
    workers = getattr(kind, "_get_worker_list_in_slice", None)
    hosts = tuple(workers()) if workers is not None else ()
    return hosts if len(hosts) == count else ()


def _several() -> bool:
    """True if the environment by itself tells of several processes that were started."""
    mpi, tasks = (_number(name) or 1 for name in COUNTS[:2])
    return (
        mpi > 1 or (tasks > 1 and _by_srun()) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )


def _by_srun() -> bool:
    """True unless SLURM's variables are those of an allocation, in which one process was started.

    `salloc` and `sbatch` set the number of tasks too, and an interactive shell is a step of one.
    """
    tasks, started = _number("SLURM_NTASKS"), _number("SLURM_STEP_NUM_TASKS")
    return "SLURM_STEP_NODELIST" in os.environ and (started is None or started == tasks)


def _leftover() -> str:
    """What tells of several processes though JAX finds no cluster, in words, or nothing.

    Raises:
      Refused: there really are several.
    """
    mpi, tasks = (_number(name) or 1 for name in COUNTS[:2])
    if mpi > 1:
        raise Refused(
            f"OMPI_COMM_WORLD_SIZE={mpi}: this Open MPI does not tell JAX where its processes are; "
            f"install mpi4py and add --distributed, or set {', '.join(VARIABLES)}"
        )
    if tasks > 1:
        return f"SLURM_NTASKS={tasks} without srun, which starts the tasks (srun python main.py)"
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return "TPU_WORKER_HOSTNAMES names several hosts, and JAX finds no TPU on this one"
    return ""


def _number(name: str) -> int | None:
    """The number in a variable of the environment, None where it is empty or not set.

    Raises:
      Refused: it holds something else.
    """
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdecimal()):
        raise Refused(f"{name}={text!r} in the environment must be a number of processes")
    return int(text) if text else None
