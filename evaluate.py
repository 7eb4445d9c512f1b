"""Evaluation: Fréchet distance, bits per dimension and loss of a checkpoint, with their origin."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

import data
import generate
import kinds
import likelihood
import page
import parallel
import quality
import report
import reports
import sampling
import shards
import train
from metrics import frechet

Results = dict[str, Any]


def generated_batches(
    config: ml_collections.ConfigDict,
    generator: generate.Generator,
    params: Any,
    seed: int,
    folder: pathlib.Path,
    drawn: shards.Shards,
) -> Iterator[dict[str, np.ndarray]]:
    """`eval.num_samples` images, as `Generator` gives them, those in `drawn` not drawn again.

    Pictures of the first batch lie beside the shards, and are copied into `folder`.
    """
    kind, name = kinds.from_config(config), "samples"

    def compute(indices: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for numbers, batch in generator(params, indices, seed=seed):
            if numbers[0] == 0 and parallel.is_primary():
                kind.save_pictures(drawn.folder, name, batch)
            yield numbers, {field: batch[field] for field in ("image", "nfe")}

    rows = np.arange(config.eval.num_samples)
    for i, batch in enumerate(drawn.batches(rows, config.sampling.batch_size, compute)):
        if i == 0 and parallel.is_primary():
            folder.mkdir(parents=True, exist_ok=True)
            for picture in (f"{name}.png", "reverse_process.gif"):
                (folder / picture).unlink(missing_ok=True)
                if (drawn.folder / picture).is_file():
                    shutil.copyfile(drawn.folder / picture, folder / picture)
        yield batch


def sampling_results(
    config: ml_collections.ConfigDict,
    parts: train.Parts,
    trained: generate.Trained,
    folder: pathlib.Path,
    store: shards.Store,
) -> Results:
    """Judges the images of `eval.seeds` seeds: `sampling.seed` and those after it.

    The numbers are those of the first seed; "over_seeds" has each one's values, mean and standard
    deviation over all of them. Pictures of the further ones are in folders of their own.
    """
    generator = generate.Generator(config, parts)
    measure = (inception_judge if quality.uses_inception(config) else frechet_judge)(config)
    found: list[Results] = []
    seeds = [config.sampling.seed + i for i in range(config.eval.seeds)]
    for seed in seeds:
        origin = {
            name: config[name].to_dict() for name in ("data", "model", "sampling", "training")
        }
        origin["sampling"]["seed"] = seed
        drawn = store.open(config.eval.keep_samples, what="samples", config=origin)
        place = folder / f"seed_{seed}" if found else folder
        batches = generated_batches(config, generator, trained.params, seed, place, drawn)
        found.append(measure(batches) | {"sampling_seconds": drawn.seconds})
    return found[0] | (over_seeds(seeds, found) if len(found) > 1 else {})


def over_seeds(seeds: list[int], found: list[Results]) -> Results:
    """Each number of samples with its values, mean and standard deviation (n - 1) over seeds."""
    spreads: Results = {}
    for name in report.of_samples(found[0]):
        values = np.array([results[name] for results in found], float)
        spreads[name] = {
            "values": values.tolist(),
            "mean": float(values.mean()),
            "std": float(values.std(ddof=1)),
        }
    return {"over_seeds": {"seeds": seeds, **spreads}}


def frechet_judge(
    config: ml_collections.ConfigDict,
) -> Callable[[Iterator[dict[str, np.ndarray]]], Results]:
    """Compares the features of generated images with those of the training images, seen once.

    The features are those of a classifier of the data set itself; points are compared as they are,
    and by their sliced Wasserstein distance too. Beside the distance between all generated and all
    training images stand two of equal sample size: between disjoint halves of the training images
    (what a perfect generator would get), and between as many generated and training images.
    """
    kind = kinds.from_config(config)
    real, test = data.from_config(config, "train"), data.from_config(config, "test")
    extractor = kind.extractor(real, test)
    real_images, _ = real.take(np.arange(len(real)))
    expected = extractor.features(real_images)
    moments = frechet.Moments.of(expected)

    def judged(batches: Iterator[dict[str, np.ndarray]]) -> Results:
        drawn = list(batches)
        generated = np.concatenate([batch["image"] for batch in drawn])
        found = extractor.features(generated)
        size = min(len(expected) // 2, len(found))
        halves = frechet.split_distance(expected, size=size, seed=config.eval.seed)
        matched = frechet.split_distance(found, size=size, seed=config.eval.seed, other=expected)
        return {
            "frechet_distance": frechet.frechet_distance(frechet.Moments.of(found), moments),
            "frechet_distance_matched": matched.mean,
            "frechet_distance_real": halves.mean,
            "frechet_distance_real_std": halves.std,
            "frechet_distance_matched_std": matched.std,
            "frechet_samples_real": size,
            "features": extractor.label,
            "num_samples": len(generated),
            "num_train": len(real),
            "train_fingerprint": real.fingerprint,
            **kind.compare(extractor, generated, real_images, test),
            **quality.own_features(config, found, expected),
            "nfe": float(np.mean(np.concatenate([batch["nfe"] for batch in drawn]))),
        }

    return judged


def inception_judge(
    config: ml_collections.ConfigDict,
) -> Callable[[Iterator[dict[str, np.ndarray]]], Results]:
    """Judges sets of generated images by Inception, which is read once, as are its statistics."""
    judge = quality.Judge(config)

    def judged(batches: Iterator[dict[str, np.ndarray]]) -> Results:
        judge.begin()
        nfe: list[np.ndarray] = []
        for batch in batches:
            judge.add(batch["image"])
            nfe.append(batch["nfe"])
        return {**judge.results(), "nfe": float(np.mean(np.concatenate(nfe)))}

    return judged


def likelihood_results(
    config: ml_collections.ConfigDict,
    parts: train.Parts,
    trained: generate.Trained,
    folder: pathlib.Path,
    store: shards.Store,
) -> Results:
    """Bits per dimension of uniformly dequantised images: mean and standard error over images.

    An image's own value is its mean over `eval.bpd_num_repeats` draws of dequantisation noise and
    probes; `bits_per_dim.npz` in `folder` holds it with its NFE and, where `eval.bpd_bound` asks
    for it, the variational bound on the same dequantised images. Points are not dequantised, and
    theirs are nats (`nats_per_dim.npz`).

    Raises:
      ValueError: the solver gave up on an image; says which.
    """
    options = config.eval
    dataset = data.from_config(config, options.bpd_dataset)
    count = min(options.bpd_num_images or len(dataset), len(dataset))
    images, _ = dataset.take(np.arange(count))
    compute = likelihood.from_config(config)
    bound = likelihood.bound_from_config(config) if options.bpd_bound else None
    seed_key = jax.random.key(options.seed)
    kind = kinds.from_config(config)

    def bits(params: Any, indices: jax.Array, drawn: Any) -> dict[str, jax.Array]:
        images, repeats = drawn
        keys = jax.vmap(jax.random.fold_in)(parallel.image_keys(seed_key, indices), repeats)
        noise_keys, probe_keys, bound_keys = jax.vmap(lambda key: jax.random.split(key, 3), 0, 1)(
            keys
        )
        x = kind.continuous(images, noise_keys)
        score_fn = generate.score_from_params(config, parts, params)
        per_dim = functools.partial(kind.per_dim, shape=parts.image_shape)
        found = compute(parts.sde, score_fn, x, probe_keys)
        values = {kind.unit: per_dim(found.logp), "nfe": found.nfe, "ok": found.ok}
        if bound is not None:
            values["bound"] = per_dim(bound(parts.sde, score_fn, x, bound_keys))
        return values

    rows = np.arange(count * options.bpd_num_repeats)
    indices, repeats = rows % count, rows // count
    run = parallel.ImageMap(
        bits, parallel.fitting_batch(min(options.batch_size, len(rows))), "eval.batch_size"
    )

    def measured(chosen: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        asked = indices[chosen]
        yield from run(trained.params, asked, (images[asked], repeats[chosen]), f"{kind.unit}/dim")

    fields = {name: value for name, value in options.items() if name.startswith("bpd_")}
    sections = {name: config[name].to_dict() for name in ("data", "model", "training")}
    made = store.open(
        what=f"{kind.unit}/dim",
        config={**sections, "eval": {**fields, "seed": options.seed}},
        images=dataset.fingerprint,
    )
    found = list(made.batches(rows, run.batch_size, measured))
    result = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    failed = ~result.pop("ok")
    tolerances = ("eval.bpd_rtol", options.bpd_rtol), ("eval.bpd_atol", options.bpd_atol)
    generate.refuse(
        np.unique(indices[failed]),
        generate.gave_up(options.bpd_solver, result["nfe"][failed], *tolerances),
    )
    per_image = {name: value.reshape(-1, count).mean(0) for name, value in result.items()}
    name = f"{kind.unit}_per_dim"
    if parallel.is_primary():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", **per_image)
    results = {
        "likelihood_unit": kind.unit,
        name: float(per_image[kind.unit].mean()),
        f"{name}_stderr": standard_error(per_image[kind.unit]),
        f"{name}_split": options.bpd_dataset,
        f"{name}_images": count,
        f"{name}_repeats": options.bpd_num_repeats,
        f"{name}_nfe": float(per_image["nfe"].mean()),
        "likelihood_of": kind.described,
        "likelihood_seconds": made.seconds,
    }
    if "bound" in per_image:
        results |= {
            f"{name}_bound": float(per_image["bound"].mean()),
            f"{name}_bound_stderr": standard_error(per_image["bound"]),
            f"{name}_bound_draws": options.bpd_bound_draws,
        }
    return results


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values [n]; not a number if there is only one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan


def short(value: float) -> str:
    """Two decimals, or two digits of what is smaller, as distances between points are."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def table(results: Results) -> list[tuple[str, str]]:
    """The rows that are printed: every number with what it was made from."""
    rows = [("checkpoint", f"step {results['step']}, {results['weights']}, seed {results['seed']}")]
    if "frechet_distance" in results:
        size = results["frechet_samples_real"]
        rows += [
            (
                "Fréchet distance",
                f"{short(results['frechet_distance'])}  "
                f"({results['num_samples']} generated, {results['num_train']} train)",
            ),
            (
                "  generated to train",
                f"{short(results['frechet_distance_matched'])} ± "
                f"{short(results['frechet_distance_matched_std'])}  ({size} and {size}, 10 draws)",
            ),
            (
                "  train to train",
                f"{short(results['frechet_distance_real'])} ± "
                f"{short(results['frechet_distance_real_std'])}  ({size} and {size}, 10 draws)",
            ),
            ("  measured on", results["features"]),
        ]
        if "class_shares" in results:
            rows.append(("rarest class", f"{100 * min(results['class_shares']):.1f} % of samples"))
        if "sliced_wasserstein" in results:
            rows += [
                (
                    "sliced Wasserstein",
                    f"{results['sliced_wasserstein']:.4f}  (generated to train)",
                ),
                (
                    "  test to train",
                    f"{results['sliced_wasserstein_real']:.4f}  ({results['num_test']} test)",
                ),
            ]
    if "num_samples" in results:
        rows += quality.rows(results)
        rows += seed_rows(results)
        rows.append(
            (
                "evaluations",
                f"{results['nfe']:.0f} NFE per sample, {results['sampling_seconds']:.0f} s",
            )
        )
    if "likelihood_unit" in results:
        rows += likelihood_rows(results, results["likelihood_unit"])
    if "loss" in results:
        rows.append(
            (
                "loss",
                f"{results['loss']:.4f}  ({results['loss_images']} test {results['examples']})",
            )
        )
    return rows


