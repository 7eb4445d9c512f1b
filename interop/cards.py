"""Published weights by name: `cards.yaml`, whose entries say where a file is and what it gave.

A card names the config in configs/ that describes its network, SDE and sampler. Its numbers are in
settings of the evaluation: "samples" by the config's own sampler, "flow" by another, and so on.

python -m interop.cards PAGE         puts their table between the two markers of a page:
python -m interop.cards docs/weights.md
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from configs import command_line, names
from configs import table as pages

FILE = pathlib.Path(__file__).with_name("cards.yaml")
BEGIN = "<!-- Made by `python -m interop.cards docs/weights.md` from interop/cards.yaml. -->"
SHIPPED = "shipped:"  # before the name of a file in interop/shipped
UNITS = {"fid": "FID", "inception_score": "IS", "bits_per_dim": "bits/dim"}
BY_HAND = {  # addresses that no program may fetch from, and why
    "https://drive.google.com/": "a folder of Google Drive has to be opened in a browser",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Published numbers of one way to sample, or of likelihoods.

    Attributes:
      numbers: by their names in results.json, {"fid": 1.79}.
      settings: overrides of the card's config, by dotted name.
      statistics: address of the statistics of the data that an FID compares with; "": one's own.
      source: where the numbers were published.
      guide: name of the card of a classifier that guides the samples; "": none.
    """

    numbers: Mapping[str, float]
    settings: Mapping[str, Any]
    statistics: str
    source: str
    guide: str = ""


NONE = Evaluation({}, {}, "", "")
# Settings of --mode=reproduce: samples are drawn, and likelihoods, which take longer, are measured
# where a card's evaluation or the user asks for them.
REPRODUCED = {"eval.enable_sampling": True, "eval.enable_bpd": False}


