"""Files of images: which are read, how they become arrays of one shape, and what is refused.

Files come from strangers: only formats that Pillow decodes by itself are opened, never one that
another program (Ghostscript) would interpret; what is not a regular file is not opened at all.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import stat
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from absl import logging
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from configs.names import lookup, printable
from data import depth

Shape = tuple[int, ...]
Warn = Callable[[str, str], None]  # of a kind of flaw, by a line that names the file
T = TypeVar("T")

_RASTERS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI",
    "SUN", "TGA", "TIFF", "WEBP",
)  # fmt: skip
SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if kind in _RASTERS and suffix != ".pfm"  # floats without a range
)
FORMATS = tuple(kind for kind in _RASTERS if kind in Image.OPEN)  # the one for JPEG opens MPO too
NONE = "none"  # instead of a method of resampling
METHODS = {  # Pillow widens their kernels where a picture shrinks: no pixel is passed over
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    NONE: Image.Resampling.LANCZOS,
}
MANY = 2**25  # pixels; larger images are decoded one at a time, so that memory stays bounded
PACKED = 10_000  # pixels that a byte of a larger image's file may stand for, generously
MANY_RUNS, RUN = 2**20, 255  # the same for a BMP file in runs, which Pillow unpacks in Python
IN_MEMORY = 2**26  # bytes; smaller files are read at once, which threads do side by side
one_large: Any = threading.Lock()  # a context of the threads, or of processes (`data.processes`)
_one_parser = threading.Lock()  # warnings are caught for all threads alike

_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # among what Pillow tells
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class WrongSize(ValueError):
    """A picture that has not the pixels that are wanted."""


class Content(NamedTuple):
    """What is in a file, where that is in memory already.

    Attributes:
      name: as messages show it, "photos.zip: cats/1.png".
      data: all of its bytes.
    """

    name: str
    data: bytes


File = str | os.PathLike[str] | Content


def shown(path: File) -> str:
    """A path as messages show it."""
    return printable(path.name if isinstance(path, Content) else os.fspath(path))


def first_line(error: Exception) -> str:
    """What an error of somebody else's library says first, or its kind if it says nothing."""
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """What it says last, where that is the reason; 200 letters at most."""
    return _lines(error)[-1][:200]


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def warn_always(kind: str, line: str) -> None:
    """Warns of every flaw."""
    del kind
    logging.warning("%s", line)


def read_image(
    path: File, shape: Shape, warn: Warn = warn_always, crop: int = 0, method: str = "lanczos"
) -> np.ndarray:
    """The image in a file, `fitted` to `shape` and turned upright as its EXIF data say.

    Args:
      crop, method: see `fitted`.

    Raises:
      ValueError: a file that cannot be read; names it and says why.
    """

    def make(picture: Image.Image, flaw: Warn) -> np.ndarray:
        if not crop and method != NONE:
            picture.draft(None, (2 * shape[0], 2 * shape[1]))  # large JPEG files decode reduced
        deep = depth.is_deep(picture)
        stated = depth.stated_white(picture, functools.partial(opened, path))
        with one_large if picture.width * picture.height > MANY else contextlib.nullcontext():
            picture.load()
            white = depth.white(picture, stated, flaw) if deep else depth.WHITE
            if picture.mode == "I" and picture.format == "PPM":  # Pillow scales these to 16 bits
                picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
            return fitted(upright(picture, flaw), shape, white, crop, method)

    try:
        return decoded(path, make, warn)
    except WrongSize as error:
        raise ValueError(f"{shown(path)} {error}") from error
    except ValueError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error}") from error


def decoded(path: File, make: Callable[[Image.Image, Warn], T], warn: Warn = warn_always) -> T:
    """What `make` makes of the opened picture in a file, where the file's metadata allow or not.

    A PNG file that fails is tried again without the chunks that say nothing about its pixels:
    texts that are too long when unpacked, damaged or unknown ones.

    Args:
      make: it gets the picture, not yet loaded, and where to tell of flaws.

    Raises:
      ValueError: no such file, or one that cannot be decoded; says why without naming it.
    """
    regular(path)

    def flaw(kind: str, what: str) -> None:
        warn(kind, f"{shown(path)} {what}")

    def attempt(file: IO[bytes]) -> T:
        with _warnings_as(flaw):
            lazy = Image.open(file, formats=FORMATS)
            if lazy.format == "TIFF":  # parsed while it is loaded; others when `upright` asks
                with contextlib.suppress(Exception):  # of which `upright` tells
                    lazy.getexif()
        with lazy as picture:
            _check_extent(picture, path)
            return make(picture, flaw)

    try:
        with opened(path) as file:  # by its name, Pillow maps it, and then turns no grey TIFF
            small = not isinstance(path, Content) and _size(path) <= IN_MEMORY
            return attempt(io.BytesIO(file.read()) if small else file)
    except WrongSize:
        raise
    except Exception as error:  # Pillow's decoders each have their own
        reason = _reason(error)
        if isinstance(error, UnidentifiedImageError):
            reason += f", but {_beginning(path)}"
        pixels = pixels_of_png(path)
        if pixels is not None:
            with contextlib.suppress(Exception):  # damaged pixels: the first error says so
                result = attempt(io.BytesIO(pixels))
                flaw("metadata", f"has broken metadata, which is left out ({reason})")
                return result
        raise ValueError(reason) from error


