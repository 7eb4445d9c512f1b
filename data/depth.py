"""The depth of pictures whose pixels have 16 bits: which value is white.

Pillow keeps grey pixels of 16 bits as they are, and of colours the upper eight. A file with 12 bits
in 16 says so, or would come out almost black.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image

WHITE = 65535.0  # where pixels have 16 bits and nothing states that fewer are used
DARK = 2**14  # pixels of 16 bits that stay below have 14 bits or fewer


def is_deep(picture: Image.Image) -> bool:
    """True if the file has 16 bits per sample (of colours Pillow keeps the upper eight)."""
    tiles = getattr(picture, "tile", []) if picture.format in ("PNG", "TIFF") else []
    raw = str([tile[3] for tile in tiles])
    return picture.mode.startswith("I;16") or ";16" in raw


def stated_white(picture: Image.Image, opened: Callable[[], IO[bytes]]) -> int:
    """The white of the depth that a file with pixels of 16 bits states, 0: it states none.

    PNG has it in the chunk sBIT; TIFF in BitsPerSample or, as the largest value, MaxSampleValue.
    """
    bits: Any = 0
    if picture.mode.startswith("I;16") and picture.format == "PNG":
        bits = _significant_bits(opened)
    elif picture.mode.startswith("I;16") and picture.format == "TIFF":
        tags: Any = getattr(picture, "tag_v2", {})
        with contextlib.suppress(TypeError, ValueError, IndexError, OverflowError):
            depth, largest = (np.ravel(tags.get(tag, 0))[0] for tag in (258, 281))
            bits = int(depth) if 0 < depth < 16 else int(largest).bit_length()
    return 2**bits - 1 if 8 < bits < 16 else 0


def _significant_bits(opened: Callable[[], IO[bytes]]) -> int:
    """The first entry of a PNG file's chunk sBIT, 0 without one."""
    with opened() as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT" and length:
                return file.read(1)[0]
            file.seek(length + 4, os.SEEK_CUR)
    return 0


def white(picture: Image.Image, stated: int, flaw: Callable[[str, str], None]) -> float:
    """The value of white of a loaded picture with 16 bits; tells of one that becomes dark.

    The stated depth counts where all values are within it. A PNG file's values should fill the 16
    bits even so, the lower bits being zero or a copy of the upper ones: those that do are left.
    """
    if not picture.mode.startswith("I;16"):  # colours, of which Pillow dropped the lower bits
        largest = 256 * max(high for _, high in _extrema(picture))
    else:
        values = np.asarray(picture).astype(np.int64)
        largest = int(values.max(initial=0))
        if stated and largest <= stated and not _fills(values, stated.bit_length()):
            return float(stated)
    if 0 < largest < DARK:
        flaw(
            "dark",
            f"has pixels of 16 bits, the largest value is {largest} of 65535: it becomes dark; "
            "scale it, or state its depth (sBIT in PNG, MaxSampleValue in TIFF)",
        )
    return WHITE


def _fills(values: np.ndarray, bits: int) -> bool:
    """True if values of `bits` bits were shifted to 16 bits, the rest zeros or the upper bits."""
    upper = values >> (16 - bits)
    zeros, copies = upper << (16 - bits), (upper << (16 - bits)) | (upper >> (2 * bits - 16))
    return bool(np.array_equal(values, zeros) or np.array_equal(values, copies))


def _extrema(picture: Image.Image) -> list[tuple[int, int]]:
    """The smallest and the largest value of every colour, without transparency."""
    bands = picture.convert("RGB").getextrema()
    return [(int(low), int(high)) for low, high in bands]  # type: ignore[misc]
