"""Batches in an order that is a function of (seed, step, host) alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.datasets import Dataset

Batch = dict[str, np.ndarray]


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of n examples in one epoch, int64 [n].

    It sorts raw output of the counter-based generator Philox keyed by (seed, epoch), which NumPy
    keeps fixed across versions and platforms, so that a run can be resumed anywhere.
    """
    bits = np.random.Philox(key=[seed, epoch]).random_raw(n)
    return np.argsort(bits, kind="stable")


class _Calls:
    """A grain source whose item j is everything that training call j needs.

    That is `num_steps` global batches from step `start + j * num_steps`, of which it gathers this
    host's part at once: one NumPy gather per call instead of one Python call per example.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int, num_steps: int, start: int,
        host: int, num_hosts: int,
    ):  # fmt: skip
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.num_steps, self.start = num_steps, start
        self.per_host = batch_size // num_hosts
        self.offset = host * self.per_host
        self._order = functools.lru_cache(maxsize=3)(
            lambda epoch: epoch_order(seed, epoch, len(dataset))
        )

    def __len__(self) -> int:
        return sys.maxsize // (self.batch_size * self.num_steps) - self.start - 1

    def __getitem__(self, call: Any) -> Batch:
        steps = self.start + int(call) * self.num_steps + np.arange(self.num_steps)
        first = steps * self.batch_size + self.offset
        positions = (first[:, None] + np.arange(self.per_host)).ravel()
        epochs, places = np.divmod(positions, len(self.dataset))
        rows = np.empty_like(positions)
        numbers, starts = np.unique(epochs, return_index=True)  # epochs ascend
        for epoch, start, stop in zip(numbers, starts, [*starts[1:], len(epochs)], strict=True):
            rows[start:stop] = self._order(int(epoch))[places[start:stop]]
        images, labels = self.dataset.take(rows)
        shape = (self.num_steps, self.per_host)
        return {"image": images.reshape(*shape, *images.shape[1:]), "label": labels.reshape(shape)}


class Batches(Iterator[Batch]):
    """Endless training batches; an item holds `num_steps` consecutive ones.

    Items are {"image": uint8 [num_steps, B, H, W, C], "label": int32 [num_steps, B]} (points
    and fractions of levels: float32). Global batch k holds examples [k batch_size, (k+1)
    batch_size) of one endless stream: the data set, shuffled anew in every epoch, epoch after
    epoch. Host h of n gets its contiguous share [h B, (h+1) B) of each global batch, with
    B = batch_size / n: the shares of all hosts, one after the other, are the batch of a single
    host. A batch may span two epochs; nothing is dropped.

    `get_state` gives the next step and what the order depends on; it is the same on every host and
    for every `num_steps`. Batches that were read ahead do not count as used.

    Args:
      dataset: from `data.load`.
      batch_size: size of the global batch, over all hosts.
      seed: of the order, in [0, 2^64).
      num_steps: training steps per item.
      host, num_hosts: which share this process gets.
      start_step: the first step.
      read_ahead: items prepared in advance, by one thread (images in RAM) or as many (on disk).

    Raises:
      ValueError: a batch size that is not positive or not divisible by the hosts, or another number
        out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        num_steps: int = 1,
        host: int = 0,
        num_hosts: int = 1,
        start_step: int = 0,
        read_ahead: int = 2,
    ):
        if batch_size < 1 or batch_size % num_hosts:
            raise ValueError(f"batch size {batch_size} is not a multiple of {num_hosts} host(s)")
        if not 0 <= seed < 2**64:
            raise ValueError(f"the seed of the batch order is in [0, 2^64), not {seed}")
        if num_steps < 1 or start_step < 0 or not 0 <= host < num_hosts:
            raise ValueError(
                f"no batches of num_steps={num_steps}, start_step={start_step}, "
                f"host={host} of {num_hosts}"
            )
        if not len(dataset):
            raise ValueError(f"{dataset.name}/{dataset.split} is empty")
        self._identity = {"data": dataset.fingerprint, "batch_size": batch_size, "seed": seed}
        self._num_steps = num_steps
        self._options = {
            "num_threads": 1 if dataset.in_memory else read_ahead,
            "prefetch_buffer_size": read_ahead,
        }
        self._calls = functools.partial(
            _Calls, dataset, batch_size, seed, num_steps, host=host, num_hosts=num_hosts
        )
        self._iterator: Any = None
        self._seek(start_step)

    def _seek(self, step: int) -> None:
        import grain  # takes a second, with orbax

        self.close()
        self._step = step
        source = grain.MapDataset.source(self._calls(start=step))
        self._iterator = iter(source.to_iter_dataset(grain.ReadOptions(**self._options)))

    def __next__(self) -> Batch:
        item = next(self._iterator)
        self._step += self._num_steps
        return item

    def get_state(self) -> dict[str, Any]:
        """Numbers and strings (JSON) from which `set_state` continues."""
        return {"step": self._step, **self._identity}

    def set_state(self, state: dict[str, Any], place: str = "", earlier_place: str = "") -> None:
        """Continues where `get_state` was called.

        Args:
          place, earlier_place: where the examples are, and were then; "": nobody knows.

        Raises:
          ValueError: the state belongs to other data, another seed or another batch size.
        """
        for key, mine in self._identity.items():
            if state.get(key) == mine:
                continue
            if key == "data":
                then, now = _examples(state.get(key), earlier_place), _examples(mine, place)
                raise ValueError(
                    "cannot resume: the examples are others than those that the run began with, "
                    f"which were {then}, and are now {now}; name the same ones with "
                    "--config.data.data_dir, or another --workdir"
                )
            raise ValueError(f"cannot resume: {key} was {state.get(key)!r} and is now {mine!r}")
        self._seek(int(state["step"]))

    def close(self) -> None:
        """Stops the threads that read ahead."""
        if self._iterator is not None:
            self._iterator.close()


def _examples(fingerprint: Any, place: str) -> str:
    """Examples in words, by `Dataset.fingerprint`."""
    where = f" in {place}" if place else ""
    parts = str(fingerprint).rsplit("/", 3)
    if len(parts) < 4:
        return f"{fingerprint!r}{where}"
    name, split, count, checksum = parts
    return f"{count} of {name}/{split}{where} (CRC-32 {checksum})"


def eval_batches(
    dataset: Dataset, batch_size: int, *, host: int = 0, num_hosts: int = 1
) -> Iterator[Batch]:
    """Every example exactly once, in order, in batches of one shape.

    Yields {"image": uint8 [B, ...], "label": int32 [B], "index": int32 [B], "mask": bool [B]} with
    B = batch_size / num_hosts, the host's contiguous share. The last batch is padded with the last
    example; there `mask` is False. Every host yields equally many batches.

    Raises:
      ValueError: a batch size that is not positive or not divisible by the hosts.
    """
    if batch_size < 1 or batch_size % num_hosts:
        raise ValueError(f"batch size {batch_size} is not a multiple of {num_hosts} host(s)")
    return _eval_batches(dataset, batch_size, batch_size // num_hosts, host)


def _eval_batches(dataset: Dataset, batch_size: int, share: int, host: int) -> Iterator[Batch]:
    last = len(dataset) - 1
    for start in range(0, len(dataset), batch_size):
        numbers = start + host * share + np.arange(share)
        rows = np.minimum(numbers, last)
        images, labels = dataset.take(rows)
        yield {
            "image": images,
            "label": labels,
            "index": rows.astype(np.int32),
            "mask": numbers <= last,
        }
