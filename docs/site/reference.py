"""Pages of reference: every config field, from the schema, and every module, from its docstring.

They are made when the site is built, and are nowhere else.
"""

from __future__ import annotations

import ast
import functools
import html
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from configs import rules, schema
from docs.site.pages import ROOT

# The rooms of the house that have a reference, with what lives there; in the order in which one
# meets them. The configs of `configs/` are listed on the page of configs.
ROOMS = {
    "sde_lib": "the SDEs",
    "sampling": "predictors, correctors and samplers",
    "likelihood": "likelihoods in bits per dimension",
    "losses": "objectives",
    "controllable": "guidance and in-filling",
    "diffusion": "the mathematics that they share: one idea a file",
    "models": "networks, from weights to a score",
    "data": "data sets, batches, transforms",
    "configs": "the schema of all fields, and what is checked of a config",
    "runtime": "a run's folder, checkpoints, devices, files",
    "training": "`--mode=train`",
    "generation": "`--mode=sample`",
    "evaluation": "`--mode=eval` and `stats`: metrics and the report",
    "control": "`--mode=control`: tasks, measurements, methods, guides",
    "demo": "`--mode=demo`: the page in the browser",
    "planning": "`--mode=plan`",
    "interop": "`--mode=import` and `export`",
}
WITHOUT_SOURCE = {
    "data",
    "runtime",
    "training",
    "generation",
    "evaluation",
    "planning",
    "interop",
    "demo",
}
CONFIGS = {"configs.quickstart"}  # a config, not a module to call


@functools.cache
def modules(room: str) -> list[str]:
    """Dotted names of a room's modules, its own first."""
    if (ROOT / f"{room}.py").exists():
        return [room]
    names = []
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        is_config = room == "configs" and len(parts) > 2
        if not is_config and name not in CONFIGS and ast.get_docstring(_tree(name)):
            names.append(name)
    return names


def file_of(module: str) -> pathlib.Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text())


def page_of(module: str) -> str:
    """The path of a module's page on the site; that of a module `index` is not a folder's."""
    if not _is_leaf(module):
        return _index(module)
    path = re.sub(r"/index$", "/index_module", module.replace(".", "/"))
    return f"api/{path}.md"


def _is_leaf(module: str) -> bool:
    return not ROOT.joinpath(*module.split(".")).is_dir()


def _index(package: str) -> str:
    return f"api/{package.replace('.', '/')}/index.md"


def summary(module: str) -> str:
    """The first sentence of a module's docstring."""
    return (ast.get_docstring(_tree(module)) or "").partition("\n\n")[0].replace("\n", " ")


def api_pages() -> dict[str, str]:
    """A page for each module, one for each folder, and one that lists them all."""
    pages, overview = {}, ["# API", "", "From the docstrings; equation numbers are the paper's."]
    for room, words in ROOMS.items():
        names = modules(room)
        overview += ["", f"## `{room}`", "", f"{words[0].upper()}{words[1:]}.", ""]
        for name in names:
            path = page_of(name)
            options = "    options:\n      show_source: false\n" if room in WITHOUT_SOURCE else ""
            pages[path] = f"# `{name}`\n\n::: {name}\n{options}"
            overview.append(f"- [`{name}`]({path.removeprefix('api/')}): {summary(name)}")
        folder = _index(room)
        if folder not in pages and len(names) > 1:
            pages[folder] = "\n".join(
                [f"# `{room}`", "", f"{words[0].upper()}{words[1:]}.", ""]
                + [f"- [`{name}`]({_below(name, room)}): {summary(name)}" for name in names]
            )
    return pages | {"api/index.md": "\n".join(overview)}


def _below(module: str, room: str) -> str:
    return page_of(module).removeprefix(f"api/{room}/")


def api_navigation() -> list[Any]:
    """The API's part of the navigation: rooms, and below them their modules."""
    entries: list[Any] = ["api/index.md"]
    for room in ROOMS:
        names = modules(room)
        if names == [room] and _is_leaf(room):
            entries.append({room: page_of(room)})
        else:
            below = [{name.removeprefix(f"{room}."): page_of(name)} for name in names]
            head = [] if room in names else [_index(room)]
            entries.append({room: [*head, *(page_of(room) if room in e else e for e in below)]})
    return entries


def fields_page() -> str:
    """Every field of the schema: its name, what it means, its default and what is valid."""
    parts = [
        "# Config fields",
        "Every field, from `configs/schema.py`. A config sets what is its own; on the command "
        "line `--config.training.batch_size=64` overrides it. [Official configs](configs.md) have "
        "a page of their own.",
        _fields(schema.RUN),
    ]
    for name, (words, fields) in schema.SECTIONS.items():
        parts += [f"## `{name}`", words, _fields(fields, f"{name}.")]
    return "\n\n".join(parts) + "\n"


def _fields(fields: Mapping[str, rules.Field], prefix: str = "") -> str:
    rows = []
    for name, field in fields.items():
        full = f"{prefix}{name}"
        valid = field.rule.words or f"any {type(field.default).__name__}"
        rows.append(
            f'<dt id="{full}"><a href="#{full}"><code>{full}</code></a>'
            f"<code>{html.escape(repr(field.default))}</code></dt>\n"
            f"<dd>{html.escape(field.words)} <small>{html.escape(valid)}</small></dd>"
        )
    return '<dl class="fields">\n' + "\n".join(rows) + "\n</dl>"
