"""The site: its mathematics, its pages and links, and the built pages in a browser."""

from __future__ import annotations

import ast
import base64
import functools
import http.server
import importlib
import json
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml

import controllable
import losses
import main
import sampling
import sde_lib
from configs import schema
from control import run as control_run
from data import datasets
from diffusion import grids, heun, parametrisation, times, weighting
from docs.notebooks import __main__ as notebooks
from docs.site import notation, pages, reference
from models import build
from training import optimizers

ROOT = pages.ROOT
SOURCES = notebooks.sources()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
COMING_FROM = sorted((ROOT / "docs").glob("from_*.md"))


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("sigma(t)", r"\sigma ( t )"),
        (
            "dx = f(x, t) dt + g(t) dw",
            r"\mathrm{d}x = f ( x , t ) \, \mathrm{d}t + g ( t ) \, \mathrm{d}w",
        ),
        ("p(x_t | x_0)", r"p ( x_{t} \mid x_{0} )"),
        ("N(0, sigma_min^2 I)", r"\mathcal{N} ( 0 , \sigma_{\mathrm{min}}^{2} I )"),
        ("|s - z / sigma|^2 / D", r"\lvert s - z / \sigma \rvert{}^{2} / D"),
        ("E[x_0 | x_t]", r"\mathbb{E} [ x_{0} \mid x_{t} ]"),
        ("sqrt(1 - alpha(t)^4)", r"\sqrt{1 - \alpha ( t ){}^{4}}"),
        ("x_{i-1}^2 <= 1", r"x_{i - 1}^{2} \le 1"),
        ("integral from 0 to T of div f dt.", r"\int_{0}^{T} \operatorname{div} f \, \mathrm{d}t."),
        (r"lambda <\|s\|^2> / 2", r"\lambda \langle \lvert s \rvert{}^{2} \rangle / 2"),
        ("x <- x - grad_x log p(y | x)", r"x \leftarrow x - \nabla_{x} \log p ( y \mid x )"),
    ],
)  # fmt: skip
def test_equations_become_tex(text: str, tex: str) -> None:
    assert notation.tex(text) == tex


@pytest.mark.parametrize(
    "text",
    [
        "x", "sigma_min", "t, z", "model.nf", "score_fn(x, t)", "beta_min=1", "x[0]", "a / (b",
        "--mode=train", "f(x, t) = network(x)", "nf * ch_mult[l]", "(1, 2, 2, 2)", "1e-5", "N == 1",
        "docs/train.md", "x_{i", "|s", "integral of s", "^2", "x ^", "",
    ],
)  # fmt: skip
def test_code_stays_code(text: str) -> None:
    assert notation.tex(text) is None


def test_every_equation_of_the_docstrings_is_valid_tex() -> None:
    """There are many, and the converter of TeX, which refuses what it does not know, takes each."""
    mathematics = pytest.importorskip("docs.site.mathematics", exc_type=ImportError)
    equations = set()
    for room in set(reference.ROOMS) - reference.WITHOUT_SOURCE:
        for module in reference.modules(room):
            text = "\n".join(docstrings(module))
            equations |= {
                notation.tex(" ".join(code.split())) for code in re.findall("`([^`]+)`", text)
            }
            equations |= {
                notation.tex(line) for line in re.findall(r"^ {4,}(.+)$", text, re.MULTILINE)
            }
    equations.discard(None)
    assert len(equations) > 90
    for tex in equations:
        assert mathematics.mathml(str(tex)).startswith("<math>")


