"""`--mode=reproduce`: from a file of weights to its number, and again where it was stopped."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from PIL import Image

import models
from evaluation import reproduce
from evaluation.metrics import inception
from interop import cards, convert, edm, hub, sources
from interop.convert import CONFIG_FILE
from runtime import effects, experiment
from tests import golden_cases, test_guided_diffusion, test_judge, tiny
from tests.test_training import use_devices

PUBLISHED = cards.Evaluation({"fid": 2.5}, {}, "", "a paper, Table 1")
FEW = (
    "--config.eval.enable_sampling=True",
    "--config.eval.enable_loss=False",
    "--config.eval.enable_bpd=False",
    "--config.eval.num_samples=24",
    "--config.eval.batch_size=24",
    "--config.sampling.method=ddim",
    "--config.sampling.num_steps=2",
    "--config.sampling.num_frames=0",
)


def kinds() -> list[Any]:
    """A file or folder of each kind that is at hand."""
    checkpoints = [path for case in golden_cases.checkpoints() for path in case.files]
    of_suffix = {"flax" if not path.suffix else "pth": path for path in checkpoints}
    pickles = [path for path in golden_cases.files("edm", "*.pkl") if "edm" in path.stem]
    found = {**of_suffix, **dict.fromkeys(("edm",), pickles and pickles[0])}
    folders = golden_cases.folders("diffusers/*", "config.json")
    found["diffusers"] = folders and folders[0]
    return [pytest.param(kind, path, id=kind) for kind, path in sorted(found.items()) if path]


def config_of(path: pathlib.Path) -> ConfigDict:
    """The config of the network in a golden file."""
    for case in golden_cases.checkpoints():
        if path in case.files:
            return golden_cases.config(golden_cases.load(case.expected)["config_json"])
    opened = sources.open_source(path)
    assert isinstance(opened, sources.DiffusersFolder | edm.EdmFile)
    return convert.described_config(opened.config_values(None), opened.description)


def first_features(params: Any, images: Any, resize: str) -> inception.Outputs:
    return test_judge.stand_in(params, images[:, :8, :8], resize)


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A folder that a server on this machine serves; one device, a small Inception."""
    test_judge.replace_inception(monkeypatch)
    monkeypatch.setattr(inception, "apply", first_features)
    monkeypatch.setenv("SCORE_SDE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv(hub.OFFLINE, raising=False)
    use_devices(monkeypatch, 1)
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(tiny, "address", f"http://127.0.0.1:{running.server_port}", raising=False)
    yield served
    running.shutdown()
    running.server_close()


def config_file(config: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
    """The config as a file, on a data set of noise of its shape."""
    side, channels = config.data.image_size, config.data.num_channels
    rng = np.random.default_rng(0)
    for i in range(48):
        place = folder / "images" / ("train", "test")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, channels), np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02d}.png")
    fields = config.to_dict()
    fields["data"] |= {"dataset": "folder", "data_dir": str(folder / "images")}
    fields["sampling"]["corrector"] = "none"
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "config.py").write_text(CONFIG_FILE)
    return folder / "config.py"


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize(("kind", "path"), kinds())
def test_a_file_of_each_kind_gives_its_number(
    kind: str,
    path: pathlib.Path,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fetched (a folder of diffusers is given as it is), imported, sampled, measured; and the same
    command a second time finds all of it there."""
    source = str(path)
    if path.is_file():
        shutil.copy(path, folder / path.name)
        address = f"{tiny.address}/{path.name}"  # type: ignore[attr-defined]
        card = cards.Card("a/card", address, "quickstart", evaluations={"samples": PUBLISHED})
        monkeypatch.setattr(cards, "cards", lambda: {card.name: card})
        source = card.name
    config = config_file(config_of(path), tmp_path)
    flags = [f"--source={source}", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    command = ["main.py", "--mode=reproduce", *flags, *FEW]
    code, lines = tiny.run(capsys, *command)
    assert code == 0, lines
    results = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())
    rows = json.loads((tmp_path / "run" / "eval" / "published.json").read_text())
    assert np.isfinite(results["fid"])
    assert results["num_samples"] == 24
    assert rows[0][0] == "FID"

    shutil.rmtree(folder)  # nothing is fetched again, nor imported
    with monkeypatch.context() as patched:  # nor drawn
        patched.setattr(reproduce.evaluate, "evaluate", None)
        code, lines = tiny.run(capsys, *command)
        assert code == 0, lines
    again = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())
    assert again == results
    code, lines = tiny.run(capsys, *[a.replace(source, "elsewhere.pth") for a in command])
    assert (code, len(lines)) == (1, 1)
    assert "use another --workdir" in lines[0]


@pytest.mark.slow
@pytest.mark.golden
def test_a_card_may_have_its_samples_guided_by_another(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both files are fetched and imported once; another strength is said to be another."""
    stored = {path.stem: path for path in golden_cases.files("guided_diffusion", "rule_*.npz")}
    names = {"a/score": "rule_gd_cond_2", "a/classifier": "rule_gd_classifier_2"}
    described, table = {}, {}
    for name, stem in names.items():
        z = golden_cases.load(stored[stem])
        described[name] = test_guided_diffusion.config_of(z["config_json"])
        test_guided_diffusion.save(folder / f"{stem}.pt", test_guided_diffusion.tensors_of(z))
        address = f"{tiny.address}/{stem}.pt"  # type: ignore[attr-defined]
        table[name] = cards.Card(name, address, name)
    score, classifier = described.values()
    classifier.training.sde = score.training.sde
    settings = {"sampling.guide_scale": 0.5}
    guided = cards.Evaluation({"fid": 2.97}, settings, "", "a paper", guide="a/classifier")
    table["a/score"] = dataclasses.replace(
        table["a/score"], evaluations={"samples": PUBLISHED, "guided": guided}
    )
    monkeypatch.setattr(cards, "cards", lambda: table)
    monkeypatch.setattr(reproduce.configs, "load", described.__getitem__)
    config, run = config_file(score, tmp_path), tmp_path / "run"
    flags = ["--source=a/score:guided", f"--config={config}", f"--workdir={run}"]
    few = [*FEW, "--config.sampling.method=ancestral", "--config.sampling.guide_scale=2"]
    command = ["main.py", "--mode=reproduce", *flags, *few]
    code, lines = tiny.run(capsys, *command)
    assert code == 0, lines
    results = json.loads((run / "eval_guided" / "results.json").read_text())
    assert np.isfinite(results["fid"])
    assert results["guide"].startswith(str(run / "guide"))
    origin = json.loads((run / "guide" / "source.json").read_text())
    assert origin["source"] == "a/classifier"

    shutil.rmtree(folder)
    code, lines = tiny.run(capsys, *command)
    assert code == 0, lines
    again = json.loads((run / "eval_guided" / "results.json").read_text())
    assert again["fid"] == results["fid"]
    code, lines = tiny.run(capsys, *command, "--config.sampling.guide_scale=0")
    assert code == 0, lines
    free = json.loads((run / "eval_guided" / "results.json").read_text())
    assert free["fid"] != results["fid"]


@pytest.mark.slow
def test_a_finished_reproduction_is_read_and_another_is_made(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command prints its table from disk; with other settings it measures anew."""
    use_devices(monkeypatch, 1)
    changes = {"eval__enable_bpd": False, "sampling__method": "ddim", "sampling__num_steps": 2}
    config, run, source = tiny.config(**changes), tmp_path / "run", tmp_path / "tiny.safetensors"
    shape = experiment.image_shape(config)
    params = models.init(experiment.network(config), jax.random.key(0), shape)
    flat = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    safetensors.numpy.save_file(flat, source)
    reproduce.reproduce(config.copy_and_resolve_references(), str(source), run)
    path = run / "eval" / "results.json"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert json.loads(before[0])["num_samples"] == 8

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(reproduce.evaluate, "evaluate", None)
        reproduce.reproduce(config.copy_and_resolve_references(), str(source), run)
    out = capsys.readouterr().out
    assert "eval has these results of the same weights and settings" in out
    assert "why they may differ" in out
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    config.sampling.num_steps = 3
    reproduce.reproduce(config, str(source), run)
    assert json.loads(path.read_text())["made_by"]["sampling"]["num_steps"] == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.image_size": 16}, "8x8 pixels, not 16; images of your own are"),
        ({"data.num_channels": 3}, "digits has 1 channel.s., not 3; .* --config.data.data_dir="),
        ({"training.objective": "classifier"}, "a classifier of noisy images"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_import(
    changes: dict[str, Any],
    words: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convert, "import_once", None)
    config = tiny.config(eval__enable_sampling=True)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=words):
        reproduce.reproduce(config, "x.pth", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_needed_may_have_another_shape() -> None:
    """Statistics of a file are enough for an FID."""
    config = tiny.config(data__image_size=16, eval__enable_loss=False, eval__enable_bpd=False)
    with pytest.raises(ValueError, match="pixels, not 16"):
        reproduce.refuse(config, PUBLISHED)
    reproduce.refuse(config, dataclasses.replace(PUBLISHED, statistics="https://x/y.npz"))


def test_the_strength_of_a_guide_is_warned_of_where_the_card_has_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before the card has given its guide nothing is said."""
    config, name = tiny.config(sampling__guide_scale=0.5), "sampling.guide_scale"
    assert effects.without_effect(config, "reproduce", {name: 0.5}) == []
    assert len(effects.without_effect(config, "eval", {name: 0.5})) == 1
    with caplog.at_level("WARNING"):
        reproduce.warn_of_scale(config)
        assert "sampling.guide_scale=0.5 has no effect" in caplog.text
        caplog.clear()
        config.sampling.guide = "run/guide"
        reproduce.warn_of_scale(config)
        assert not caplog.text


def results_of(config: ConfigDict, **numbers: Any) -> dict[str, Any]:
    from tests.test_report import results

    return results(config, **numbers)


def test_ours_stands_beside_the_published_number() -> None:
    from tests.test_report import load

    config = load("ve/cifar10_ncsnpp_continuous", sampling__corrector_norm="batch")
    evaluation = cards.Evaluation({"fid": 2.38}, {}, "", "a paper")
    rows = reproduce.comparison(results_of(config, fid=2.41), evaluation, "samples", config)
    fid = next(row for row in rows if "published" not in row[0] and row[2] == "2.38")
    assert fid[1].startswith("2.41")
    assert fid[3] == reproduce.SPREAD
    changed = load("ve/cifar10_ncsnpp_continuous", sampling__num_steps=10)
    rows = reproduce.comparison(results_of(changed, fid=9.0), evaluation, "samples", changed)
    assert any("sampling.num_steps: 10" in row[3] for row in rows)
    changed = load("guided_diffusion/imagenet128", sampling__guide="V", sampling__guide_scale=1.0)
    evaluation = cards.cards()["guided_diffusion/imagenet-128-cond"].evaluations["guided"]
    rows = reproduce.comparison(results_of(changed, fid=3.0), evaluation, "guided", changed)
    fid = next(row for row in rows if row[2] == "2.97")
    assert fid[3] == "sampling.guide_scale: 1, not 0.5"
    changed.sampling.guide_scale = 0.5
    rows = reproduce.comparison(results_of(changed, fid=3.0), evaluation, "guided", changed)
    assert next(row for row in rows if row[2] == "2.97")[3] == reproduce.SPREAD
    rows = reproduce.comparison(results_of(changed, fid=9.0), cards.NONE, "samples", changed)
    assert {row[2] for row in rows} == {""}


def test_statistics_that_cannot_be_fetched_are_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCORE_SDE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv(hub.OFFLINE, "1")
    assert reproduce.published_statistics("") == ""
    assert reproduce.published_statistics("https://nowhere.invalid/a.npz") == ""
