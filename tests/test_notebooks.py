"""The notebooks: their sources are scripts that run, show pictures, and check what they claim."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

from docs.notebooks import __main__ as notebooks

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = notebooks.sources()
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def cells(source: pathlib.Path) -> list[tuple[str, str]]:
    """The cells of a source: "markdown" or "code", and the lines below the marker."""
    parts = re.split(r"^# %%( \[markdown\])?\n", source.read_text(), flags=re.MULTILINE)
    assert parts[0] == "", f"{source.name} has lines before its first cell"
    kinds = ("markdown" if mark else "code" for mark in parts[1::2])
    return [(kind, text.strip("\n")) for kind, text in zip(kinds, parts[2::2], strict=True)]


def code(source: pathlib.Path) -> list[str]:
    """The code cells of a source."""
    return [text for kind, text in cells(source) if kind == "code"]


def install_cell() -> str:
    """The first code cell, which all notebooks share."""
    return code(SOURCES[0])[0]


def test_there_is_a_notebook_for_each_chapter_and_the_index_has_them() -> None:
    assert len(SOURCES) > 3
    index = (ROOT / "docs" / "notebooks" / "README.md").read_text()
    assert set(re.findall(r"\]\((\d_\w+\.py)\)", index)) == {path.name for path in SOURCES}


@every_source
def test_a_source_is_cells_of_text_and_of_code(source: pathlib.Path) -> None:
    """In the percent format, which jupytext reads: it begins with a title, and has no outputs."""
    text = source.read_text()
    markers = re.findall(r"^#\s*%%.*$", text, re.MULTILINE)
    assert set(markers) == {"# %%", "# %% [markdown]"}
    kind, title = cells(source)[0]
    assert kind == "markdown"
    assert re.match(rf"# # {source.name[0]}\. \w", title)
    for kind, text in cells(source):
        assert text, f"{source.name} has an empty cell"
        if kind == "markdown":
            assert all(line == "#" or line.startswith("# ") for line in text.splitlines())
            assert text.count("$$") % 2 == 0
            assert text.replace("$$", "").count("$") % 2 == 0
        else:
            ast.parse(text)


@every_source
def test_a_notebook_shows_pictures_and_checks_what_it_claims(source: pathlib.Path) -> None:
    blocks = code(source)
    assert blocks[0] == install_cell()
    assert sum("plt.show()" in block for block in blocks) > 2
    statements = [node for block in blocks for node in ast.walk(ast.parse(block))]
    assert sum(isinstance(node, ast.Assert) for node in statements) > 2
    names = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in statements
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not any(str(name).startswith("tests") for name in names)


@every_source
def test_links_of_a_notebook_lead_somewhere_in_the_source_and_when_built(
    source: pathlib.Path,
) -> None:
    text = "\n".join(text for kind, text in cells(source) if kind == "markdown")
    for target in re.findall(r"\]\(([^)\s#]+)\)", text):
        if not re.match(r"https?:", target):
            assert (source.parent / target).exists(), f"{source.name} links to {target}"
    built = notebooks.FOLDER / f"{source.stem}.ipynb"
    for target in re.findall(r"\]\(([^)\s#]+)\)", notebooks.as_seen_from_build(text)):
        if not re.match(r"https?:", target):
            path = (built.parent / target).resolve()
            assert path.suffix == ".ipynb" or path.exists(), f"{built.name} links to {target}"


@every_source
def test_jupytext_reads_the_cells_that_are_there(source: pathlib.Path) -> None:
    pytest.importorskip("jupytext")
    book = notebooks.notebook(source, "https://example.org/project")
    assert [cell.cell_type for cell in book.cells] == [kind for kind, _ in cells(source)]
    first = next(cell.source for cell in book.cells if cell.cell_type == "code")
    assert 'REPOSITORY = "https://example.org/project"' in first
    assert 'REPOSITORY = ""' not in first


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("https://example.org/a/project.git", "https://example.org/a/project.git"),
        ("https://user:token@example.org/a/project", "https://example.org/a/project"),
        ("git@example.org:a/project.git", "https://example.org/a/project.git"),
        ("ssh://git@example.org/a/project.git", "https://example.org/a/project.git"),
        ("/home/user/project", ""),
        ("", ""),
    ],
)
def test_the_address_in_a_notebook_is_public(origin: str, address: str) -> None:
    assert notebooks.public_address(origin) == address


def test_the_install_cell_leaves_a_machine_alone_that_has_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it would install")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr("builtins.input", refuse)
    path = list(sys.path)
    exec(compile(install_cell(), "install cell", "exec"), {})
    assert sys.path == path


@pytest.mark.slow
def test_the_install_cell_installs_the_project_on_a_fresh_machine(tmp_path: pathlib.Path) -> None:
    """In an environment that has the dependencies and not the project, from a local clone."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "origin")], check=True)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    cell = install_cell().replace('REPOSITORY = ""', f"REPOSITORY = {str(tmp_path / 'origin')!r}")
    (tmp_path / "cell.py").write_text(cell + "\nimport sde_lib; print(sde_lib.__file__)\n")
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": sysconfig.get_path("purelib"),  # whose .pth files are not read
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that there is none
    }
    output = subprocess.run(
        [environment / "bin" / "python", "cell.py"],
        cwd=tmp_path, env=settings, capture_output=True, text=True,
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    assert output.stdout.split()[-1] == str(tmp_path / "score-sde" / "sde_lib.py")
    from_anywhere = subprocess.run(
        [environment / "bin" / "python", "-c", "import sde_lib; print(sde_lib.__file__)"],
        cwd=environment, env=settings, capture_output=True, text=True,
    )  # fmt: skip
    assert from_anywhere.stdout.split() == output.stdout.split()[-1:], from_anywhere.stderr


@pytest.mark.slow
@every_source
def test_a_source_runs_as_a_script(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Elsewhere than in the checkout, of which it changes nothing, without a screen."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    output = subprocess.run(
        [sys.executable, "-W", "ignore:FigureCanvasAgg:UserWarning", str(source)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert output.returncode == 0, f"{output.stdout}\n{output.stderr}"
    assert "Warning" not in output.stderr, output.stderr
