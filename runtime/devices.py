"""One device, many devices, many hosts: the same numbers.

A result may depend on an example's global index, never on the device or host that computed it.
Every example therefore gets its own key from its index, and every batch is laid out in index
order over hosts, then over the devices of a host, then inside a device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.flatten_util
import numpy as np
from jax.experimental import multihost_utils

from runtime import cluster, peak_memory, stop
from runtime.errors import Refused
from runtime.progress import Bar

AXIS = "devices"
Tree = Any  # a pytree of arrays
T = TypeVar("T")  # such a tree, of which another like it is made


def start_platform(name: str | None = None) -> None:
    """Starts the platform that JAX computes on, after `cluster.join`; that of `name` if given.

    Raises:
      Refused: this machine has none of those in JAX_PLATFORMS.
    """
    if name is not None:
        jax.config.update("jax_platforms", name)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a plugin that is not there
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined, unused-ignore]
        if not wanted:
            raise
        jax.config.update("jax_platforms", None)
        why = (
            str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
            or "its plugin is not installed"
        )
        raise Refused(
            f"JAX_PLATFORMS={wanted}: {' '.join(why.split())}; without it, JAX takes "
            f"{jax.default_backend()} on this machine"
        ) from error


def image_keys(key: jax.Array, indices: jax.Array) -> jax.Array:
    """One key per image, [B]: `fold_in(key, index)`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def replicate(tree: T) -> T:
    """Copies of `tree` on all local devices, each leaf with a leading device axis for `pmap`.

    The axis has the name of every other `pmap` here: under another one the copies would have
    another sharding than what a step returns, and the step would be compiled twice. One process
    puts the arrays there; a program that copies hundreds of them would be compiled for seconds.
    """
    count = jax.local_device_count()
    copies: T
    if jax.process_count() > 1:
        copy = jax.pmap(lambda _, tree: tree, axis_name=AXIS, in_axes=(0, None))
        copies = copy(np.arange(count), tree)
    else:
        copies = jax.tree.map(functools.partial(_copies, count), tree)
    return copies