@dataclasses.dataclass(frozen=True)
class Card:
    """One published file of weights.

    Attributes:
      name: "edm/cifar10-cond-vp".
      address: of the file, of the folder that it is in, "hf:owner/name", or "shipped:" and the
        name of a file in interop/shipped.
      file: its name, where the address does not end with it; "": any, the only one of the folder.
      hint: which file of a folder it is, in words, where its name is not known.
      sha256: in hexadecimal digits; "": not published.
      licence: of the weights, by its SPDX name or in words; "": not stated.
      config: in configs/, without ".py".
      evaluations: by name; the first is that of `--mode=reproduce`.
    """

    name: str
    address: str
    config: str
    file: str = ""
    hint: str = ""
    sha256: str = ""
    licence: str = ""
    evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)

    @property
    def words(self) -> str:
        """What it is, in a line: the config, the published numbers, the licence."""
        parts = [f"configs/{self.config}.py", self.published("({})"), self.licence]
        return "; ".join(filter(None, parts))

    def published(self, form: str) -> str:
        """All published numbers in a line; but for those of "samples" each with the name of its
        evaluation, in the `form`."""
        return ", ".join(
            f"{UNITS.get(number, number)} {value:g}"
            + (f" {form.format(title)}" if title != "samples" else "")
            for title, evaluation in self.evaluations.items()
            for number, value in evaluation.numbers.items()
        )

    def evaluation(self, source: str) -> tuple[str, Evaluation]:
        """The evaluation that a source names after the card's name, or the first one, and its name.

        Raises:
          ValueError: there is none, or none of that name; says which there are.
        """
        wanted = split(source)[1] or next(iter(self.evaluations), "")
        if wanted in self.evaluations:
            return wanted, self.evaluations[wanted]
        if not self.evaluations:
            return "samples", NONE
        raise ValueError(
            f"--source={source}: the card {self.name} has no numbers {wanted!r}; it has "
            f"{', '.join(self.evaluations)}"
        )


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by name, in the order of the file.

    Raises:
      ValueError: an entry that is no card; says which and why.
    """
    return read(FILE.read_text())


def read(text: str) -> dict[str, Card]:
    """The cards of a YAML text: by name, and in each the fields of `Card`.

    What several share stands in an entry whose name begins with a point, as YAML's anchors.
    """
    import yaml

    content = yaml.safe_load(text)
    return {name: _card(name, entry) for name, entry in content.items() if name[0] != "."}


def _card(name: str, entry: Any) -> Card:
    if not isinstance(entry, Mapping):
        raise ValueError(f"card {name} is {type(entry).__name__}, not fields by name")
    fields = {field.name for field in dataclasses.fields(Card)} - {"name"}
    if unknown := sorted(set(entry) - fields):
        raise ValueError(
            f"card {name}: unknown {', '.join(unknown)}; a card has {', '.join(sorted(fields))}"
        )
    if lacking := [field for field in ("address", "config") if not entry.get(field)]:
        raise ValueError(f"card {name} lacks {', '.join(lacking)}")
    sha256 = str(entry.get("sha256") or "")
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"card {name}: sha256 is {sha256[:80]}, not 64 hexadecimal digits")
    evaluations = {
        title: Evaluation(
            {number: float(value) for number, value in each["numbers"].items()},
            dict(each.get("settings") or {}),
            str(each.get("statistics") or ""),
            str(each["source"]),
            str(each.get("guide") or ""),
        )
        for title, each in (entry.get("evaluations") or {}).items()
    }
    return Card(**{**entry, "name": name, "sha256": sha256, "evaluations": evaluations})


def find(source: str) -> Card | None:
    """The card of "name" or "name:evaluation", or of a repository of the hub, "hf:owner/name"; None
    if there is none."""
    return _by_source().get(split(source)[0])


def split(source: str) -> tuple[str, str]:
    """A source without the name of an evaluation after it, "name:evaluation", and that; or ""."""
    name, _, title = source.rpartition(":")
    return (name, title) if source not in _by_source() and name in _by_source() else (source, "")


def _by_source() -> dict[str, Card]:
    of_hub = {card.address: card for card in cards().values() if card.address.startswith("hf:")}
    return of_hub | cards()


def nearest(source: str) -> str:
    """ "; the nearest are ..." of a name that no card has; "" if none is near."""
    near = names.nearest(source, cards(), most=3, cutoff=0.5)
    return f" (the nearest: {', '.join(near)})" if near else ""


def by_hand(address: str) -> str:
    """Why no program may fetch from an address; "" if one may."""
    return next((why for place, why in BY_HAND.items() if address.startswith(place)), "")


def completed(
    argv: Sequence[str], root: pathlib.Path, modes: Mapping[str, command_line.Mode]
) -> list[str]:
    """The command line with what a card says of it, ahead of the user's own, so that this wins.

    The card of `--source` gives the --config, and but for --mode=import a --workdir, runs/<card>;
    for samples also the settings of the published number, and for reproduce all of its evaluation.
    The mode reproduce has settings of its own, `REPRODUCED`, with a card or without; there the
    card's hold with another --config, too.

    Args:
      root: the folder that configs/ is in.
      modes: the flags of each mode.
    """
    given = _flags(argv)
    mode, source = given.get("mode", ""), given.get("source")
    takes_source = mode in modes and "source" in (*modes[mode].required, *modes[mode].optional)
    if not takes_source or source is None:
        return list(argv)
    card = find(source)
    if card is None:
        if mode == "import" or "config" in given:
            return [argv[0], *_overrides(settings(None, source, mode)), *argv[1:]]
        if pathlib.Path(source).expanduser().exists():
            raise ValueError(
                f"--config is required: --source={source} is of no card; of a file that says "
                "itself what it is, --mode=import makes a run with a config"
            )
        raise ValueError(
            f"--source={source} is no card{nearest(source)}; docs/weights.md lists them, and "
            "other weights need --config"
        )
    more = []
    if "config" not in given:
        more.append(f"--config={root / 'configs' / card.config}.py")
    if "config" not in given or mode == "reproduce":
        more += _overrides(settings(card, source, mode))
    if "workdir" not in given and mode != "import":
        more.append(f"--workdir={pathlib.Path('runs', card.name)}")
    return [argv[0], *more, *argv[1:]]


def settings(card: Card | None, source: str, mode: str) -> Mapping[str, Any]:
    """What a mode, and the card of a source if there is one, say of the mode's config."""
    if mode == "reproduce" and card is None:
        return REPRODUCED
    if mode in ("import", "export") or card is None:
        return {}
    settings = card.evaluation(source)[1].settings
    if mode == "reproduce":
        return {**REPRODUCED, "eval.num_samples": 50000, **settings}
    return {name: value for name, value in settings.items() if name.startswith("sampling.")}


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as arguments of a command line."""
    return [f"--config.{name}={value}" for name, value in settings.items()]


def _flags(argv: Sequence[str]) -> dict[str, str]:
    """The values of flags that are texts, "--name=value" or "--name value", by name."""
    values = {}
    for argument, following in itertools.pairwise([*argv[1:], ""]):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-"):
            values[name] = value if equals else following
    return values


def table() -> str:
    """The cards in Markdown, with what of each family is held against whom."""
    import yaml

    families = yaml.safe_load(FILE.read_text())[".families"]
    header = ("`--source=`", "`configs/`", "published", "read", "network agrees", "sampler agrees")
    rows = [(*header, "number reproduced"), ("---",) * 7]
    for card in cards().values():
        is_shipped = card.address.startswith(SHIPPED)
        family = families["shipped" if is_shipped else card.name.partition("/")[0]]
        name = f"`{card.name}`" if is_shipped else f"[`{card.name}`]({_page(card.address)})"
        names = name, f"`{card.config}`", card.published("(`:{}`)")
        checks = [family[what] for what in ("read", "network", "sampler")]
        rows.append((*names, *checks, family.get("number", "file not at hand")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _page(address: str) -> str:
    """What a browser opens for an address."""
    return address.replace("hf:", "https://huggingface.co/")


def updated(page: str) -> str:
    """The page with the table between its markers."""
    return pages.replaced(page, BEGIN, table())


if __name__ == "__main__":
    path = pathlib.Path(sys.argv[1])
    path.write_text(updated(path.read_text()))
