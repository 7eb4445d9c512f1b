"""Controlled generation from the command line: what is drawn, written and refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import struct
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import data
import models
from control import latents, masks, results
from control import run as control_run
from control.problem import Guidance, Problem
from control.run import TASKS, control
from diffusion.trajectory import Samples
from evaluation.batch_cache import Store
from evaluation.metrics import fidelity
from runtime import devices, experiment
from runtime.arrays import fingerprint
from runtime.devices import replicate
from runtime.experiment import Pixels
from runtime.workdir import Trained
from tests import tiny
from tests.test_training import use_devices


def restored(config: Any, parts: experiment.Parts, workdir: pathlib.Path) -> Trained:
    """Weights that were not trained, but that look at all of the image and at its class."""
    init = functools.partial(models.init, parts.module, image_shape=parts.image_shape)
    rng = np.random.RandomState(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(x.dtype), shapes)
    return Trained(replicate(params), 7, "EMA weights", fingerprint(params))


def settings(**changes: Any) -> Any:
    """The tiny config with 2 images, 2 variants of each, and few steps; `changes` of control, or by
    their full names."""
    fields: dict[str, Any] = {
        "sampling__method": "ddim",
        "sampling__num_steps": 3,
        "sampling__num_frames": 0,
        "sampling__rtol": 1e-1,
        "sampling__atol": 1e-1,
    }
    small = {"num_images": 2, "num_variants": 2, "batch_size": 4, "jump": 2, "repeats": 2}
    for name, value in (small | changes).items():
        fields[name if "__" in name else f"control__{name}"] = value
    return tiny.config(**fields)


def run(
    workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, devices: int = 1, **changes: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    use_devices(monkeypatch, devices)
    monkeypatch.setattr(control_run, "restore", restored)
    config = settings(**changes)
    results = control(config, workdir)
    with np.load(workdir / "control" / config.control.task / "results.npz") as stored:
        return results, dict(stored)


@pytest.mark.slow
def test_in_painting_from_the_command_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known pixels are the test images' own levels; every number stands beside its settings."""
    summary, arrays = run(tmp_path, monkeypatch, mask="half")
    images, _ = data.load("digits", "test").take(np.arange(2))
    assert arrays["image"].shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(arrays["image"][:, :4], images.repeat(2, 0)[:, :4])
    assert len(np.unique(arrays["image"][:, 4:], axis=0)) == 4
    stored = json.loads((tmp_path / "control" / "inpaint" / "results.json").read_text())
    assert stored["method"] == "repaint"
    assert stored["control"]["mask"] == "half"
    assert stored["nfe"] == 3 + 2 + 1 + 1, "2 steps twice, one twice, and the last"
    assert (stored["measurement_rmse"], stored["step"]) == (0.0, 7)
    assert stored["psnr"] == pytest.approx(
        fidelity.psnr(arrays["image"], images.repeat(2, 0), 17).mean()
    )
    with Image.open(tmp_path / "control" / "inpaint" / "grid.png") as grid:
        assert grid.width > 4 * grid.height / 2, "five columns, two rows"
    assert f"PSNR {summary['psnr']:.2f} dB" in capsys.readouterr().out


