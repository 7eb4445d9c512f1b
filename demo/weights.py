"""The weights that the page offers: those that are part of the project, and one's own."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

import models
from configs import stored
from data import transforms
from generation import examples
from interop import cards, hub, sources
from interop.convert import import_once
from runtime import devices, experiment, lock
from runtime.arrays import fingerprint
from runtime.errors import Refused
from runtime.workdir import Trained, restore, stored_config

FIRST_IMAGES, FIRST_POINTS = 16, 2000  # examples of the test split that the page knows


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights by name, and all that belongs to them.

    Attributes:
      name: what the page calls them.
      config: of their run; nobody changes it.
      arguments: of a command line, which mean the same weights and config.
      in_run: True if they lie in the folder of a run, which `arguments` name.
      load: from the parts of the experiment to the weights, on every device.
    """

    name: str
    config: ml_collections.ConfigDict
    arguments: tuple[str, ...]
    in_run: bool
    load: Callable[[experiment.Parts], Trained]

    @functools.cached_property
    def parts(self) -> experiment.Parts:
        """The experiment that they were trained in."""
        if self.config.data.shape:
            raise ValueError(
                f"{self.name} has examples of data.shape={tuple(self.config.data.shape)}; the demo "
                "shows images and points of the plane"
            )
        return experiment.build(self.config)

    @functools.cached_property
    def trained(self) -> Trained:
        """The weights, which are read when they are first asked for."""
        return self.load(self.parts)

    @property
    def kind(self) -> examples.Kind:
        """What the network draws, images or points."""
        return examples.kind_of(self.parts.pixels)

    @functools.cached_property
    def test_examples(self) -> np.ndarray:
        """The first examples of the test split, as the data set stores them.

        Raises:
          ValueError, OSError: the data set cannot be read on this machine.
        """
        dataset = self.parts.dataset("test")
        count = FIRST_IMAGES if dataset.levels else FIRST_POINTS
        rows, _ = dataset.take(np.arange(min(count, len(dataset))))
        return np.asarray(transforms.whole_levels(rows, dataset.levels) if dataset.levels else rows)


def shipped() -> dict[str, Weights]:
    """The weights that are part of the project, by the names of their cards."""
    offered = {}
    for card in cards.cards().values():
        config = stored.load(card.config) if card.address.startswith(cards.SHIPPED) else None
        if config is None or not models.has_score(config):
            continue
        config.update_from_flattened_dict(cards.settings(card, card.name, "sample"))
        offered[card.name] = Weights(
            card.name,
            config,
            (f"--source={card.name}",),
            False,
            functools.partial(_of_card, card.name),
        )
    return offered


def _of_card(name: str, parts: experiment.Parts) -> Trained:
    """The weights of a card as `--mode=sample --source=<card>` restores them."""
    weights = sources.open_source(hub.local(name)).weights(parts.module, parts.image_shape)
    params = weights.ema or weights.params
    replicated = devices.replicate(params)
    return Trained(replicated, weights.step, "EMA weights", fingerprint(params))


def own(
    config: ml_collections.ConfigDict | None,
    source: str | None,
    workdir: pathlib.Path | None,
    arguments: Sequence[str],
) -> Weights:
    """The weights that the command line names: of a source, which is imported into the workdir, or
    of the run there.

    Args:
      arguments: the command line without the program's name.

    Raises:
      Refused: a config or a source without a workdir.
      ValueError, OSError: what cannot be imported or restored.
    """
    if workdir is None:
        given = "--config" if source is None else f"--source={source}"
        raise Refused(f"--workdir is required: {given} is of a run, whose folder is to be named")
    if source is not None:
        with lock.inside(workdir, ".", f"--mode=demo --source={source}", False):
            config = import_once(config, source, workdir)
    elif config is None:
        config = stored_config(workdir)
    words = without(arguments, ("mode", "host", "port", *(("workdir",) if source else ())))
    if not any(word.lstrip("-").startswith("config=") for word in words) and source is None:
        file = workdir / "config.py"
        if not file.is_file():
            raise Refused(f"--config is required: {workdir} is no import, which has a config.py")
        words.insert(0, f"--config={file}")
    if card := cards.find(source or ""):  # which gives the config by itself
        words = [word for word in words if word != f"--config={stored.FOLDER / card.config}.py"]
    weights = Weights(
        source or workdir.name,
        config,
        tuple(words),
        source is None,
        lambda parts: restore(config, parts, workdir),
    )
    weights.parts.require_score()
    return weights


def without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments of a command line but for some flags, "--name=value" or "--name value"."""
    words, is_value = [], False
    for word in arguments:
        name, equals, _ = word.lstrip("-").partition("=")
        is_flag = word.startswith("-")
        if is_flag and name in names:
            is_value = not equals
        elif is_flag or not is_value:
            words.append(word)
            is_value = False
        else:
            is_value = False
    return words


def offered(
    config: ml_collections.ConfigDict | None,
    source: str | None,
    workdir: pathlib.Path | None,
    arguments: Sequence[str],
) -> dict[str, Weights]:
    """All weights by name; those of the command line, if it names any, come first."""
    first = {}
    if config is not None or source is not None or workdir is not None:
        weights = own(config, source, workdir, arguments)
        first[weights.name] = weights
    return {**first, **{n: w for n, w in shipped().items() if n not in first}}
