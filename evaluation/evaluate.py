"""Evaluation: Fréchet distance, bits per dimension and loss of a checkpoint, with their origin."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import pathlib

import ml_collections
from absl import logging

import configs
import sampling
from evaluation import batch_cache, features, follow, judge, likelihoods, samples, straightness
from evaluation.metrics import statistics
from evaluation.report import console, content, quantities
from evaluation.stored_results import GUIDE, Results, keep_earlier, other_folders, results_in
from generation import examples
from runtime import devices, errors, experiment, figures, files, hosts
from runtime.workdir import Trained, open_run, restore, results_folder, settled
from training import held_out
from training.objective import objective_from_config


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str) -> Results:
    """Evaluates one checkpoint; writes pictures and `results.json` in `<workdir>/<eval_folder>`.

    With `eval.checkpoint="range"` or `eval.samplers` it is several: see `evaluate_each`; with
    "follow" those of a run that may still train: see `evaluate_arrivals`.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a config that cannot be served, or that is not the checkpoint's; samples or
        likelihoods that failed.
    """
    results_folder(workdir, eval_folder)
    config = settled(config, workdir)
    if config.eval.checkpoint == "follow":
        return evaluate_arrivals(config, workdir, eval_folder)
    if config.eval.checkpoint == "range" or config.eval.samplers:
        return evaluate_each(config, workdir, eval_folder)
    parts = experiment.build(config)
    refuse(config, parts)
    trained = restore(config, parts, workdir)
    folder = results_folder(workdir, eval_folder)
    results = origin(config, parts, trained)
    warn_of_other_data(results)
    if config.eval.enable_loss:
        results |= loss_results(config, parts, trained, folder)
    store = store_of(folder, trained.sha256)
    if config.eval.enable_sampling:
        results |= samples.sampling_results(config, parts, trained, folder, store)
    if config.eval.enable_bpd:
        results |= likelihoods.likelihood_results(config, parts, trained, folder, store)
    if config.eval.straightness_images:
        results |= straightness.straightness_results(config.eval, config.sampling, parts, trained)
    if devices.is_primary():
        keep_earlier(folder, results)
        content.write(folder, workdir, {"": config}, {"": results})
        files.write_json(folder / "results.json", results)  # with it the evaluation is finished
        print(figures.table(console.table(results)))
        print(f"report.html, results.json and pictures are in {folder}")
    store.close()
    return results


def store_of(folder: pathlib.Path, weights: str) -> batch_cache.Store:
    """The finished batches of an evaluation of the weights with that hash, in its folder."""
    return batch_cache.Store(folder, {"weights": weights, **batch_cache.program()})


def remove_shards(
    config: ml_collections.ConfigDict, folder: pathlib.Path, finished: Results
) -> None:
    """Removes the batches of a finished evaluation that was killed before it could do so."""
    store = store_of(folder, finished["weights_sha256"])
    if not devices.of_primary(store.root.is_dir()):
        return
    parts = experiment.build(config)
    if config.eval.enable_sampling:
        samples.shards_by_seed(config, parts, store, finished.get(GUIDE, ""))
    if config.eval.enable_bpd:
        dataset = parts.dataset(config.eval.bpd_dataset)
        likelihoods.shards_of(config, parts, dataset, store)
        likelihoods.shards_of(likelihoods.with_exact_trace(config), parts, dataset, store)
    store.close()


def refuse(config: ml_collections.ConfigDict, parts: experiment.Parts) -> None:
    """Refuses what cannot be evaluated, before anything is read or drawn.

    Raises:
      ValueError: a network that cannot be sampled from, likelihoods of one that was not trained at
        all times, or metrics that cannot be computed.
    """
    options, training = config.eval, config.training
    if options.enable_bpd or options.enable_sampling:
        parts.require_samples()
        parts.require_joint()
    lack = ""
    if not training.continuous:
        lack = "with discrete labels (training.continuous is False)"
    elif training.time == "fixed":
        lack = "at one noise level (training.time is 'fixed')"
    if options.enable_bpd and lack:
        raise ValueError(
            "eval.enable_bpd is True, but the likelihood asks the network at all times, and this "
            f"one was trained {lack}"
        )
    if options.straightness_images:
        straightness.refuse(options, training, parts)
    if options.enable_bpd:
        parts.require_score()
        likelihoods.refuse(config)
    if options.enable_sampling:
        samples.refuse(config, parts)


def origin(config: ml_collections.ConfigDict, parts: experiment.Parts, trained: Trained) -> Results:
    """The entries of results.json on what the numbers are made from."""
    return {
        "step": trained.step,
        "checkpoint": config.eval.checkpoint,
        "weights": trained.label,
        "weights_sha256": trained.sha256,
        "dataset": config.data.dataset,
        "trained_on": trained.dataset or config.data.dataset,
        **other_folders(parts.dataset_folder, trained.folder),
        "examples": examples.kind_of(parts.pixels).examples,
        "seed": config.sampling.seed,
        "made_by": made_by(config),
        "program": batch_cache.program(batch_cache.EVALUATION),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "diffrax")},
    }


def made_by(config: ml_collections.ConfigDict) -> Results:
    """The settings that results depend on beside the checkpoint, as JSON gives them back: of
    section `data` those on where the images are from."""
    sections = {name: config[name].to_dict() for name in ("eval", "sampling")}
    images = config.data.to_dict().items()
    sections["data"] = {n: v for n, v in images if f"data.{n}" in experiment.SOURCE}
    del sections["data"]["cache"], sections["eval"]["follow_minutes"]  # have no effect on it
    del sections["sampling"]["num_samples"]  # is of --mode=sample; here it is eval.num_samples
    return json.loads(json.dumps(sections))


def loss_results(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    trained: Trained,
    folder: pathlib.Path,
) -> Results:
    """The loss of test images and its parts by time; draws loss_by_time.png into `folder`.

    It is left out, with a warning, where the data set is not here and nothing else that is asked
    for needs it.

    Raises:
      FileNotFoundError: the data set is not here.
    """
    loss, absence = None, ""
    try:
        objective = objective_from_config(config, parts, parts.dataset("train"))
        dataset = parts.dataset("test")
        loss = held_out.HeldOutLoss(parts, objective, config.eval.batch_size, config.seed, dataset)
    except FileNotFoundError as error:
        if needs_dataset(config, parts):
            raise
        absence = errors.one_line(error, 300)
    if not devices.on_all(loss is not None) or loss is None:
        absence = absence or "the data set is not on all hosts"
        logging.warning("the loss of test images is left out: %s", absence)
        return {"loss_left_out": absence}
    held = loss(trained.params, "loss")
    if devices.is_primary():
        held_out.save_loss_by_time(folder, held, trained.label)
    return {
        "loss": held.loss,
        "loss_images": len(held.per_image["loss"]),
        "loss_by_time": held.by_time(),
        "loss_data": dataset.facts(),
    }


def needs_dataset(config: ml_collections.ConfigDict, parts: experiment.Parts) -> bool:
    """True if what is asked for beside the loss needs the data set, or nothing else is asked for.

    Samples need none whose metrics are computed from a file of statistics alone.
    """
    options = config.eval
    if options.enable_bpd or not options.enable_sampling:
        return True
    if not (options.stats_path and features.network_of(parts, options)):
        return True
    single = any(entry.real for entry in judge.metrics_of(parts, options).values())
    return single and statistics.read(options.stats_path).features is None


def warn_of_other_data(results: Results) -> None:
    """Warns that a run is compared with another data set than the one it was trained on."""
    if quantities.other_training_data(results):
        logging.warning(
            "data.dataset is %r, and the run was trained on %r: its numbers compare with the "
            "former",
            *quantities.training_data(results),
        )


# --- several checkpoints and samplers ---

Plan = dict[str, ml_collections.ConfigDict]


def planned(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Plan:
    """The configs of all evaluations that `config` asks for, by the names of their folders.

    Checkpoints `eval.begin_ckpt` to `eval.end_ckpt`, in units of `training.snapshot_freq` steps, as
    far as they are there (if `eval.checkpoint` is "range"), times `eval.samplers`.

    Raises:
      FileNotFoundError: none of the checkpoints is there.
      ValueError: a sampler that is unknown or cannot serve the config.
    """
    configs.check(config)
    plan: Plan = {}
    for step in checkpoints(config, workdir):
        plan |= variants(config, step)
    return plan


def variants(config: ml_collections.ConfigDict, checkpoint: str) -> Plan:
    """The configs of the evaluations of one checkpoint, by the names of their folders.

    There is one for each of `eval.samplers`, a method with its number of steps ("ddim:20") or
    without. Loss and likelihood, which know no sampler, are measured with the first one only.

    Raises:
      ValueError: a sampler that is unknown or cannot serve the config.
    """
    plan: Plan = {}
    for i, sampler in enumerate(config.eval.samplers or ("",)):
        variant = with_sampler(config, sampler, first=i == 0)
        variant.eval.checkpoint = checkpoint
        sampling.from_config(variant, devices.AXIS)
        name = f"step_{checkpoint}" if checkpoint.isdecimal() else checkpoint
        plan["_".join(filter(None, [name, sampler.replace(":", "_")]))] = variant
    return plan


def checkpoints(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[str]:
    """The values of `eval.checkpoint` that a range stands for, or its own.

    Raises:
      FileNotFoundError: none of the range's checkpoints is there.
    """
    if config.eval.checkpoint != "range":
        return [config.eval.checkpoint]
    first, last = config.eval.begin_ckpt, config.eval.end_ckpt
    frequency = config.training.snapshot_freq
    run = open_run(config, workdir, training=False)
    steps = {i * frequency for i in range(first, last + 1)}
    present = run.steps_anywhere()
    stored = [str(step) for step in present if step in steps]
    if not stored:
        raise FileNotFoundError(
            f"{run.directory} has none of the checkpoints of steps "
            f"{first * frequency} to {last * frequency} (eval.begin_ckpt to end_ckpt times "
            f"training.snapshot_freq); there are {present}"
        )
    return stored


def with_sampler(
    config: ml_collections.ConfigDict, sampler: str, first: bool
) -> ml_collections.ConfigDict:
    """The config of one evaluation with a sampler of `eval.samplers`, or its own sampler for "".

    Raises:
      ValueError: a sampler that is not "method" or "method:steps".
    """
    variant = config.copy_and_resolve_references()
    variant.eval.samplers = ()
    if sampler:
        method, _, count = sampler.partition(":")
        if count and not count.isdecimal():
            raise ValueError(
                f"eval.samplers has {sampler!r}; a sampler is a method such as 'ddim', or "
                "one with its steps, 'ddim:20'"
            )
        variant.sampling.method, variant.sampling.num_steps = method, int(count or 0)
        variant.eval.enable_loss = config.eval.enable_loss and first
        variant.eval.enable_bpd = config.eval.enable_bpd and first
        variant.eval.straightness_images = config.eval.straightness_images if first else 0
    return variant


def is_finished(stored: Results, config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
    """True if the `stored` results are those that an evaluation of `config` would give.

    Results of "latest" or "best", which may be another step by now, never are. The primary process
    decides: all processes restore the weights together, or none does.
    """
    same = (
        config.eval.checkpoint.isdecimal()
        and can_be_shown(stored, config)
        and stored.get("made_by") == made_by(config)
        and stored.get("program") == batch_cache.program(batch_cache.EVALUATION)
    )
    if not devices.of_primary(same):
        return False
    then = [stored.get(name, "") for name in ("weights_sha256", GUIDE)]
    now = [weights_of(config, workdir), samples.guide_of(config)]
    return devices.of_primary(then == now)


def can_be_shown(stored: Results, config: ml_collections.ConfigDict) -> bool:
    """True if the results are of the form that a report is made of."""
    try:
        numbers = content.content({"": config}, {"": stored})["evaluations"][""]["numbers"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    values = [number[name] for number in numbers for name in ("value", "error") if name in number]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def weights_of(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> str:
    """SHA-256 of the weights that `config.eval` means."""
    return restore(config, experiment.build(config), workdir).sha256


def evaluate_each(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str
) -> Results:
    """Makes every evaluation of `planned`, each in a folder of its own, and a table of all.

    What is finished is not repeated: a `results.json` there that was made in the same way, by the
    same program, of the same weights, stands.
    """
    plan = planned(config, workdir)
    runs = {name: once(each, workdir, f"{eval_folder}/{name}") for name, each in plan.items()}
    report_all(workdir, eval_folder, plan, runs)
    return {"runs": runs}


def evaluate_arrivals(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str
) -> Results:
    """`evaluate_each` for the checkpoints of a run that trains, as they come: see `follow`.

    The table of all, with its curves over steps, is written anew before each wait.

    Raises:
      FileNotFoundError: no checkpoint came.
    """
    plan: Plan = {}
    runs: dict[str, Results] = {}
    refuse(config, experiment.build(config))
    variants(config, "latest")
    checkpoints = open_run(config, workdir, training=False)
    for steps in follow.arrivals(config.eval, config.training, workdir, checkpoints):
        for step in steps:
            of_step = variants(config, str(step))
            plan |= of_step
            runs |= {name: once(v, workdir, f"{eval_folder}/{name}") for name, v in of_step.items()}
        report_all(workdir, eval_folder, plan, runs)
    return {"runs": runs}


def once(config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str) -> Results:
    """The results in a folder of one evaluation, made unless they are there."""
    return finished(config, workdir, eval_folder) or evaluate(config, workdir, eval_folder)


def finished(config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str) -> Results:
    """The results in a folder of one evaluation; empty unless it is finished: see `is_finished`."""
    folder = workdir / eval_folder
    stored = hosts.by_primary(functools.partial(results_in, folder / "results.json"))
    if not is_finished(stored, config, workdir):
        return {}
    remove_shards(config, folder, stored)
    return stored


def report_all(
    workdir: pathlib.Path, eval_folder: str, plan: Plan, runs: dict[str, Results]
) -> None:
    """Writes the report of several evaluations, and prints their table."""
    if not devices.is_primary():
        return
    folder = workdir / eval_folder
    keep_earlier(folder, {"runs": runs})
    files.write_json(folder / "results.json", {"runs": runs})
    content.write(folder, workdir, plan, runs)
    print(figures.table(*console.comparison(runs)))
    print(f"report.html and results.json of all are in {folder}", flush=True)