def _copies(count: int, leaf: Any) -> jax.Array:
    """Copies of a leaf on the first devices; typed keys are put there as their raw data."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        keys: jax.Array = jax.random.wrap_key_data(_copies(count, jax.random.key_data(leaf)))
        return keys
    rows = np.asarray(leaf)
    rows = np.broadcast_to(rows, (count, *rows.shape))
    # Steps are given the copies' memory to write to: no two may share it.
    copies: jax.Array = jax.device_put(rows, _sharding(count), may_alias=False)
    return copies


@functools.cache
def _sharding(count: int) -> jax.sharding.Sharding:
    """That of a result of `pmap` on some devices."""
    result: jax.Array = jax.pmap(lambda row: row, axis_name=AXIS)(np.arange(count))
    return result.sharding


def lay_out(batches: Tree) -> Tree:
    """Rows [n, B, ...] of n batches as [devices, n, B / devices, ...], for `pmap`, leaf by leaf."""
    local = jax.local_device_count()

    def one(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), local, -1, *rows.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(one, batches)


def fetch(tree: Any) -> Any:
    """Host copy (NumPy) of a replicated tree: the first local device's shard.

    Typed keys come back as their raw uint32 data, since NumPy has no key type.
    """

    def one(leaf: jax.Array) -> np.ndarray:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        copies: np.ndarray = np.asarray(leaf.addressable_shards[0].data)
        first: np.ndarray = copies[0]
        return first

    return jax.tree.map(one, tree)


def is_primary() -> bool:
    """True on the process that writes files, prints tables and shows progress bars."""
    return jax.process_index() == 0


def mean(tree: T, axis_name: str) -> T:
    """The means of float32 arrays over the devices of a `pmap`, in one piece between processes.

    On CPUs a process sends the arrays of a tree one by one, a few milliseconds each; as one vector
    they take as long as their bytes do. Other platforms put them together themselves.
    """
    means: T
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        means = jax.lax.pmean(tree, axis_name)
    else:
        vector, apart = jax.flatten_util.ravel_pytree(tree)
        means = apart(jax.lax.pmean(vector, axis_name))
    return means


def of_primary(flag: bool) -> bool:
    """The primary process's flag, on all: a branch that leads to collective calls is shared."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def on_all(flag: bool) -> bool:
    """True if the flag is true on all processes, which may not share their disks."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).all())


def on_any(flag: bool) -> bool:
    """True if the flag is true on one of the processes."""
    return not on_all(not flag)


def asked_to_stop(call: int) -> bool:
    """True on all processes if one of them was asked to stop by the time of this call.

    Calls are numbered 1, 2, 3, ...: the processes agree on one of the next numbers, and would pass
    over it for ever if some were left out.
    """
    if jax.process_count() == 1:
        return stop.requested()
    stop.pass_on()
    return multihost_utils.reached_preemption_sync_point(call)


def per_device(batch_size: int, what: str, count: int | None = None) -> int:
    """Images per device of a global batch; refuses one that the devices cannot share evenly.

    They are `count`, or else those that are here.
    """
    count = jax.device_count() if count is None else count
    if batch_size <= 0 or batch_size % count:
        raise ValueError(
            f"{what}={batch_size} must be a positive multiple of the number of devices ({count})"
        )
    return batch_size // count


def fitting_batch(count: int) -> int:
    """The smallest batch size that holds `count` images and that the devices share evenly."""
    return -(-count // jax.device_count()) * jax.device_count()


class Rows:
    """The array `source[numbers]`, of which an `ImageMap` reads the rows of a batch at its turn."""

    def __init__(self, source: Any, numbers: np.ndarray) -> None:
        self.source, self.numbers = source, numbers

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.source[self.numbers[rows]])


class ImageMap:
    """A function of single images, run over any number of them on all devices of all hosts.

    `function` is `(params, indices [b], arrays [b, ...]) -> tree of [b, ...]`, pure. It runs under
    `pmap` with the axis name `AXIS`, compiled once, and the result of an image may depend on its
    own row alone. `batch_size` counts the images of one call over all devices; `setting` names
    where it comes from.

    Raises:
      ValueError: the batch size is not a positive multiple of the number of devices.
    """

    def __init__(self, function: Callable[..., Tree], batch_size: int, setting: str) -> None:
        self.batch_size = batch_size
        self.share = per_device(batch_size, setting)
        self.compiled = jax.pmap(function, axis_name=AXIS)
        self.what = f"{setting}={batch_size}"
        self.fits = False

    def __call__(
        self, params: Tree, indices: np.ndarray, arrays: Tree = None, description: str = ""
    ) -> Iterator[tuple[np.ndarray, Tree]]:
        """Yields `(indices, results)` batch by batch, in order, as NumPy, the same on every host.

        `params` is replicated already; row i of `arrays` belongs to `indices[i]`. The last batch
        is filled up with copies of the last image, which are dropped again. A progress bar is
        shown if it has a `description`.

        Raises:
          Stopped: the program was asked to stop, and the batches before are finished.
          Lack: a batch needs more of the CPU's memory than is free.
        """
        local = jax.local_device_count()
        first = jax.process_index() * local * self.share
        with (
            stop.listening() as outermost,
            progress(len(indices), description, "img") as bar,
        ):
            for start in range(0, len(indices), self.batch_size):
                if outermost and on_any(stop.requested()):
                    raise stop.Stopped(
                        f"stopped at image {start} of {len(indices)}"
                        f"{description and f' ({description})'}; {stop.GOES_ON}"
                    )
                rows = np.minimum(start + np.arange(self.batch_size), len(indices) - 1)
                rows_here = rows[first : first + local * self.share]

                def lay_out(array: np.ndarray | Rows, rows: np.ndarray = rows_here) -> np.ndarray:
                    array = array if isinstance(array, Rows) else np.asarray(array)
                    share: np.ndarray = array[rows]
                    return share.reshape(local, self.share, *share.shape[1:])

                operands = params, lay_out(indices), jax.tree.map(lay_out, arrays)
                with stop.compiling(outermost and start == 0 and jax.process_count() == 1):
                    if not self.fits:
                        peak_memory.require(self.compiled, operands, self.what)
                        self.fits = True
                    result = self.compiled(*operands)
                result = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), result)
                if jax.process_count() > 1:
                    cluster.await_others()
                    result = multihost_utils.process_allgather(result, tiled=True)
                count = min(self.batch_size, len(indices) - start)
                bar.update(count)
                yield indices[rows[:count]], jax.tree.map(lambda x, n=count: x[:n], result)


def progress(total: int, description: str, unit: str, initial: int = 0) -> Bar:
    """A progress bar with rate and remaining time, on the primary host, if it has a description."""
    hidden = not description or not is_primary()
    return Bar(
        total=total, initial=initial, desc=description, unit=unit, disable=hidden, smoothing=0.1
    )


def each(items: Sequence[T], description: str) -> Iterator[T]:
    """The items one after the other, with a progress bar."""
    with progress(len(items), description, "step") as bar:
        for item in items:
            yield item
            bar.update(1)
