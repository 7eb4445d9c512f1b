"""SVHN, from its official MATLAB files."""

from __future__ import annotations

import numpy as np

from data.builder import Files, ImageBuilder
from data.images import first_line, shown


class Svhn(ImageBuilder):
    """73,257 + 26,032 colour pictures of house numbers, 32x32 pixels, 10 classes.

    Y. Netzer et al.: Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.
    """

    TFDS_NAME = "svhn_cropped"
    TFDS_VERSIONS = ("3.1.0", "3.0.0")
    IMAGE_SHAPE = (32, 32, 3)
    NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    COUNTS = {"train": 73_257, "test": 26_032}  # noqa: RUF012
    URL = "http://ufldl.stanford.edu/housenumbers/"
    CHECKSUMS = {  # noqa: RUF012
        "train_32x32.mat": (
            182040794,
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        "test_32x32.mat": (
            64275384,
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    }

    @classmethod
    def read(cls, files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
        """`X` is uint8 [32, 32, 3, n], `y` the digits, of which 10 stands for 0."""
        from scipy import io  # takes a while, and is needed for preparation only

        path = files[f"{split}_32x32.mat"]
        try:
            content = io.loadmat(path, variable_names=("X", "y"))
            images, labels = np.asarray(content["X"]), np.asarray(content["y"]).ravel()
        except Exception as error:  # SciPy's parser and zlib have many
            reason = first_line(error)
            raise ValueError(f"{shown(path)}: damaged or no MATLAB file ({reason})") from error
        count = cls.COUNTS[split]
        if images.dtype != np.uint8 or images.shape != (*cls.IMAGE_SHAPE, count):
            raise ValueError(
                f"{shown(path)}: damaged or another file, its X is {images.dtype}"
                f"{list(images.shape)}, not uint8{[*cls.IMAGE_SHAPE, count]}"
            )
        if labels.shape != (count,) or labels.min() < 1 or labels.max() > cls.NUM_CLASSES:
            raise ValueError(
                f"{shown(path)}: damaged or another file, it has {len(labels)} labels from "
                f"{labels.min(initial=10)} to {labels.max(initial=0)}, not {count} from 1 to 10"
            )
        images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
        return images, (labels % 10).astype(np.int32)
