"""Buckets (`gs://...`, `s3://...`): a path with the methods of `pathlib.Path` that a run needs.

An object is put whole or not at all, and read as it is at one moment. Folders are beginnings of
names: they need not be made, and are gone with their last object. Nothing can be appended to.

The class is not epath's own for `gs://`, which prefers TensorFlow, remembers listings, so that what
another host writes goes unseen, and is a local path to `pathlib.Path`. This one is none to anybody
who asks for one (it has no `__fspath__`), so that no folder `gs:` is ever made.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import io
import os
import pathlib
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any

from etils import epath

from runtime import errors

# The extra of pyproject.toml that has a scheme's library; memory:// ends with the process.
EXTRAS = {"gs": "gcs", "s3": "s3", "memory": ""}
PUT_EVERY = 60.0  # seconds between two puts of text that grows
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


class BucketError(OSError):
    """A bucket that cannot be reached, read or written; one line says which and why."""


@contextlib.contextmanager
def _asked(path: BucketPath, writes: bool = False) -> Iterator[None]:
    """Inside, whatever a bucket's library raises becomes an OSError that names the path."""
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        if writes and isinstance(error, FileNotFoundError):
            raise BucketError(f"{path} cannot be written: there is no such bucket") from error
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EEXIST
        raise type(error)(number, os.strerror(number), str(path)) from error
    except Exception as error:  # each library has its own
        reason = errors.one_line(error, limit=200)
        raise BucketError(f"{path} cannot be read or written: {reason}") from error


@epath.register_path_cls
@functools.total_ordering
class BucketPath:
    """An object in a bucket, or a folder: the beginning of the names of objects."""

    def __init__(self, scheme: str, key: str | pathlib.PurePosixPath) -> None:
        self.scheme, self._key = scheme, pathlib.PurePosixPath(key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self._key}"

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __lt__(self, other: BucketPath) -> bool:
        return (self.scheme, self._key) < (other.scheme, other._key)

    def __hash__(self) -> int:
        return hash(str(self))

    # --- names ---

    def __truediv__(self, name: str | os.PathLike[str]) -> BucketPath:
        return self._new(self._key / str(os.fspath(name)).lstrip("/"))

    def joinpath(self, *names: str) -> BucketPath:
        return functools.reduce(BucketPath.__truediv__, names, self)

    @property
    def name(self) -> str:
        return self._key.name

    @property
    def stem(self) -> str:
        return self._key.stem

    @property
    def suffix(self) -> str:
        return self._key.suffix

    @property
    def parent(self) -> BucketPath:
        return self._new(self._key.parent) if len(self._key.parts) > 1 else self

    def with_name(self, name: str) -> BucketPath:
        return self._new(self._key.with_name(name))

    def is_relative_to(self, other: BucketPath) -> bool:
        return self.scheme == other.scheme and self._key.is_relative_to(other._key)

    def relative_to(self, other: BucketPath) -> pathlib.PurePosixPath:
        return self._key.relative_to(other._key)

    def resolve(self) -> BucketPath:
        """The path without `..`, which does not leave the bucket."""
        return self._new(posixpath.normpath(f"/{self._key}").lstrip("/"))

    def _new(self, key: str | pathlib.PurePosixPath) -> BucketPath:
        return BucketPath(self.scheme, key)

    # --- what is there ---

    @property
    def _files(self) -> Any:
        return _filesystem(self.scheme)

    def exists(self) -> bool:
        with _asked(self):
            return bool(self._files.exists(str(self)))

    def is_file(self) -> bool:
        with _asked(self):
            return bool(self._files.isfile(str(self)))

    def is_dir(self) -> bool:
        with _asked(self):
            return bool(self._files.isdir(str(self)))

    def iterdir(self) -> Iterator[BucketPath]:
        with _asked(self):
            names = [str(name).rstrip("/") for name in self._files.ls(str(self), detail=False)]
        for name in names:
            if not f"/{name}".endswith(f"/{self._key}"):  # an empty object in the folder's place
                yield self / posixpath.basename(name)

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """The paths in the folder, none below it, whose names match."""
        if self.is_dir():
            yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    # --- reading ---

    def read_bytes(self) -> bytes:
        with _asked(self):
            return bytes(self._files.cat_file(str(self)))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The text, with every end of a line as "\\n"."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors).read()

    def open(self, mode: str = "r") -> IO[Any]:
        """The object as it is now, in a local file that ends when it is closed."""
        if mode not in ("r", "rb"):
            raise ValueError(f"{self}: objects of a bucket are put whole, not opened for {mode!r}")
        descriptor, name = tempfile.mkstemp(prefix="score-sde-")
        os.close(descriptor)
        try:
            with _asked(self):
                self._files.get_file(str(self), name)
            return open(name, mode, encoding=None if mode == "rb" else "utf-8")
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    # --- writing ---

    def put(self, file: pathlib.Path) -> None:
        """Makes the object a copy of a local file."""
        with _asked(self, writes=True):
            self._files.put_file(str(file), str(self))

    def put_all(self, folder: pathlib.Path, names: Sequence[str]) -> None:
        """Copies these files of a local folder into this one, many at a time."""
        if names:
            sources, targets = ([str(each / name) for name in names] for each in (folder, self))
            with _asked(self, writes=True):
                self._files.put(sources, targets)

    def write_bytes(self, data: bytes, new: bool = False) -> None:
        """Puts the object.

        Raises:
          FileExistsError: it is there, and is to be `new`. Of two who ask, one gets this.
        """
        with _asked(self, writes=True):
            try:
                self._files.pipe_file(str(self), data, mode="create" if new else "overwrite")
            except Exception:
                if new and self._files.exists(str(self)):
                    raise FileExistsError from None
                raise

    def require_writable(self) -> None:
        """Raises BucketError if no object can be put beside this one."""
        probe = self.with_name(f".{uuid.uuid4().hex}")
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """There is nothing to make."""

    def rmdir(self) -> None:
        """There is nothing to remove in an empty folder."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _asked(self):
                self._files.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Removes every object in the folder; none need be there."""
        with contextlib.suppress(FileNotFoundError), _asked(self):
            self._files.rm(str(self), recursive=True)

    def replace(self, target: BucketPath) -> BucketPath:
        """Gives the object another name: a copy, and then the removal."""
        with _asked(self):
            self._files.cp_file(str(self), str(target))
        self.unlink()
        return target