def seed_rows(results: Results) -> list[tuple[str, str]]:
    """Those of the spread over sampling seeds."""
    spreads = dict(results.get("over_seeds", {"seeds": []}))
    seeds, known = spreads.pop("seeds"), report.found(results)
    rows = []
    for name, spread in spreads.items():
        digits = page.decimals(spread["mean"], known[name].digits)
        value = f"{spread['mean']:.{digits}f} ± {spread['std']:.{digits}f}"
        title = f"{known[name].title}, {len(seeds)} seeds"
        rows.append((title, f"{value}  (seeds {seeds[0]} to {seeds[-1]})"))
    return rows


def likelihood_rows(results: Results, unit: str) -> list[tuple[str, str]]:
    """Those of the likelihood, in bits or nats per dimension, and of its bound."""
    name = f"{unit}_per_dim"
    rows = [
        (
            f"{unit}/dim",
            f"{results[name]:.3f} ± {results[f'{name}_stderr']:.3f}  "
            f"({results[f'{name}_images']} {results[f'{name}_split']} {results['examples']}, "
            f"{results['likelihood_of']}, {results[f'{name}_nfe']:.0f} NFE, "
            f"{results['likelihood_seconds']:.0f} s)",
        )
    ]
    if f"{name}_bound" in results:
        rows.append(
            (
                "  bound",
                f"{results[f'{name}_bound']:.3f} ± {results[f'{name}_bound_stderr']:.3f}  "
                f"(variational, {results[f'{name}_bound_draws']} draws per image)",
            )
        )
    return rows


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
        generate.refuse_guides(config)
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
        quality.asked(config)  # refuses, before anything is drawn
    parts = train.build(config)
    trained = generate.restore(config, parts, workdir)
    folder = workdir / eval_folder
    results: Results = {
        "step": trained.step,
        "checkpoint": config.eval.checkpoint,
        "weights": trained.label,
        "weights_sha256": shards.fingerprint(trained.params),
        "dataset": config.data.dataset,
        "examples": kinds.from_config(config).examples,
        "seed": config.sampling.seed,
        "made_by": made_by(config),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "diffrax")},
    }
    if config.eval.enable_loss:
        with_data = train.with_data(config, parts, data.from_config(config, "train"))
        held = train.HeldOutLoss(config, with_data)(trained.params)
        by_time = held.by_time()
        results |= {
            "loss": held.loss,
            "loss_images": len(held.per_image["loss"]),
            "loss_by_time": by_time,
        }
        if parallel.is_primary():
            train.save_loss_by_time(folder, held, trained.label)
    store = shards.Store(folder, made_on(results))
    if config.eval.enable_sampling:
        results |= sampling_results(config, parts, trained, folder, store)
    if config.eval.enable_bpd:
        results |= likelihood_results(config, parts, trained, folder, store)
    if parallel.is_primary():
        reports.write_json(folder / "results.json", results)
        report.write(folder, workdir, {"": config}, {"": results})
        print(reports.table(table(results)))
        print(f"report.html, results.json and pictures are in {folder}")
    store.close()
    return results


