"""`--mode=reproduce`: from a published file of weights to its published number, in one command."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

import configs
import data
from configs import schema
from evaluation import evaluate
from evaluation.report import console, published, quantities
from evaluation.stored_results import Results
from interop import cards, convert, hub
from runtime import devices, effects, errors, experiment, figures, files
from runtime.workdir import open_run

GUIDE = "guide"  # in the workdir: the run of the classifier that guides the samples
SPREAD = "two seeds of 50,000 samples differ by about 0.1 in FID"


def reproduce(config: ml_collections.ConfigDict, source: str, workdir: pathlib.Path) -> None:
    """Fetches weights, imports them, evaluates them and prints our numbers beside the published.

    Each part that is done is not done again: the same command goes on after a stop, and after its
    end prints the table from disk. What cannot be evaluated is refused before it is fetched. The
    config is
    the card's, see `cards.completed`; what `source` is without a card, `config` has to describe. A
    classifier that guides the samples is a card of its own, and is imported into a folder of the
    workdir, unless `sampling.guide` names another.

    Args:
      source: as `hub.local` takes it; "card:flow" is for other numbers than the card's first.

    Raises:
      FileNotFoundError: weights or statistics that are not here and cannot be fetched.
      ValueError: a file that is not the card's, or not of the config's network; a workdir of other
        weights; a data set of another shape; a config that cannot be served.
    """
    card = cards.find(source)
    title, evaluation = card.evaluation(source) if card else ("samples", None)
    refuse(config, evaluation)
    convert.import_once(config, source, workdir)
    if evaluation and evaluation.guide and not config.sampling.guide:
        config.sampling.guide = import_guide(evaluation.guide, workdir)
    if evaluation and config.eval.enable_sampling and not config.eval.stats_path:
        config.eval.stats_path = published_statistics(evaluation.statistics)
    warn_of_scale(config)
    folder = "eval" if title == "samples" else f"eval_{title}"
    results = measured(config, workdir, folder)
    if devices.is_primary():
        rows = comparison(results, evaluation, title, config)
        files.write_json(workdir / folder / "published.json", [list(row) for row in rows])
        print(figures.table(rows, ["number", "here", "published", "why they may differ"]))


def refuse(config: ml_collections.ConfigDict, evaluation: cards.Evaluation | None) -> None:
    """Refuses what cannot be evaluated, as far as the config and the card's evaluation tell.

    Raises:
      ValueError: see `evaluate.refuse`; or images of another shape than the data set's own, where
        it has one and is needed.
    """
    evaluate.refuse(config, experiment.build(config))
    options, images = config.eval, config.data
    statistics = options.stats_path or (evaluation and evaluation.statistics)
    if not options.enable_loss and not options.enable_bpd and statistics:
        return
    try:
        data.check_shape(
            images.dataset, images.image_size, images.num_channels, tuple(images.shape)
        )
    except ValueError as error:
        raise ValueError(
            f"{error}; images of your own are --config.data.dataset=folder "
            "--config.data.data_dir=<their folder>"
        ) from error


def warn_of_scale(config: ml_collections.ConfigDict) -> None:
    """Warns of a strength of guidance where nothing guides, now that the card's guide is there."""
    name, value = "sampling.guide_scale", config.sampling.guide_scale
    if value != schema.fields()[name].default:
        for line in effects.idle(config, "reproduce", name, value):
            logging.warning("%s", line)


def measured(config: ml_collections.ConfigDict, workdir: pathlib.Path, folder: str) -> Results:
    """The results of the evaluation in that folder, which are read where it is finished.

    The imported checkpoint is named by its step, as long as it is the only one: "latest" and "best"
    may be others by the next time. Several samplers or checkpoints are told apart by `evaluate`.
    """
    options = config.eval
    steps = open_run(config, workdir, training=False).steps_anywhere()
    if options.checkpoint == "latest" and len(steps) == 1:
        options.checkpoint = str(steps[0])
    results = {} if options.samplers else evaluate.finished(config, workdir, folder)
    if not results:
        return evaluate.evaluate(config, workdir, folder)
    if devices.is_primary():
        print(figures.table(console.table(results)))
        print(f"{workdir / folder} has these results of the same weights and settings")
    return results


def import_guide(name: str, workdir: pathlib.Path) -> str:
    """The folder in `workdir` of the classifier of that card, which is imported once."""
    card, folder = cards.cards()[name], workdir / GUIDE
    convert.import_once(configs.load(card.config), name, folder)
    return str(folder)


def published_statistics(address: str) -> str:
    """A file of the statistics that the published number compares with; "" for one's own.

    One that is not here and cannot be fetched is warned of, and one's own are used.
    """
    if not address:
        return ""
    try:
        return str(hub.local(address))
    except FileNotFoundError as error:
        logging.warning("%s; statistics of the data set itself are used until then", error)
        return ""


def comparison(
    results: Mapping[str, Any],
    evaluation: cards.Evaluation | None,
    title: str,
    config: ml_collections.ConfigDict,
) -> list[tuple[str, str, str, str]]:
    """Rows on each published number and each that is made from samples: its name, ours, the
    published one, and why the two may differ."""
    nearest = published.identify(config)
    evaluations = None if evaluation is None else {title: evaluation}
    references = published.compare(nearest, results, evaluations)
    rows = []
    for name, number in quantities.numbers(results).items():
        reference = references.get(name)
        if reference is None and name not in quantities.leading():
            continue
        text = quantities.text(number.value, number.quantity.digits, number.error)
        there = f"{reference.value:g}" if reference else ""
        rows.append((number.label, text, there, why(reference, number.quantity)))
    return rows


def why(reference: published.Published | None, quantity: quantities.Quantity) -> str:
    """Why a number may differ from the published one."""
    if reference is None:
        return "none is published"
    if reference.differences:
        return errors.abridged(reference.differences, "; ", 4)
    return SPREAD if quantity is quantities.QUANTITIES["fid"] else "chance alone"
