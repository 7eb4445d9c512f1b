"""Files of weights by name: a card, an address, a repository of Hugging Face's hub, or a path.

A file that is fetched lies in `folder()`, by its card's name or its address; an interrupted
download goes on where it stopped. A file that somebody puts there by hand is as good.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import BinaryIO

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from data.builder import expanded
from interop import cards
from runtime import errors, files

HUB = "hf:"
SHIPPED = pathlib.Path(__file__).with_name("shipped")
HUB_ADDRESS = "https://huggingface.co"
REPOSITORY = rf"{HUB}\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?"
NOTE = ".verified"  # the ending of a note beside a file whose hash was compared
PATTERNS = ["*.json", "*.safetensors", "*.bin"]  # of a repository; the reader chooses
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
PIECE = 1 << 16  # bytes; of one that breaks off, nothing is kept
RESUMES = 3  # of a download that breaks off
AGAIN = 3  # times that a busy server is asked again
BUSY = (429, 502, 503)
OFFLINE = "HF_HUB_OFFLINE"  # also what Hugging Face's own library obeys


def folder() -> pathlib.Path:
    """Where weights lie that were fetched: $SCORE_SDE_WEIGHTS or ~/.cache/score_sde/weights."""
    named = os.environ.get("SCORE_SDE_WEIGHTS") or "~/.cache/score_sde/weights"
    return expanded(named, "SCORE_SDE_WEIGHTS")


def local(source: str, flag: str = "--source") -> pathlib.Path:
    """The file or folder on this machine that `source` names, which is fetched if it must be.

    Args:
      source: a path; the name of a card, "edm/cifar10-cond-vp"; "hf:owner/name[@revision]"; or
        an address, "https://...".
      flag: where it stands, for errors.

    Raises:
      FileNotFoundError: nothing of that name; or it is not here and cannot be fetched: says what
        to fetch and where to put it.
      ValueError: a file that is not the card's, by its SHA-256.
    """
    card = cards.find(source)
    if card is not None and card.address.startswith(cards.SHIPPED):
        return shipped(card)
    if card is not None:
        place = folder() / card.name
        return _fetched(card, place, f"{flag}={source}")
    if page := re.fullmatch(rf"{HUB_ADDRESS}/([\w.-]+/[\w.-]+)/?", source):
        return local(HUB + page[1], flag)
    if source.startswith(HUB) and not re.fullmatch(REPOSITORY, source):
        raise ValueError(f"{flag}={source}: a repository is {HUB}owner/name[@revision]")
    if source.startswith(HUB) or source.startswith(("https://", "http://")):
        nobodys = cards.Card(source, source, config="")
        return _fetched(nobodys, _place(source), f"{flag}={source}")
    files.refuse_url(source, flag, "copy the weights here")
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{flag}={source}: there is no such file or folder, and no card of that name"
            f"{cards.nearest(source)}; docs/weights.md lists the cards"
        )
    return path


def shipped(card: cards.Card) -> pathlib.Path:
    """The file of a card whose weights are part of this project.

    Raises:
      ValueError: it is not there, or another one, by its SHA-256.
    """
    path = SHIPPED / card.address.removeprefix(cards.SHIPPED)
    if not path.is_file() or files.sha256(path) != card.sha256:
        raise ValueError(f"{path} is not what this version ships; git checkout {path} restores it")
    return path


def _place(address: str) -> pathlib.Path:
    """The folder of a source without a card."""
    if address.startswith(HUB):
        return folder() / "hf" / address.removeprefix(HUB).replace("@", "/")
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return folder() / "https" / digest


def _fetched(card: cards.Card, place: pathlib.Path, what: str) -> pathlib.Path:
    """What a card is of, in the folder `place`, fetched only if it is not there."""
    address, name, sha256 = card.address, card.file, card.sha256
    if address.startswith(HUB):
        return _repository(address, place, what)
    by_hand = cards.by_hand(address)
    if by_hand:
        found = (path for path in place.glob(name or "*") if path.is_file())
        there = [path for path in found if path.suffix != NOTE]
        wanted = name or card.hint or "its file of weights"
        if len(there) > 1:
            raise FileNotFoundError(
                f"{what}: {place} has {len(there)} files; leave {wanted} there alone"
            )
        if not there:
            as_what = "" if name else " under any name"
            raise FileNotFoundError(
                f"{what}: {by_hand}; open {address}, fetch {wanted}, put it into {place}{as_what} "
                "and repeat the command"
            )
        target = there[0]
    else:
        name = name or pathlib.PurePosixPath(urllib.parse.urlsplit(address).path).name
        target = place / (name or "weights")
        if not target.is_file():
            try:
                download(address, target, sha256)
            except OSError as error:
                raise FileNotFoundError(
                    f"{what}: {address} could not be fetched ({reason(error)}); fetch it elsewhere "
                    f"and put it at {target}"
                ) from error
    check(target, sha256)
    return target


def check(path: pathlib.Path, sha256: str) -> None:
    """Raises ValueError unless the file has the SHA-256; nothing is asked of one without.

    The answer is kept beside the file, with its size and time of change.
    """
    if not sha256:
        return
    note = _note_of(path)
    if note.is_file() and note.read_text() == _facts(path, sha256):
        return
    found = files.sha256(path)
    if found != sha256:
        raise ValueError(
            f"{path} is not the published file: its SHA-256 is {found}, not {sha256}; remove it "
            "and fetch it again"
        )
    _note(path, sha256)


def _note(path: pathlib.Path, sha256: str) -> None:
    """Notes beside a file that this is its SHA-256."""
    with contextlib.suppress(OSError):  # a folder that can only be read: it is asked again
        files.write_text(_note_of(path), _facts(path, sha256))


def _note_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}{NOTE}")


def _facts(path: pathlib.Path, sha256: str) -> str:
    """What a note says: it is of no file of another size or time of change."""
    status = path.stat()
    return f"{sha256} {status.st_size} {status.st_mtime_ns}\n"


def download(address: str, target: pathlib.Path, sha256: str = "") -> None:
    """Fetches a file whole or not at all, with a bar of progress; goes on with what is there.

    What has come lies in `<target>.part`, and the server's mark of the version (ETag) in
    `<target>.part.version`: another version begins anew. One program at a time fetches a file; a
    second waits for it.

    Raises:
      OSError: it cannot be reached, or ends too early, `RESUMES` times in a row.
      ValueError: another SHA-256; nothing is kept.
    """
    if os.environ.get(OFFLINE, "").lower() in ("1", "true", "yes", "on"):
        raise OSError(f"{OFFLINE} is set")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with _removed_if_empty(part), part.open("ab") as file, _session() as session:
        fcntl.flock(file, fcntl.LOCK_EX)
        if target.is_file():  # another program has fetched it meanwhile
            return
        for attempt in range(RESUMES + 1):
            before = file.tell()
            try:
                _receive(session, address, file)
                break
            except requests.RequestException:
                came = file.tell() > before
                if attempt == RESUMES or not came:
                    raise
        file.flush()
        os.fsync(file.fileno())
        if sha256 and (found := files.sha256(part)) != sha256:
            part.unlink()
            _mark(part).unlink(missing_ok=True)
            raise ValueError(
                f"{address} is not the published file: its SHA-256 is {found}, not {sha256}"
            )
        part.replace(target)
        _mark(part).unlink(missing_ok=True)
        if sha256:
            _note(target, sha256)


@contextlib.contextmanager
def _removed_if_empty(part: pathlib.Path) -> Iterator[None]:
    """Leaves nothing of a download of which nothing came."""
    try:
        yield
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
            for above in (part.parent, part.parent.parent):
                with contextlib.suppress(OSError):  # it has other files
                    above.rmdir()


def _receive(session: requests.Session, address: str, file: BinaryIO) -> None:
    """Appends to `file` what it lacks of `address`, or replaces it where it is of another version.

    Raises:
      requests.RequestException: it ends before its length, or the server refuses.
    """
    part = pathlib.Path(file.name)
    have, mark = file.tell(), _mark(part)
    headers = {"Accept-Encoding": "identity"}
    if have and mark.is_file():
        headers |= {"Range": f"bytes={have}-", "If-Range": mark.read_text()}
    with session.get(address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        beyond = answer.status_code == requests.codes.requested_range_not_satisfiable
        if beyond and answer.headers.get("Content-Range", "").endswith(f"/{have}"):
            return  # it was whole
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            file.truncate(0)
            have = 0
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if tag and not tag.startswith("W/"):
            mark.write_text(tag)
        else:
            mark.unlink(missing_ok=True)
        left = answer.headers.get("Content-Length")
        total = have + int(left) if left else None
        name = part.name.removesuffix(".part")
        with (
            contextlib.suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError),
            tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True) as bar,
        ):
            for piece in answer.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))
            return
        file.flush()
        raise requests.ConnectionError(f"it broke off after {file.tell()} of {total} bytes")


def _session() -> requests.Session:
    """A session that asks again where a server is busy."""
    session = requests.Session()
    again = Retry(
        connect=0,
        read=0,
        status=AGAIN,
        backoff_factor=1,
        status_forcelist=BUSY,
        raise_on_status=False,
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=again))
    return session


def _mark(part: pathlib.Path) -> pathlib.Path:
    """The file with the version that a download is of."""
    return part.with_name(f"{part.name}.version")


def _repository(address: str, place: pathlib.Path, what: str) -> pathlib.Path:
    """A repository of Hugging Face's hub as a folder, by their library if it is not there yet."""
    name, _, revision = address.removeprefix(HUB).partition("@")
    if any((place / file).is_file() for file in ("model_index.json", "config.json")) and not any(
        place.rglob("*.incomplete")
    ):
        return place
    advice = f"fetch {HUB_ADDRESS}/{name} elsewhere and put its files into {place}"
    try:
        import huggingface_hub
    except ImportError as error:
        raise FileNotFoundError(
            f"{what}: huggingface-hub is not installed; pip install -e '.[hub]', or {advice}"
        ) from error
    try:
        huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=PATTERNS,
            local_dir=place,
        )
    except Exception as error:  # of its own kinds, of requests' and of httpx's
        raise FileNotFoundError(
            f"{what}: it could not be fetched ({reason(error)}); {advice}"
        ) from error
    return place


def reason(error: BaseException) -> str:
    """Why a download failed, in a few words."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError) and "broke off" not in str(error):
        return "no connection"
    return errors.one_line(error, limit=120)


def push(folder: pathlib.Path, target: str) -> str:
    """Uploads a folder to the repository "hf:owner/name", which is made if need be; its address.

    The token is the one of `hf auth login`, or $HF_TOKEN.

    Raises:
      ImportError: huggingface-hub is not installed.
      OSError: it cannot be reached, or refuses.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"--target={target}: huggingface-hub is not installed; pip install -e '.[hub]'"
        ) from error
    name = target.removeprefix(HUB)
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the pipeline")
    except Exception as error:  # of its own kinds, of requests' and of httpx's
        raise OSError(f"--target={target}: it was not pushed ({reason(error)})") from error
    return f"{api.endpoint}/{name}"
