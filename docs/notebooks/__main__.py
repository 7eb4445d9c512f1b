"""Notebooks with outputs, from the sources of this folder.

    python -m docs.notebooks        # all of them, into build/notebooks
    python -m docs.notebooks 3 4    # some, by their numbers

A source is a Python script in jupytext's percent format: `# %% [markdown]` begins a cell of text,
`# %%` one of code. It becomes a notebook and is executed, cell after cell, in a fresh kernel; an
assertion that fails ends with exit code 1 and the cell's traceback. It needs the extra `notebooks`.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "notebooks"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
NO_ADDRESS = 'REPOSITORY = ""'  # in the install cell
LONGEST = 600  # seconds of a cell
AT_ONCE = 2  # notebooks: much of the time XLA compiles, on one processor


def sources() -> list[pathlib.Path]:
    """The sources of the notebooks, in the order of the chapters."""
    return sorted(pathlib.Path(__file__).parent.glob("[0-9]*_*.py"))


def public_address(origin: str) -> str:
    """The https address of a repository from that of its remote, without a user's name or token;
    "" where there is none."""
    match = re.fullmatch(r"(?:https://(?:[^/@]*@)?|git@|ssh://git@)([\w.-]+)[:/](.+)", origin)
    return f"https://{match[1]}/{match[2]}" if match else ""


def origin() -> str:
    """The address of the repository that this checkout is from; "" where there is none."""
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return ""
    return public_address(output.stdout.strip())


def as_seen_from_build(markdown: str) -> str:
    """Markdown whose links lead from build/notebooks to what they led to from docs/notebooks."""
    markdown = re.sub(r"\]\((\d_\w+)\.py\)", r"](\1.ipynb)", markdown)
    return re.sub(r"\]\(\.\./(?!\.\./)", "](../../docs/", markdown)


def digest(source: pathlib.Path) -> str:
    """What tells one version of a source from another."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def notebook(source: pathlib.Path, address: str = "", built: bool = True) -> Any:
    """The notebook of a source, without outputs.

    Args:
      address: of the repository, for the cell that installs the project on a fresh machine.
      built: whether its links are to lead on from build/notebooks, in place of the source's folder.
    """
    import jupytext

    book = jupytext.read(source, fmt="py:percent")
    book.metadata = {
        "kernelspec": KERNEL,
        "language_info": {"name": "python"},
        "source_sha256": digest(source),
    }
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = as_seen_from_build(cell.source) if built else cell.source
        elif address:
            cell.source = cell.source.replace(NO_ADDRESS, f'REPOSITORY = "{address}"')
    return book


def executed(source: pathlib.Path, folder: pathlib.Path) -> Any | None:
    """The notebook with outputs that `execute` wrote of this very source; None: there is none."""
    import nbformat

    path = folder / f"{source.stem}.ipynb"
    if not path.is_file():
        return None
    book = nbformat.read(path, as_version=4)
    return book if book.metadata.get("source_sha256") == digest(source) else None


def execute(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes the notebook of a source, with its outputs, into a folder.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbclient
    import nbformat
    from traitlets.config import Config

    book = notebook(source, origin())
    with tempfile.TemporaryDirectory() as sockets:  # which no other user can open, unlike ports
        transport = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        client = nbclient.NotebookClient(
            book,
            timeout=LONGEST,
            kernel_name=KERNEL["name"],
            resources={"metadata": {"path": folder}},
            config=Config({"ConnectionFileMixin": transport}),
        )
        client.execute()
    path = folder / f"{source.stem}.ipynb"
    nbformat.write(book, path)
    return path


def main(numbers: list[str]) -> int:
    """Executes the notebooks of these numbers, all if there are none; returns the exit code."""
    chosen = [path for path in sources() if not numbers or path.name.partition("_")[0] in numbers]
    unknown = set(numbers) - {path.name.partition("_")[0] for path in chosen}
    if unknown:
        there = ", ".join(path.name.partition("_")[0] for path in sources())
        print(
            f"error: no notebook {', '.join(sorted(unknown))}; there are {there}", file=sys.stderr
        )
        return 2
    try:
        import nbclient
    except ImportError:
        print("error: notebooks need an extra: pip install -e '.[notebooks]'", file=sys.stderr)
        return 1
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.pop("MPLBACKEND", None)  # the kernel's own keeps the pictures
    FOLDER.mkdir(parents=True, exist_ok=True)

    def timed(source: pathlib.Path) -> str:
        start = time.perf_counter()
        try:
            path = execute(source, FOLDER)
        except nbclient.exceptions.CellExecutionError as error:
            return f"error: {source.relative_to(ROOT)}: {error}"
        return f"{path.relative_to(ROOT)}  {time.perf_counter() - start:.0f} s"

    code = 0
    with concurrent.futures.ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        for line in pool.map(timed, chosen):
            failed = line.startswith("error: ")
            print(line, file=sys.stderr if failed else sys.stdout, flush=True)
            code |= failed
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