CASES: list[dict[str, Any]] = [
    {"task": "inpaint", "method": "infill", "mask": "random"},
    {"task": "inpaint", "method": "posterior", "noise_std": 0.1},
    {"task": "inpaint", "method": "dps"},
    {"task": "super_resolution", "method": "infill"},
    {"task": "super_resolution", "method": "repaint"},
    {"task": "deblur", "noise_std": 0.1},
    {"task": "compressed_sensing", "method": "infill"},
    {"task": "denoise", "noise_std": 0.5},
    {"task": "interpolate"},
    {"task": "interpolate", "method": "ddim"},
    {"task": "reconstruct"},
    {"task": "sdedit"},
]
EXACT = {"infill", "repaint"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_every_task_draws_and_meets_exact_measurements(
    case: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, arrays = run(tmp_path, monkeypatch, **case)
    assert np.isfinite(arrays["x"]).all()
    assert arrays["x"].shape == arrays["image"].shape
    assert len(arrays["image"]) == {"interpolate": 2, "reconstruct": 2}.get(case["task"], 4)
    if summary["method"] in EXACT:
        assert summary["measurement_rmse"] < 1e-5 * max(1.0, np.abs(arrays["x"]).max())


@pytest.mark.slow
def test_a_variant_depends_on_its_numbers_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the other variants, the batch or the devices."""
    case: dict[str, Any] = {"task": "super_resolution", "method": "infill"}
    _, few = run(tmp_path, monkeypatch, **case)
    _, many = run(tmp_path, monkeypatch, 4, num_images=3, num_variants=3, batch_size=8, **case)
    size = np.abs(few["x"]).max()
    np.testing.assert_allclose(many["x"][[0, 1, 3, 4]], few["x"], atol=1e-4 * size)
    assert np.abs(few["x"][0] - few["x"][1]).max() > 0.1


@pytest.mark.slow
def test_official_replacement_runs_with_a_predictor(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    monkeypatch.setattr(control_run, "restore", restored)
    config = settings(method="replace", official=True)
    config.sampling.num_steps = 25
    assert control(config, tmp_path)["nfe"] == 25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "paint"}, "unknown control.task 'paint'; known: attribute, class, colorize"),
        (
            {"method": "magic"},
            "unknown control.method 'magic'; known: conditional, daps, ddnm, ddrm",
        ),
        ({"task": "colorize"}, r"needs colour: digits has 1 channel\(s\)"),
        ({"task": "denoise"}, "needs a positive control.noise_std"),
        (
            {"noise_std": 0.1},
            "noise_std=0.1 control.task='inpaint' is served by posterior, dps, pigdm",
        ),
        (
            {"task": "deblur", "method": "infill"},
            "control.method 'infill'; known: daps, .*, tmpd, twisted",
        ),
        ({"task": "super_resolution", "factor": 3}, "factor 3 does not divide"),
        ({"task": "compressed_sensing", "num_measurements": 65}, "64 entries; 65 measurements"),
        ({"task": "interpolate", "num_images": 1}, "num_images of 2 or more"),
        ({"task": "interpolate", "method": "dps"}, "'dps'; known: ddim, flow"),
        ({"task": "sdedit", "method": "dps"}, "control.method 'dps'; known: sdedit$"),
        ({"task": "sdedit", "start": 1e-4}, "start must lie in"),
        ({"official": True}, "official is a way of control.method=replace"),
        ({"num_images": 10**6}, "num_images is 1000000, but digits/test has"),
        ({"mask": "absent.png"}, "none of half, box, random, nor a picture that can be read"),
        ({"interval": (2.0, 1.0)}, "two noise levels"),
        ({"mask_share": 1.0}, "between 0 and 1"),
        ({"model__num_labels": 10}, "was told the class of every image"),
        (
            {"training__coupling": "minibatch_ot"},
            "no score for control.task='inpaint'; interpolate",
        ),
    ],
)
def test_what_cannot_be_controlled_is_refused_before_a_checkpoint_is_looked_for(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ValueError, match=message):
        control(settings(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_its_own_methods_and_one_of_them_by_default(
    task: str, tmp_path: pathlib.Path
) -> None:
    """An unknown method, or another task's, is refused with the task's own ones listed."""
    own = sorted(TASKS[task].methods)
    assert TASKS[task].default in own
    others = {name for other in TASKS.values() for name in other.methods if name not in own}
    for method in ("magic", *others):
        message = (
            f"unknown control.method '{method}'; known: {', '.join(own)}( \\(the nearest: .*\\))?$"
        )
        with pytest.raises(ValueError, match=message):
            control(settings(task=task, method=method), tmp_path)


def test_replacement_needs_a_predictor_and_points_no_picture(tmp_path: pathlib.Path) -> None:
    config = settings(method="replace")
    config.sampling.predictor = "none"
    with pytest.raises(ValueError, match=r"try --config.sampling.predictor=ancestral_sampling"):
        control(config, tmp_path)
    config = settings(method="replace")
    config.training.continuous = False
    config.control.mask = "half"
    with pytest.raises(ValueError, match="has 1000 noise levels, and 'replace' takes them all"):
        control(config, tmp_path)
    config = settings(task="reconstruct")
    config.sampling.corrector_norm = "batch"
    with pytest.raises(ValueError, match="corrector_norm must be image"):
        control(config, tmp_path)


def test_results_are_written_whole_or_not_at_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full leaves the arrays of an earlier run as they were, and nothing beside."""
    problem = Problem(lambda *_: None, {"class": np.arange(2)}, ["1"])  # type: ignore
    arrays = {"image": np.zeros((2, 8, 8, 1), np.uint8)}

    def full(path: pathlib.Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    results.write(tmp_path, problem, arrays, Pixels(17, True, True), {"psnr": float("inf")})
    stored = (tmp_path / "results.npz").read_bytes()
    assert json.loads((tmp_path / "results.json").read_text()) == {"psnr": None}
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        results.write(tmp_path, problem, arrays, Pixels(17, True, True), {})
    assert (tmp_path / "results.npz").read_bytes() == stored
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"grid.png", "results.json", "results.npz"}


def test_masks_hide_what_they_say(tmp_path: pathlib.Path) -> None:
    shape = (8, 8, 1)

    def mask(**changes: Any) -> np.ndarray:
        options = settings(**changes).control
        return masks.make_mask(options.mask, options.mask_share, options.seed, shape)[..., 0]

    half = mask(mask="half")
    assert half[:4].all()
    assert not half[4:].any()
    box = mask(mask="box", mask_share=0.25)
    assert not box[2:6, 2:6].any()
    assert box.sum() == 64 - 16
    scattered = mask(mask="random", mask_share=0.5)
    assert scattered.sum() == 32
    assert (mask(mask="random", mask_share=0.5, seed=1) != scattered).any()
    picture = np.zeros((8, 8), np.uint8)
    picture[:, 3] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(mask(mask=str(tmp_path / "mask.png")), picture / 255)


def in_red(white: np.ndarray) -> Image.Image:
    """A picture with a palette whose colour 1 is dark red, as masks of segmentation are."""
    picture = Image.fromarray(white.astype(np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0])
    return picture


WHITE = np.tile(np.arange(8) % 2 == 0, (8, 1))


@pytest.mark.parametrize(
    "kind", ["alpha", "colour", "palette", "zero_one", "bits", "deep", "clear"]
)
def test_pictures_are_masks_by_what_they_show(kind: str, tmp_path: pathlib.Path) -> None:
    levels = np.where(WHITE, 255, 0).astype(np.uint8)
    everywhere = np.full((8, 8, 3), 255, np.uint8)
    palette = Image.fromarray(1 - WHITE.astype(np.uint8))
    palette.putpalette([255, 255, 255, 0, 0, 0])
    half = np.dstack([levels, np.where(WHITE, 255, 0).astype(np.uint8)])
    pictures = {
        "alpha": Image.fromarray(np.dstack([everywhere, levels])),  # white where transparent too
        "colour": Image.fromarray(np.dstack([levels] * 3)),
        "palette": palette,
        "zero_one": Image.fromarray(WHITE.astype(np.uint8)),
        "bits": Image.fromarray(WHITE),
        "deep": Image.fromarray(levels.astype(np.uint16) * 257),
        "clear": Image.fromarray(half),
    }
    pictures[kind].save(tmp_path / "mask.png")
    mask = masks.make_mask(str(tmp_path / "mask.png"), 0.5, 0, (8, 8, 3))
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask[..., 0], WHITE)


def bomb(path: pathlib.Path) -> None:
    """A file that says it has 400 megapixels."""
    Image.new("L", (8, 8)).save(path)
    content = path.read_bytes()
    head = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    path.write_bytes(content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            Image.new("L", (8, 8), 255).save,
            "the mask knows every pixel: there is nothing to paint$",
        ),
        (Image.new("L", (8, 8), 1).save, "the mask knows every pixel: there is nothing to paint$"),
        (Image.new("L", (8, 8), 0).save, "knows no pixel: that is plain sampling, --mode=sample$"),
        (Image.new("L", (8, 4), 0).save, "a mask of 8x8 pixels, .*: it has 4x8 pixels$"),
        (Image.fromarray((WHITE * 255 // 2).astype(np.uint8)).save, "it has 0.498.* 127 of 255"),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 128)).save, "it has 0.502 .* 128 of 255"),
        (Image.new("RGB", (8, 8), "red").save, "0 .unknown; .* black or transparent.*it has 0.298"),
        (in_red(WHITE).save, "0 .unknown; .* black or transparent.* it has 0.149"),
        (bomb, "a mask of 8x8 pixels, .*: a picture has up to 178956970 pixels"),
        (
            os.mkfifo,
            "none of half, box, random, nor .*: it is a pipe, socket or device, not a file",
        ),
        (os.mkdir, "none of half, box, random, nor .*: it is a folder, not a file$"),
        (
            lambda path: path.write_bytes(b"hello"),
            "nor .*: it is no image of a known kind, but text .* 'hello'$",
        ),
        (lambda path: None, "none of half, box, random, nor .*: No such file or directory$"),
    ],
)
def test_what_is_no_mask_is_refused_in_one_line(
    make: Callable[[pathlib.Path], object], reason: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "mask.png"
    make(path)
    with pytest.raises(ValueError, match=reason) as caught:
        masks.make_mask(str(path), 0.5, 0, (8, 8, 3))
    assert str(caught.value).startswith(f"control.mask='{path}'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["box", "random"])
def test_shares_that_round_to_everything_are_refused(kind: str) -> None:
    message = f"^control.mask='{kind}' with control.mask_share=0.999 of 8x8 pixels: .* no pixel"
    with pytest.raises(ValueError, match=message):
        masks.make_mask(kind, 0.999, 0, (8, 8, 1))


def test_fidelity_is_that_of_its_definitions() -> None:
    rng = np.random.RandomState(0)
    images = rng.randint(0, 17, (3, 8, 8, 1)).astype(np.uint8)
    others = images.copy()
    others[1, 0, 0, 0] ^= 2
    psnr = fidelity.psnr(others, images, 17)
    assert np.isinf(psnr[[0, 2]]).all()
    assert psnr[1] == pytest.approx(10 * np.log10(16**2 / (4 / 64)))
    ssim = fidelity.ssim(others, images, 17)
    np.testing.assert_allclose(ssim[[0, 2]], 1.0)
    assert 0.8 < ssim[1] < 1.0
    assert fidelity.ssim(images[:, :4], images[:, :4], 17).tolist() == [1.0] * 3
    # One window of 7 x 7, by the definition; and of 4 x 4 pixels, windows of 3 x 3.
    x, y = (side[1:2, :7, :7].astype(np.float64) for side in (images, images.transpose(0, 2, 1, 3)))
    c1, c2 = (0.01 * 16) ** 2, (0.03 * 16) ** 2
    covariance = np.cov(x.ravel(), y.ravel())
    expected = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
    expected *= (2 * covariance[0, 1] + c2) / (np.trace(covariance) + c2)
    found = fidelity.ssim(y.astype(np.uint8), x.astype(np.uint8), 17)
    assert found[0] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="3x3 pixels or more, not 2x8"):
        fidelity.ssim(images[:, :2], images[:, :2], 17)


def test_pixels_come_back_from_the_networks_range() -> None:
    for settings in ((17, True, True), (256, False, False), (256, True, True)):
        pixels = Pixels(*settings)
        every = np.arange(pixels.levels, dtype=np.uint8)
        np.testing.assert_array_equal(pixels.to_levels(pixels.to_model(every)), every)


def test_batches_are_kept_by_weights_guide_and_inputs(tmp_path: pathlib.Path) -> None:
    """An interrupted run never goes on with batches of other weights, guides, masks or settings."""
    config = settings(task="inpaint", mask="half")
    parts = experiment.build(config)
    problem, _, options = control_run.pose(config, parts)
    trained = Trained({"w": np.ones(2)}, 7, "EMA weights", "ab12")

    def folder(**changes: Any) -> str:
        given = {"problem": problem, "options": options, "trained": trained} | changes
        store = control_run.store_of(tmp_path, config=config, **given)
        return control_run.shards_of(store, given["problem"], ("u", (8, 8, 1))).folder.name

    def guided(weights: Any) -> Problem:
        guidance = Guidance(replicate(weights), lambda *_: None, "a classifier")  # type: ignore
        return dataclasses.replace(problem, guidance=guidance)

    box = control_run.pose(settings(task="inpaint", mask="box"), parts)[0]
    more = options.copy_and_resolve_references()
    more.repeats = 5
    names = [
        folder(),
        folder(trained=trained._replace(sha256="cd34")),
        folder(problem=guided({"w": np.ones(2)})),
        folder(problem=guided({"w": np.zeros(2)})),
        folder(problem=box),
        folder(options=more),
    ]
    assert len(set(names)) == len(names)
    assert folder() == names[0]


def test_latents_of_finished_batches_are_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(score: Any, x: jax.Array) -> Samples:
        return Samples(2.0 * x, jnp.zeros(()), jnp.ones(len(x), bool))

    prior: Any = SimpleNamespace(score=lambda params: None)
    coding, batch = latents.Coding(encode, encode), devices.fitting_batch(1)
    x = np.arange(3 * batch, dtype=np.float32).reshape(-1, 1, 1, 1)
    encoded = functools.partial(latents.latents, prior, coding, replicate({}))
    rows, call = list[int](), devices.ImageMap.__call__

    def mortal(self: Any, *arguments: Any) -> Any:
        for numbers, values in call(self, *arguments):
            if len(rows) == batch:
                rows.append(-1)
                raise KeyboardInterrupt
            rows.extend(numbers)
            yield numbers, values

    monkeypatch.setattr(devices.ImageMap, "__call__", mortal)
    with pytest.raises(KeyboardInterrupt):
        encoded(x, batch, Store(tmp_path, {"weights": "ab"}))
    store = Store(tmp_path, {"weights": "ab"})
    np.testing.assert_array_equal(encoded(x, batch, store), 2.0 * x)
    assert rows == [*range(batch), -1, *range(batch, 3 * batch)]
    rows.clear()
    encoded(x + 1.0, 3 * batch, store)  # other images: other latents
    assert len(rows) == 3 * batch
    store.close()
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupted_run_draws_what_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, Any] = {"task": "reconstruct", "method": "ddim", "num_images": 5}
    small |= {"num_variants": 1, "batch_size": 2}
    batches, call = [], devices.ImageMap.__call__
    for lives in (9, 1, 9):

        def mortal(self: Any, *arguments: Any, left: int = lives) -> Any:
            for i, batch in enumerate(call(self, *arguments)):
                if i == left:
                    raise KeyboardInterrupt
                batches.append(batch)
                yield batch

        monkeypatch.setattr(devices.ImageMap, "__call__", mortal)
        batches.clear()
        name = "whole" if not (tmp_path / "whole").exists() else "killed"
        if lives == 1:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / name, monkeypatch, **small)
            continue
        _, arrays = run(tmp_path / name, monkeypatch, **small)
        if name == "whole":
            whole = arrays
    assert len(batches) == 2, "one of three was there"
    assert {"image", "x", "nfe"} <= arrays.keys()
    for field, values in whole.items():
        np.testing.assert_array_equal(arrays[field], values)
    assert not (tmp_path / "killed" / "control" / "reconstruct" / "shards").exists()
