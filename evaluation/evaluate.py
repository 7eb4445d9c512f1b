"""Evaluation: Fréchet distance, bits per dimension and loss of a checkpoint, with their origin."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
from typing import Any

import jax
import ml_collections

import data
import sampling
from evaluation import batch_cache, judge, likelihoods, samples
from evaluation.report import console, content
from generation import examples
from runtime import devices, experiment, figures, files
from runtime.workdir import open_run, restore
from training import held_out
from training.objective import objective_from_config

Results = dict[str, Any]


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str) -> Results:
    """Evaluates one checkpoint; writes pictures and `results.json` in `<workdir>/<eval_folder>`.

    With `eval.checkpoint="range"` or `eval.samplers` it is several: see `evaluate_each`.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a config that cannot be served, or that is not the checkpoint's; samples or
        likelihoods that failed.
    """
    if config.eval.checkpoint == "range" or config.eval.samplers:
        return evaluate_each(config, workdir, eval_folder)
    if config.eval.enable_bpd or config.eval.enable_sampling:
        experiment.refuse_guides(config)
    if config.eval.enable_bpd and not config.training.continuous:
        raise ValueError(
            "eval.enable_bpd is True, but the likelihood asks the network at all times, and this "
            "one was trained with discrete labels (training.continuous is False)"
        )
    if config.eval.enable_bpd and config.training.time == "fixed":
        raise ValueError(
            "eval.enable_bpd is True, but the likelihood asks the network at all times, and this "
            "one was trained at one noise level (training.time is 'fixed')"
        )
    if config.eval.enable_sampling:
        judge.asked(config)  # refuses, before anything is drawn
    parts = experiment.build(config)
    trained = restore(config, parts, workdir)
    folder = workdir / eval_folder
    results: Results = {
        "step": trained.step,
        "checkpoint": config.eval.checkpoint,
        "weights": trained.label,
        "weights_sha256": batch_cache.fingerprint(trained.params),
        "dataset": config.data.dataset,
        "examples": examples.from_config(config).examples,
        "seed": config.sampling.seed,
        "made_by": made_by(config),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "diffrax")},
    }
    if config.eval.enable_loss:
        objective = objective_from_config(config, parts, data.from_config(config, "train"))
        held = held_out.HeldOutLoss(config, parts, objective)(trained.params)
        by_time = held.by_time()
        results |= {
            "loss": held.loss,
            "loss_images": len(held.per_image["loss"]),
            "loss_by_time": by_time,
        }
        if devices.is_primary():
            held_out.save_loss_by_time(folder, held, trained.label)
    store = batch_cache.Store(folder, made_on(results))
    if config.eval.enable_sampling:
        results |= samples.sampling_results(config, parts, trained, folder, store)
    if config.eval.enable_bpd:
        results |= likelihoods.likelihood_results(config, parts, trained, folder, store)
    if devices.is_primary():
        files.write_json(folder / "results.json", results)
        content.write(folder, workdir, {"": config}, {"": results})
        print(figures.table(console.table(results)))
        print(f"report.html, results.json and pictures are in {folder}")
    store.close()
    return results


def made_on(results: Results) -> Results:
    """What anything drawn depends on beside its config: weights, program, versions, platform."""
    return {
        "weights": results["weights_sha256"],
        "code": batch_cache.code_fingerprint(),
        "versions": results["versions"],
        "platform": jax.default_backend(),
    }


def made_by(config: ml_collections.ConfigDict) -> Results:
    """What results depend on beside the checkpoint, as JSON gives it back."""
    sections = {name: config[name].to_dict() for name in ("eval", "sampling")}
    return json.loads(json.dumps(sections))


def planned(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, ml_collections.ConfigDict]:
    """The configs of all evaluations that `config` asks for, by the names of their folders.

    Checkpoints `eval.begin_ckpt` to `eval.end_ckpt`, in units of `training.snapshot_freq` steps, as
    far as they are there (if `eval.checkpoint` is "range"), times `eval.samplers`, each a method
    with its number of steps ("ddim:20") or without. Loss and likelihood, which know no sampler, are
    measured with the first one only.

    Raises:
      FileNotFoundError: none of the checkpoints is there.
      ValueError: a sampler that is unknown or cannot serve the config.
    """
    steps = [config.eval.checkpoint]
    if steps == ["range"]:
        first, last = config.eval.begin_ckpt, config.eval.end_ckpt
        frequency = config.training.snapshot_freq
        checkpoints = open_run(config, workdir)
        wanted = {i * frequency for i in range(first, last + 1)}
        steps = [str(step) for step in checkpoints.steps() if step in wanted]
        if not steps:
            raise FileNotFoundError(
                f"{checkpoints.directory} has none of the checkpoints of steps "
                f"{first * frequency} to {last * frequency} (eval.begin_ckpt to end_ckpt times "
                f"training.snapshot_freq); there are {checkpoints.steps()}"
            )
    plan = {}
    for step in steps:
        for i, sampler in enumerate(config.eval.samplers or ("",)):
            one = config.copy_and_resolve_references()
            one.eval.checkpoint, one.eval.samplers = step, ()
            if sampler:
                method, _, count = sampler.partition(":")
                if count and not count.isdecimal():
                    raise ValueError(
                        f"eval.samplers has {sampler!r}; a sampler is a method such as 'ddim', or "
                        "one with its steps, 'ddim:20'"
                    )
                one.sampling.method, one.sampling.num_steps = method, int(count or 0)
                one.eval.enable_loss = config.eval.enable_loss and i == 0
                one.eval.enable_bpd = config.eval.enable_bpd and i == 0
            sampling.from_config(one, devices.AXIS)
            name = f"step_{step}" if step.isdecimal() else step
            plan["_".join(filter(None, [name, sampler.replace(":", "_")]))] = one
    return plan


def evaluate_each(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, eval_folder: str
) -> Results:
    """All that `planned` says, each in a folder of its own, and a table of all.

    What is finished is not repeated: a `results.json` there that was made in the same way stands.
    """
    runs, plan = {}, planned(config, workdir)
    for name, one in plan.items():
        stored = workdir / eval_folder / name / "results.json"
        finished = json.loads(stored.read_text()) if stored.is_file() else {}
        same = finished.get("made_by") == made_by(one) and one.eval.checkpoint.isdecimal()
        if devices.of_primary(same):
            runs[name] = finished
        else:
            runs[name] = evaluate(one, workdir, f"{eval_folder}/{name}")
    if devices.is_primary():
        folder = workdir / eval_folder
        files.write_json(folder / "results.json", {"runs": runs})
        content.write(folder, workdir, plan, runs)
        print(figures.table(*console.comparison(runs)))
        print(f"report.html and results.json of all are in {folder}")
    return {"runs": runs}
