"""The pages: what they link to, show, name and command is there."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict
from PIL import Image

import main
from configs import schema
from docs import example, house
from tests import tiny
from tests.test_layers import FLOORS
from tests.test_training import use_devices
from training import loop

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "notebooks" / "README.md"]
WRITTEN = {"build", "runs"}  # by commands of the docs
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."} - WRITTEN


def on_every_page(test: object) -> object:
    """Runs the test once for each page."""
    names = [str(page.relative_to(ROOT)) for page in PAGES]
    return pytest.mark.parametrize("page", PAGES, ids=names)(test)


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words of every `python main.py ...` of a page, in code blocks and in backticks."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    text = re.sub(r"<[^>\n]*>", "X", text)  # placeholders
    lines = re.findall(r"python (main\.py [^\n`]*)", text)
    return [shlex.split(line, comments=True) for line in lines]


def fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


FIELDS = set(fields(schema.base()))


def test_there_are_pages_and_commands() -> None:
    assert len(PAGES) > 10
    assert sum(len(commands(page)) for page in PAGES) > 30


@on_every_page
def test_every_link_leads_somewhere(page: pathlib.Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}"


def test_every_picture_is_shown_on_some_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert f"pictures/{picture.name}" in text, f"{picture.name} is on no page"


@on_every_page
def test_every_option_is_a_field_of_the_schema(page: pathlib.Path) -> None:
    for name in re.findall(r"--config\.(\w+(?:\.\w+)*)", page.read_text()):
        asked = name.removesuffix("help").removesuffix(".")  # of --config.help, --config.data.help
        known = name in FIELDS or (asked != name and asked in ("", *schema.SECTIONS, *FIELDS))
        assert name == "a.b" or known, f"{page.name} has --config.{name}"


@on_every_page
def test_every_field_in_backticks_is_a_field_of_the_schema(page: pathlib.Path) -> None:
    """`training.sde`, that is. `sampling` and `data` are left out, being modules as well."""
    others = {"model.safetensors"}  # a file
    others |= {"training.continuouse", "training.loss", "model.sigma_begin"}  # official
    sections = {name for name, value in schema.base().items() if isinstance(value, ConfigDict)}
    for section, field in re.findall(r"`(\w+)\.(\w+)(?:=[^`]*)?`", page.read_text()):
        name = f"{section}.{field}"
        if section in sections - {"sampling", "data"} and field != "py":
            assert name in FIELDS | others, f"{page.name} has {name}"


@on_every_page
def test_every_path_in_backticks_exists(page: pathlib.Path) -> None:
    """Paths from the root, and names of files at the root, or of a config in `configs/`."""
    files = {path.name for folder in TOP for path in (ROOT / folder).rglob("*.py")}
    files |= {path.name for path in ROOT.glob("*.py")}
    for token in re.findall(r"`([\w./-]+)`", page.read_text()):
        if token.partition("/")[0] in TOP and "/" in token:
            assert (ROOT / token).exists(), f"{page.name} names {token}"
        elif token.endswith(".py") and "/" not in token:
            assert token in files | {"config.py"}, f"{page.name} names {token}"
        elif token.endswith(".py") and not token.startswith("runs/"):
            assert (ROOT / "configs" / token).exists(), f"{page.name} names {token}"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=f"{page.stem}: {' '.join(command)[8:90]}")
        for page in PAGES
        for command in commands(page)
    ],
)
def test_every_command_parses(
    command: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flags are known, the config is there, every override has the type of its field."""
    monkeypatch.chdir(ROOT)
    placeholders = {
        "--config=C": "--config=configs/quickstart.py",
        "--config=W/config.py": "--config=configs/quickstart.py",
        "--config=...": "--config=configs/quickstart.py",
        "--config.model.sigma_max=...": "--config.model.sigma_max=50.5",
    }
    argv = [placeholders.get(word, word) for word in command]
    if argv[1:] in (["--help"], ["..."]):
        return
    with flagsaver.flagsaver():
        monkeypatch.setattr("sys.argv", argv)  # ml_collections finds the overrides there
        flags.FLAGS.unparse_flags()
        if any(word == "--version" or word.endswith(".help") for word in argv):
            with pytest.raises(SystemExit) as answered:
                main.parse_flags(argv)
            assert answered.value.code == 0
            return
        main.parse_flags(argv)
        assert flags.FLAGS.mode in main.MODES


def table_rows(page: pathlib.Path, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, its own head left out."""
    text = page.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize(
    "row",
    table_rows(ROOT / "CONTRIBUTING.md", "How to add"),
    ids=lambda row: row[0].removeprefix("| "),
)
def test_what_one_adds_to_is_defined_where_contributing_says(row: list[str]) -> None:
    """The tables that a row names (`SDES`) are defined in the files that it names."""
    _, where, how = row
    paths = [ROOT / path for path in re.findall(r"`([\w./]+)`", where + how) if "/" in path]
    paths += [ROOT / path for path in re.findall(r"`(\w+\.py)`", where)]
    sources = [path for path in paths if path.suffix == ".py"]
    sources += [source for path in paths if path.is_dir() for source in path.glob("*.py")]
    text = "\n".join(source.read_text() for source in sources)
    for name in re.findall(r"`([A-Z]{3,}(?:_[A-Z]+)*)`", how):
        assert re.search(rf"^(class )?{name}\b", text, re.MULTILINE), (
            f"{where} does not define {name}"
        )


def test_the_picture_of_the_house_shows_its_floors() -> None:
    """If this fails: `python -m docs.house`."""
    assert set(house.ROOMS) == set().union(*FLOORS)
    with Image.open(house.PICTURE) as picture:
        assert picture.info["Description"] == house.floors_as_text()


@pytest.mark.slow
def test_the_example_measures_what_evaluation_measures(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The one page of docs/example.py, on a tiny run: a grid of samples, and the same bits/dim."""
    use_devices(monkeypatch, 1)
    loop.train(tiny.config(), tmp_path)
    bits = example.main(tmp_path, num_samples=4, num_images=4)
    with Image.open(tmp_path / "example.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * (8 * 63 + 2) + 2,) * 2  # two by two images of 8 x 8
    assert pixels[2:506, 2:506].std() > 0
    code, lines = tiny.run(
        capsys,
        *tiny.arguments(tmp_path, "eval"),
        "--config.eval.enable_sampling=False",
        "--config.eval.enable_loss=False",
    )
    assert code == 0, lines
    stored = np.load(tmp_path / "eval" / "bits_per_dim.npz")["bits"]
    np.testing.assert_allclose(bits, stored, rtol=1e-4)