def made_on(results: Results) -> Results:
    """What anything drawn depends on beside its config: weights, program, versions, platform."""
    return {
        "weights": results["weights_sha256"],
        "code": shards.code_fingerprint(),
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
        checkpoints = train.open_run(config, workdir)
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
            sampling.from_config(one, parallel.AXIS)
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
        if parallel.of_primary(same):
            runs[name] = finished
        else:
            runs[name] = evaluate(one, workdir, f"{eval_folder}/{name}")
    if parallel.is_primary():
        folder = workdir / eval_folder
        reports.write_json(folder / "results.json", {"runs": runs})
        report.write(folder, workdir, plan, runs)
        print(reports.table(*comparison(runs)))
        print(f"report.html and results.json of all are in {folder}")
    return {"runs": runs}


def comparison(runs: dict[str, Results]) -> tuple[list[list[Any]], list[str]]:
    """Rows and header of the table of several runs: the numbers that any of them has."""
    titles = {
        "step": "step",
        "nfe": "NFE",
        "fid": "FID",
        "frechet_distance": "Fréchet distance",
        "inception_score": "Inception Score",
        "bits_per_dim": "bits/dim",
        "loss": "loss",
    }
    names = [name for name in titles if any(name in run for run in runs.values())]
    rows = [[key, *(run.get(name, "") for name in names)] for key, run in runs.items()]
    return rows, ["evaluation", *(titles[name] for name in names)]