def docstrings(module: str) -> Iterator[str]:
    tree = ast.parse(reference.file_of(module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def test_markdown_has_equations_beside_code() -> None:
    markdown = pytest.importorskip("markdown")
    pytest.importorskip("math_core")
    text = (
        "Noise `sigma(t)`, `network(x) < 1`, $\\alpha^2\n= 1$, and $5 or\n$6.\n\n"
        "    x_t = alpha x_0 + sigma z,    z ~ N(0, I).\n\n"
        "    x = network(t)\n\n$$\na \\le b\n$$\n"
    )
    html = markdown.Markdown(extensions=["docs.site.mathematics"]).convert(text)
    assert html.count("<math>") == 2  # in the line
    assert html.count('<math display="block">') == 2
    assert "<code>network(x) &lt; 1</code>" in html
    assert "<pre><code>x = network(t)" in html
    assert "$5 or\n$6" in html
    with pytest.raises(Exception, match="nosuchcommand"):
        markdown.Markdown(extensions=["docs.site.mathematics"]).convert("$\\nosuchcommand$")


def test_links_lead_to_the_sites_pages(tmp_path: pathlib.Path) -> None:
    site = pages.Pages()
    assert "(fields.md#training.sde)" in site.pages["from_score_sde.md"]
    assert "](index.md#two-commands)" in site.pages["evaluate.md"]
    assert "## Two commands" in site.pages["index.md"]
    assert "](source/launch/slurm.sh.md)" in site.pages["pods.md"]
    slurm = (ROOT / "launch" / "slurm.sh").read_text()
    assert slurm in site.pages["source/launch/slurm.sh.md"]
    assert "](docs/" not in site.pages["index.md"] + site.pages["CONTRIBUTING.md"]
    code = [line for line, is_code in pages.lines_and_code(site.pages["train.md"]) if is_code]
    assert any(line.startswith("    python main.py --mode=train") for line in code)
    with pytest.raises(FileNotFoundError, match=r"docs/train.md links to nowhere\.md"):
        site.link("docs/train.md", "nowhere.md")


def book(source: pathlib.Path, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """A notebook of a source as JSON, with these outputs of its second cell of code."""
    cells: list[dict[str, Any]] = []
    for mark, text in notebook_cells(source):
        kind = "markdown" if mark else "code"
        cell: dict[str, Any] = {"cell_type": kind, "source": text, "metadata": {}}
        if not mark:
            number = sum(other["cell_type"] == "code" for other in cells)
            cell |= {"execution_count": None, "outputs": outputs if number == 1 else []}
        cells.append(cell)
    metadata = {"source_sha256": notebooks.digest(source)}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}


def notebook_cells(source: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Mark and text of each cell."""
    parts = re.split(r"^# %%( \[markdown\])?\n", source.read_text(), flags=re.MULTILINE)
    for mark, text in zip(parts[1::2], parts[2::2], strict=True):
        yield mark, re.sub("^# ?", "", text, flags=re.MULTILINE) if mark else text


def test_a_notebooks_page_has_what_came_out_of_this_very_source(tmp_path: pathlib.Path) -> None:
    """Text with the site's links, what was printed, pictures; and nothing of another source."""
    pytest.importorskip("jupytext")
    rendered = pytest.importorskip("docs.site.notebooks")
    source, other = SOURCES[:2]
    png = b"\x89PNG a picture"
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": "<Figure>"}
    outputs: list[dict[str, Any]] = [
        {"output_type": "stream", "name": "stdout", "text": "10 %\r\x1b[1m100 %\x1b[0m\n"},
        {"output_type": "stream", "name": "stderr", "text": "a warning\n"},
        {"output_type": "stream", "name": "stdout", "text": "done\n"},
        {"output_type": "display_data", "data": data, "metadata": {}},
    ]
    built = tmp_path / "built"
    built.mkdir()
    (built / f"{source.stem}.ipynb").write_text(json.dumps(book(source, outputs)))
    stale = book(other, outputs) | {"metadata": {"source_sha256": "another"}}
    (built / f"{other.stem}.ipynb").write_text(json.dumps(stale))

    site = pages.Pages()
    rendered.write_pages(site, tmp_path / "pages", built)
    page = site.pages[f"notebooks/{source.stem}.md"]
    assert page.startswith("# 1. Score matching\n")
    assert "](2_noise_levels.md)" in page
    assert "```text\n100 %\ndone\n```" in page
    assert "warning" not in page
    assert "<Figure>" not in page
    assert f"]({source.stem}/1.png)" in page
    assert (tmp_path / "pages" / "notebooks" / source.stem / "1.png").read_bytes() == png
    download = tmp_path / "pages" / "notebooks" / source.stem / f"{source.stem}.ipynb"
    assert json.loads(download.read_text())["cells"]
    assert "Without outputs" not in page
    page = site.pages[f"notebooks/{other.stem}.md"]
    assert "Without outputs" in page
    assert ".png" not in page


def test_every_page_is_in_the_navigation() -> None:
    """All but the front page's source, and pages that show a file."""
    builder = pytest.importorskip("docs.site.__main__", exc_type=ImportError)
    settings = yaml.safe_load((ROOT / "docs" / "site" / "mkdocs.yml").read_text())
    builder.complete(settings["nav"])
    listed = {page for page in leaves(settings["nav"]) if not page.startswith("api/")}
    written = set(pages.site_paths().values())
    assert written <= listed
    assert listed - written == {"fields.md", "source/docs/example.py.md"}
    api = list(leaves(reference.api_navigation()))
    assert set(api) == set(reference.api_pages())
    assert len(api) == len(set(api))


def leaves(navigation: Any) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, dict):
        yield from leaves(list(navigation.values()))
    else:
        for entry in navigation:
            yield from leaves(entry)


def test_the_reference_has_every_field_and_the_modules_of_every_room() -> None:
    text = reference.fields_page()
    for name, field in schema.fields().items():
        assert f'<dt id="{name}">' in text
        assert field.words.partition(":")[0].replace("'", "&#x27;") in text
    documented = {
        name.partition(".")[0] for room in reference.ROOMS for name in reference.modules(room)
    }
    assert documented == set(reference.ROOMS)
    assert "diffusion.few_steps" in reference.modules("diffusion")
    assert "configs.schema" in reference.modules("configs")
    assert not any(name.startswith("configs.vp") for name in reference.modules("configs"))


CHOICES: dict[str, Any] = {
    "control.method": {name for task in control_run.TASKS.values() for name in task.methods},
    "control.task": control_run.TASKS,
    "data.dataset": datasets.DATASETS,
    "eval.checkpoint": {"latest", "best", "range"},
    "model.dtype": build.DTYPES,
    "model.embedding_type": {"fourier", "log_positional", "positional"},
    "model.name": build.MODELS,
    "model.prediction": parametrisation.PREDICTIONS,
    "model.progressive": {"none", "output_skip", "residual"},
    "model.progressive_input": {"none", "input_skip", "residual"},
    "optim.optimizer": optimizers.OPTIMIZERS,
    "optim.schedule": {"constant", *optimizers.SCHEDULES},
    "sampling.corrector": sampling.CORRECTORS,
    "sampling.corrector_norm": {"image", "batch"},
    "sampling.method": sampling.SAMPLERS,
    "sampling.predictor": sampling.PREDICTORS,
    "sampling.scaling": heun.SCALINGS,
    "sampling.schedule": heun.SCHEDULES,
    "sampling.time_grid": {**grids.GRIDS, **grids.NOISE_GRIDS},
    "sampling.variance": {"small", "large", "learned", "none"},
    "training.objective": {**losses.OBJECTIVES, **losses.GUIDES},
    "training.sde": sde_lib.SDES,
    "training.time": times.TIMES,
    "training.weighting": weighting.WEIGHTINGS,
}


@functools.cache
def names_of_ours() -> list[tuple[str, str]]:
    """Page and name of whatever stands in backticks right of a table's first column."""
    names = []
    for page in COMING_FROM:
        for line in page.read_text().splitlines():
            if line.startswith("|") and not line.startswith("|---"):
                cells = line.strip("|").split(" | ")[1:]
                cells = [re.sub(r"\([^()]*theirs[^()]*\)|\(`\w+`\)", "", cell) for cell in cells]
                names += [(page.stem, name) for name in re.findall("`([^`]+)`", " ".join(cells))]
    return names


def is_ours(name: str) -> bool:
    """Whether a name is a flag, a mode, a config, a field with a value it may have, or Python's."""
    field, _, value = name.partition("=")
    if name.startswith("--"):
        return field[2:] in main.FLAGS and (field != "--mode" or value in main.MODES)
    if name.startswith("configs/"):
        return (ROOT / name).is_file()
    if field in schema.fields():
        default = schema.fields()[field].default
        if not value:
            return "=" not in name
        if field in CHOICES:
            return value in CHOICES[field]
        read = ast.literal_eval(value)
        return isinstance(read, type(default)) and schema.fields()[field].rule.holds(read)
    return exists(name)


def exists(name: str) -> bool:
    """Whether `a.b.c` is a module of this project, or is found in one."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:split])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            found = importlib.import_module(".".join(parts[:split]))
            return _has(found, parts[split:])
    return False


def _has(found: Any, names: list[str]) -> bool:
    for name in names:
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def test_coming_from_is_about_three_projects() -> None:
    assert [page.stem for page in COMING_FROM] == ["from_diffusers", "from_edm", "from_score_sde"]
    assert len(names_of_ours()) > 200
    assert is_ours("sampling.method=ddim")
    assert not is_ours("sampling.method=dim")
    assert not is_ours("sampling.mehtod")
    assert not is_ours("--sauce")
    assert not is_ours("sde_lib.VPSDEs")
    assert is_ours("sde_lib.SDE.marginal_prob")
    assert controllable.__name__ == "controllable"


THEIRS = {
    *("sde-dpmsolver++", "dpmsolver", "linspace", "ScoreSdeVeScheduler", "solver_order"),
    *("hf:owner/name", "mu", "sigma"),
}


@pytest.mark.parametrize("page", [page.stem for page in COMING_FROM])
def test_every_name_of_ours_exists(page: str) -> None:
    for stem, name in names_of_ours():
        if stem == page and name not in THEIRS:
            assert is_ours(name), f"{page} has {name}"


# What is built.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of the built site, which a broken link would have stopped."""
    pytest.importorskip("zensical", reason="pip install -e '.[docs]'")
    pytest.importorskip("math_core")
    from docs.site import __main__ as program

    assert program.build() == 0
    return program.OUT / "html"


class Targets(HTMLParser):
    """What a page links to and loads, and the names of its places."""

    def __init__(self, page: pathlib.Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()
        self.from_elsewhere: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" or (tag == "a" and key == "name"):
                self.names.add(value or "")
            if key == "src" or (key == "href" and tag in ("a", "link")):
                self.targets.append(value or "")
                if tag != "a" and re.match(r"(https?:)?//", value or ""):
                    self.from_elsewhere.append(value or "")


@pytest.mark.slow
def test_every_link_and_every_file_of_the_built_site_is_there(site: pathlib.Path) -> None:
    """Nothing is loaded from elsewhere either, so the site is whole without a network."""
    found = {page: Targets(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(found) > 100
    for page, targets in found.items():
        assert targets.from_elsewhere == []
        for target in targets.targets:
            if re.match(r"https?:|mailto:|data:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            path = path / "index.html" if path.is_dir() else path
            assert path.is_file(), f"{page.relative_to(site)} has {target}"
            if anchor and path in found:
                assert anchor in found[path].names | {"__top"}, (
                    f"{page.relative_to(site)}: {target}"
                )


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def address(site: pathlib.Path) -> Iterator[str]:
    """The site on a server of this machine."""
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


def opened(browser: Any, width: int, complaints: list[str]) -> Any:
    """A tab of this width, which adds what goes wrong to `complaints`."""
    tab = browser.new_page(viewport={"width": width, "height": 844})

    def hear(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    tab.on("console", hear)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    tab.on(
        "response",
        lambda answer: (
            complaints.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None
        ),
    )
    return tab


@pytest.mark.slow
def test_a_visitor_clicks_through(browser: Any, address: str, complaints: list[str]) -> None:
    """Every entry of the top, from the front page on; pictures are drawn, nothing is reported."""
    tab = opened(browser, 1280, complaints)
    tab.goto(f"{address}/index.html")
    titles = tab.locator(".md-tabs__link").all_inner_texts()
    assert [title.strip() for title in titles] == [
        *(
            "Home",
            "Tutorials",
            "How to",
            "Demo",
            "Gallery",
            "Reproduction",
            "Coming from",
            "Reference",
            "Project",
        )
    ]
    for title in titles:
        tab.locator(".md-tabs__link", has_text=title.strip()).click()
        tab.wait_for_load_state("networkidle")
        assert tab.locator("h1").first.is_visible(), title
        broken = tab.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == [], title
    assert complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "page",
    [
        "index.html", "train.html", "gallery.html", "reproduction.html", "from_edm.html",
        "notebooks/index.html", *(f"notebooks/{source.stem}.html" for source in SOURCES),
        "fields.html", "configs.html", "objectives.html", "api/index.html", "api/sde_lib.html",
        "api/sampling.html", "source/docs/example.py.html", "CHANGELOG.html",
    ],
)  # fmt: skip
def test_a_page_fits_the_screen(
    browser: Any, address: str, page: str, width: int, complaints: list[str]
) -> None:
    """Nothing is wider than the screen but what scrolls by itself, and no picture fills it."""
    tab = opened(browser, width, complaints)
    tab.goto(f"{address}/{page}", wait_until="networkidle")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    heights = tab.evaluate("[...document.querySelectorAll('article img')].map(i => i.height)")
    assert all(height <= 0.61 * 844 for height in heights)
    assert complaints == []
    tab.close()


@pytest.mark.slow
def test_equations_are_drawn(browser: Any, address: str, complaints: list[str]) -> None:
    """By MathML in the site's own font: the root over its content, the exponent above its base."""
    tab = opened(browser, 1280, complaints)
    tab.goto(f"{address}/api/sde_lib.html", wait_until="networkidle")
    assert tab.locator("article math").count() > 30
    sizes = tab.evaluate(
        "[...document.querySelectorAll('article math')].map(m => m.getBoundingClientRect())"
        ".map(r => [r.width, r.height])"
    )
    assert all(width > 3 and height > 3 for width, height in sizes)
    assert tab.evaluate("document.fonts.check('16px Mathematics')")
    assert tab.evaluate(
        "[...document.fonts].some(f => f.family.includes('Mathematics') && f.status == 'loaded')"
    )
    base, exponent = tab.evaluate(
        "(m => [...m.children].map(c => c.getBoundingClientRect().bottom))"
        "(document.querySelector('article math msup'))"
    )
    assert exponent < base
    assert tab.locator("article math msqrt").count() > 0
    assert complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("opening", ["server", "folder"])
def test_search_finds(
    browser: Any, address: str, site: pathlib.Path, opening: str, complaints: list[str]
) -> None:
    """A field and a class, on a server and in a folder that is opened without one."""
    tab = opened(browser, 1280, complaints)
    start = address if opening == "server" else site.as_uri()
    for words, place in (
        ("label_dropout", "fields.html"),
        ("SubVPSDE", "api/sde_lib.html"),
    ):
        tab.goto(f"{start}/index.html", wait_until="networkidle")
        tab.locator(".md-search__button").click()
        tab.locator("input[role=combobox]").fill(words)
        result = tab.locator(f"a[role=option][href*='{place}']").first
        result.wait_for(timeout=100_000)  # where several share the processors
        assert words.lower() in result.inner_text().lower()
    assert complaints == []
