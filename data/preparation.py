"""The preparation of a data set by TensorFlow Datasets (TFDS): array_record files, no TensorFlow.

Its import takes a second: only who prepares images, or reads prepared ones, imports this module.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.builder import Files, ImageBuilder, reach


def prepare(kind: type[ImageBuilder], root: pathlib.Path) -> Any:
    """Downloads the files of a data set if need be, and writes array_record data under `root`.

    Returns:
      TFDS's builder of what was written.

    Raises:
      FileNotFoundError: the files cannot be downloaded; says where to put them.
      OSError: they cannot be written, or another process has just written them.
    """
    preparation = tfds_builder(kind)(data_dir=str(root), file_format="array_record")
    with _quiet(progress=bool(kind.CHECKSUMS)):
        preparation.download_and_prepare()
    return preparation


def open_folder(folder: pathlib.Path) -> Any:
    """TFDS's builder of what is prepared in the folder of a version."""
    return tfds.builder_from_directory(str(folder))


def tfds_builder(kind: type[ImageBuilder]) -> type[Any]:
    """The builder of TFDS that prepares a data set of images.

    Its examples keep the order in which `kind.read` gives them.
    """
    checksums = tfds.download.checksums

    class Preparation(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = kind.name
        VERSION = tfds.core.Version(kind.VERSION)
        url_infos = {  # noqa: RUF012
            kind.URL + file: checksums.UrlInfo(tfds.core.utils.Size(size), sha256, file)
            for file, (size, sha256) in kind.CHECKSUMS.items()
        }

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Tensor(
                shape=kind.IMAGE_SHAPE, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
            )
            label = tfds.features.ClassLabel(num_classes=kind.NUM_CLASSES)
            return tfds.core.DatasetInfo(
                builder=self,
                description=kind.__doc__ or "",
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            folder = pathlib.Path(self._data_dir_root) / kind.name
            files = kind.located(folder) if not kind.CHECKSUMS else _downloaded(dl_manager, folder)
            return {split: self._generate_examples(files, split) for split in kind.SPLITS}

        def _generate_examples(
            self, files: Files, split: str
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            images, labels = kind.read(files, split)
            for i in range(len(images)):
                yield i, {"image": images[i], "label": int(labels[i])}

    def _downloaded(dl_manager: Any, folder: pathlib.Path) -> Files:
        try:
            reach(kind.URL)
            return dl_manager.download({name: kind.URL + name for name in kind.CHECKSUMS})
        except Exception as error:  # whatever the network does
            raise FileNotFoundError(kind.unavailable(error, folder)) from error

    return Preparation


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Hides the output of TFDS; its progress bars too unless there is something to download."""
    tqdm_utils = tfds.core.utils.tqdm_utils
    if not progress:
        tqdm_utils.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if not progress:
            tqdm_utils.enable_progress_bar()