def is_url(text: str) -> bool:
    """Whether a text is a URL."""
    return URL.match(text) is not None


def located(url: str, what: str) -> BucketPath:
    """The path that a URL means; the bucket is not asked yet.

    Args:
      what: the flag or the config's field that says it.

    Raises:
      ValueError: no bucket, one of an unknown kind, or its library is not installed.
      OSError: its library cannot begin.
    """
    match = URL.match(url)
    assert match
    scheme, key = match[1].lower(), match[2]
    if scheme not in EXTRAS:
        kinds = ", ".join(f"{name}://" for name in EXTRAS if EXTRAS[name])
        raise ValueError(f"{what}={url}: {scheme}:// is not read; a folder, or a bucket of {kinds}")
    if not key.strip("/"):
        raise ValueError(f"{what}={url} names no bucket: {scheme}://<bucket>/<folder>")
    try:
        _filesystem(scheme)
    except ImportError as error:
        extra = f"pip install -e '.[{EXTRAS[scheme]}]'"
        reason = errors.one_line(error, limit=200)
        raise ValueError(
            f"{what}={url}: the library for {scheme}:// is not here ({reason}): {extra}"
        ) from error
    except Exception as error:  # each library has its own
        raise BucketError(
            f"{what}={url} cannot be reached: {errors.one_line(error, 200)}"
        ) from error
    return BucketPath(scheme, key.strip("/"))


@functools.cache
def _filesystem(scheme: str) -> Any:
    """What fsspec has for a scheme; listings are asked for each time, as other hosts write too."""
    import fsspec  # late: most runs have no bucket

    return fsspec.filesystem(scheme, use_listings_cache=False)


class GrowingObject:
    """Text that grows. It is kept here and put whole: when asked to, and at most once a minute when
    something is appended."""

    def __init__(self, path: BucketPath) -> None:
        self.path = path
        self._parts = [path.read_bytes()] if path.is_file() else []
        self._is_put, self._last = True, time.monotonic()

    def append(self, text: str) -> None:
        self._parts.append(text.encode())
        self._is_put = False
        if time.monotonic() - self._last >= PUT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Puts it, unless that is done."""
        if not self._is_put:
            self.path.write_bytes(b"".join(self._parts))
            self._is_put, self._last = True, time.monotonic()


class Mirror:
    """A local folder, for a library that writes to a disk only, that is copied into a bucket."""

    def __init__(self, target: BucketPath) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="score-sde-")
        self.folder, self.target = pathlib.Path(self._temporary.name), target
        self._copied: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()

    def due(self, seconds: float) -> bool:
        """True if the last copy is so old."""
        return time.monotonic() - self._last >= seconds

    def upload(self) -> None:
        """Copies the files that have changed."""
        files = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        states = {path.relative_to(self.folder).as_posix(): path.stat() for path in files}
        now = {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}
        changed = [name for name, state in now.items() if self._copied.get(name) != state]
        self.target.put_all(self.folder, changed)
        self._copied, self._last = now, time.monotonic()

    def close(self) -> None:
        """Copies what is left, and removes the folder here."""
        self.upload()
        self._temporary.cleanup()
