"""Data sets of Hugging Face's hub, or saved by its library `datasets`, which is optional."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np

from data.builder import expanded
from data.images import Content, File, first_line, shown
from data.pictures import Pictures, Request, class_labels, counted, held_out, shares, sole


class HuggingFace(Pictures):
    """`hf:<name>[:<config>]` of the hub, or `hf:<folder>` that `save_to_disk` wrote.

    `data.data_dir` is where the library keeps what it downloads; without it, its own cache. Testing
    is on the split `test`, or `validation`, or else on the tenth of the examples whose numbers have
    the smallest hashes. An example's image is the column `image`, or the only one of images; its
    label `label`, or the only one of classes. Images are fitted as those of `folder` are; examples
    are in the set's order.

    Raises:
      ValueError: the library is not installed; a set without random access, without a split
        `train`, without one column of images, or with labels out of range.
      FileNotFoundError: there is no such set, or it cannot be downloaded.
    """

    name = "hf"
    DETAILED = True
    FITS = True

    def __init__(self, request: Request):
        self.image_shape = request.shape(self.name, "positive", fits=True, channels=(1, 3))
        self.fit, self.title = request.fit, f"hf:{request.detail}"
        self.decode = self.fit.decoder(self.image_shape)
        splits = self._opened(request)
        if "train" not in splits:
            raise ValueError(
                f"data set {self.title} has no split train; it has {', '.join(splits) or 'none'}"
            )
        test = held_out(splits)
        self.split = test if test and request.split == "test" else "train"
        table, column, label = self._columns(splits[self.split])
        self.table, self.column = table, column
        count = len(table)
        self.rows = np.arange(count) if test else shares(count)[request.split]
        labels = np.zeros(count, np.int32) if not label else self._labels(label)
        self.labels = labels[self.rows]
        self.transform = self.fit.words(self.image_shape[0])
        self.source = f"{self.title} {getattr(table, '_fingerprint', '')}{self.fit}"
        self.summary = (
            f"{self.title}: {len(self.rows)} images of {self.split}, "
            f"{counted(self.num_classes, 'class', 'classes')}"
        )

    def _opened(self, request: Request) -> dict[str, Any]:
        """The splits by name."""
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"data set {self.title} needs the library datasets: pip install -e '.[hf]'"
            ) from error
        folder = expanded(request.detail, "data.dataset=hf:<folder>, folder")
        name, _, config = request.detail.partition(":")
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                opened = datasets.load_from_disk(str(folder))
            else:
                cache = None if request.folder is None else str(request.folder)
                opened = datasets.load_dataset(name, config or None, cache_dir=cache)
        except Exception as error:  # the library and its readers have many
            reason = first_line(error)[:200]
            raise FileNotFoundError(f"data set {self.title} cannot be opened: {reason}") from error
        splits = dict(opened) if isinstance(opened, dict) else {"train": opened}
        for split, table in splits.items():
            if not isinstance(table, datasets.Dataset):
                raise ValueError(
                    f"data set {self.title}: its split {split} is a stream "
                    f"({type(table).__name__}); training needs random access, download it whole"
                )
        return {str(split): table for split, table in splits.items()}

    def _columns(self, table: Any) -> tuple[Any, str, str]:
        """The table whose images are encoded, the name of that column, and of the labels' or ""."""
        import datasets

        kinds = table.features
        images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
        labels = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
        image = sole(images, "image")
        if not image:
            raise ValueError(
                f"data set {self.title} has not one column of images among {', '.join(kinds)}"
            )
        label = sole(labels, "label")
        self.num_classes = int(kinds[label].num_classes) if label else 1
        return table.cast_column(image, datasets.Image(decode=False)), image, label

    def _labels(self, label: str) -> np.ndarray:
        labels = np.asarray(self.table.with_format("numpy")[label][:], np.int64)
        limit = f" in {self.split}, but"
        return class_labels(labels, self.num_classes, f"data set {self.title}", limit)

    def record(self, row: int) -> File:
        number = int(self.rows[row])
        cell = self.table[number][self.column] or {}
        content, path = cell.get("bytes") or b"", str(cell.get("path") or "")
        if not content and not path:
            raise ValueError(f"{self.title}: example {number} of {self.split} has no image")
        name = f"{self.title}: example {number} of {self.split}"
        return Content(shown(name), content) if content else path

    def stamp(self, row: int) -> bytes:
        """The example's number: another set has another fingerprint, which is in `source`."""
        return f"{self.split} {self.rows[row]}".encode()

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the set's own fingerprint, of the rows, and of how images are fitted."""
        content = (self.source, self.split, self.image_shape)
        return zlib.crc32(self.rows.astype(np.int64).data, zlib.crc32(repr(content).encode()))