def _check_extent(picture: Image.Image, path: File) -> None:
    """Refuses a picture that has not been loaded and declares more pixels than its file can hold.

    Raises:
      ValueError: it does.
    """
    count = picture.width * picture.height
    runs = any(tile[0] == "bmp_rle" for tile in getattr(picture, "tile", ()))
    few, packed = (MANY_RUNS, RUN) if runs else (MANY, PACKED)
    if count > few and count > packed * _size(path):
        raise ValueError(f"it declares {count} pixels in a file of {_size(path)} bytes")


def _reason(error: Exception) -> str:
    """Why a picture cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known kind"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"a picture has up to {most} pixels, and it has more"
    return first_line(error)


def opened(path: File) -> IO[bytes]:
    """A file's bytes, open to be read."""
    return io.BytesIO(path.data) if isinstance(path, Content) else open(path, "rb")


def _size(path: File) -> int:
    return len(path.data) if isinstance(path, Content) else os.path.getsize(path)


def _beginning(path: File) -> str:
    """What a file is, by its first bytes."""
    with opened(path) as file:
        head = file.read(24)
    if not head:
        return "empty"
    text = head.decode(errors="replace").rstrip("\ufffd").strip()  # a letter may be cut
    if text and all((c.isprintable() or c.isspace()) and c != "\ufffd" for c in text):
        return f"text that begins with {text!r}"
    return f"begins with the bytes {head[:8].hex(' ')}"


def regular(path: File) -> None:
    """Refuses what is not a regular file, or a link to one: a pipe would be waited on for ever.

    Raises:
      ValueError: says what there is instead, without naming the path.
    """
    if isinstance(path, Content):
        return
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"it is {kind}, not a file")


def pixels_of_png(path: File) -> bytes | None:
    """A PNG file with the chunks that its pixels need alone; None: no such file, or all needed."""
    kept, dropped = [b"\x89PNG\r\n\x1a\n"], False
    with opened(path) as file:
        if file.read(8) != kept[0]:
            return None
        while len(head := file.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"):
                body = file.read(length + 4)
                checksum = zlib.crc32(name + body[:-4]).to_bytes(4, "big")
                if name != b"eXIf" or body[-4:] == checksum:
                    kept.append(head + body)
                    continue
            else:
                file.seek(length + 4, os.SEEK_CUR)
            dropped = True
    return b"".join(kept) if dropped else None


def upright(picture: Image.Image, flaw: Warn) -> Image.Image:
    """A loaded picture as its EXIF data say that it is to be shown, as far as they can be read."""
    if not (_EXIF & picture.info.keys()) and not hasattr(picture, "tag_v2"):
        return picture  # it has none
    turn = None
    try:
        with _warnings_as(flaw):
            turn = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # Pillow's parser has many
        flaw("metadata", f"has broken metadata, which is left out ({_reason(error)})")
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


@contextlib.contextmanager
def _warnings_as(flaw: Warn) -> Iterator[None]:
    """Tells of the first thing that Pillow warns of inside, other than of many pixels (`MANY`)."""
    with _one_parser, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    reasons = []
    for warning in caught:
        if "PIL" not in pathlib.Path(warning.filename).parts:  # another thread's
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif not issubclass(warning.category, Image.DecompressionBombWarning):
            reasons.append(" ".join(str(warning.message).split()))
    if reasons:
        flaw("metadata", f"has broken metadata, which is left out ({reasons[0]})")


def fitted(
    picture: Image.Image,
    shape: Shape,
    white: float = depth.WHITE,
    crop: int = 0,
    method: str = "lanczos",
) -> np.ndarray:
    """uint8 [S, S, C]: the middle square is resampled to S pixels, with antialiasing.

    What is transparent becomes white. C = 3: red, green, blue; C = 1: their luma (ITU-R BT.601).

    Args:
      white: the value of white where grey pixels have 16 bits.
      crop: the side of the middle square; 0: as large as the picture's shorter side.
      method: one of `METHODS`; "none": what is left has S x S pixels already.

    Raises:
      ValueError: pixels of 32 bits, whose range nothing tells; a picture smaller than `crop`, or of
        another size where it is not resized.
    """
    size, _, channels = shape
    if picture.mode.startswith("I;16"):
        grey = np.rint(np.asarray(picture).astype(np.float64) / (white / 255.0))
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode!r} have no known range; use 8 or 16 bits")
    if picture.mode == "LAB":
        picture = picture.convert("RGB")  # Pillow knows no other way out of it
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    mode = "L" if channels == 1 else "RGB"
    if picture.mode != mode:  # else it would be a copy
        picture = picture.convert(mode)
    if crop:
        width, height = picture.size
        if min(width, height) < crop:
            raise WrongSize(f"has {height}x{width} pixels, fewer than data.crop={crop}")
        left, top = (width - crop) // 2, (height - crop) // 2
        picture = picture.crop((left, top, left + crop, top + crop))
    if method == NONE and picture.size != (size, size):
        height, width = picture.height, picture.width
        raise WrongSize(f"has {height}x{width} pixels, not {size}x{size}, and is not resized")
    picture = ImageOps.fit(picture, (size, size), lookup(METHODS, method, "data.resize"))
    return np.asarray(picture).reshape(shape)
