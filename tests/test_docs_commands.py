"""Every command of the README and of docs/ runs, page by page and in order, but smaller."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import models
from configs import from_file
from data.fashion_mnist import FashionMnist
from evaluation.metrics import metric
from interop import cards, diffusers, diffusers_config
from runtime import experiment
from tests import tiny
from tests.test_convert import save, tiny_checkpoint
from tests.test_data import idx, published
from tests.test_judge import replace_inception
from tests.test_training import ROOT, use_devices

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that are not run, and why. Each must stand on some page.
LEFT_OUT: dict[str, str] = {}
OF_OTHERS = (
    "main.py --mode=import --source=256x256_diffusion.pt --workdir=W "
    "--config=configs/guided_diffusion/imagenet256.py",
    "main.py --mode=import --source=256x256_classifier.pt --workdir=V",
    "main.py --mode=control --config=W/config.py --workdir=W --config.control.task=class "
    "--config.control.method=classifier --config.control.guide=V --config.control.scale=1",
    "main.py --mode=import --source=<checkpoint_19 of cifar10_deep_subvp_likelihood_iw_flip> "
    "--workdir=W --config=configs/score_flow/cifar10_deep_subvp.py "
    "--config.training.likelihood_weighting=True --config.training.time=likelihood",
    "main.py --mode=eval --config=W/config.py --workdir=W --config.eval.bpd_bound=True",
    "main.py --mode=import --source=<file in cifar10_classifier> --workdir=V "
    "--config=configs/score_sde/cifar10_classifier.py",
    "main.py --mode=control --config=configs/ve/cifar10_ncsnpp_continuous.py --workdir=<its run> "
    "--config.control.task=class --config.control.method=classifier --config.control.guide=V",
    "main.py --mode=import --source=checkpoint_26.pth --workdir=runs/cifar10 "
    "--config=configs/vp/cifar10_ddpmpp_continuous.py",
    "main.py --mode=import --source=hf:google/ddpm-cifar10-32 --workdir=W",
    "main.py --mode=sample --config=W/config.py --workdir=W --config.sampling.method=ddim "
    "--config.sampling.num_steps=50",
    "main.py --mode=export --config=W/config.py --workdir=W --target=W/pipeline",
    "main.py --mode=import --source=edm-cifar10-32x32-cond-vp.pkl --workdir=W",
    "main.py --mode=sample --config=W/config.py --workdir=W",
    "main.py --mode=reproduce --source=edm/cifar10-cond-vp --workdir=V",
)
REASON = (
    "large files of others; small ones are read by tests of interop, as test_edm and test_diffusers"
)
LEFT_OUT |= dict.fromkeys(OF_OTHERS, REASON)
OF_THE_DEMO = (
    "main.py --mode=demo",
    "main.py --mode=demo # a page in the browser, to play with all of them",
    "main.py --mode=demo --config=configs/quickstart.py --workdir=runs/quickstart",
)
LEFT_OUT |= dict.fromkeys(OF_THE_DEMO, "it serves until a signal: tests/test_demo_server.py")
if importlib.util.find_spec("atheris") is None:
    FUZZER = "-m tests.fuzz_readers --reader pth --seconds 3600"
    LEFT_OUT[FUZZER] = "the extra `fuzz` (atheris) is not installed"

# Words for which a reader puts his own.
PLACEHOLDERS = (
    ("--config=... --workdir=...", "--config=configs/quickstart.py --workdir=runs/quickstart"),
    ("--workdir=... ", "--workdir=runs/theirs "),
    ("gs://bucket/", "runs/bucket/"),
    ("--source=<file>", "--source=checkpoint_24.pth"),
    ("--source=<folder of google/ncsnpp-church-256>", "--source=church"),
    ("--target=<new folder>", "--target=exported"),
)

# Options of `python -m ...` that make it small.
SHORT = (("--lines 500", "--lines 4"), ("--seconds 3600", "--seconds 5"))

# What makes a command small: few steps, images and evaluations, and a network of two blocks.
SMALL: dict[str, Any] = {
    "training.batch_size": 8,
    "training.n_iters": 2,
    "training.n_jitted_steps": 1,
    "training.log_freq": 1,
    "training.eval_freq": 2,
    "training.snapshot_freq": 2,
    "training.snapshot_freq_for_preemption": 2,
    "training.snapshot_sampling": False,
    "sampling.num_steps": 3,
    "sampling.num_samples": 4,
    "sampling.batch_size": 40,
    "sampling.rtol": 0.1,
    "sampling.atol": 0.1,
    "eval.batch_size": 8,
    "eval.num_samples": 120,
    "eval.bpd_num_images": 4,
    "eval.bpd_rtol": 0.1,
    "eval.bpd_atol": 0.1,
    "control.num_images": 2,
    "control.num_variants": 2,
    "control.batch_size": 4,
}
NETWORK = {"model.nf": 8, "model.num_res_blocks": 1, "model.ch_mult": (1,)}
NETWORK["model.attn_resolutions"] = ()
PHOTOGRAPHS = {  # in place of data sets that would have to be fetched
    "data.dataset": "folder",
    "data.data_dir": "photographs",
    "data.image_size": 8,
    "data.num_channels": 3,
}
FETCHED = ("cifar10", "emoji", "folder", "church", "bedroom", "celeba", "lsun", "ffhq")


def commands(page: pathlib.Path) -> list[str]:
    """Every `python main.py ...` and `python -m ...` of a page, once."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    lines = re.findall(r"python ((?:main\.py|-m) [^\n`]*)", text)
    return list(dict.fromkeys(" ".join(line.split()).removesuffix(" -->") for line in lines))


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder like the checkout, with data sets and weights that stand in for those of others."""
    for path in ROOT.iterdir():
        if path.name != "runs" and path.name[0] != "." and path.name != "docs":
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    rng = np.random.default_rng(0)
    for i in range(240):
        folder = tmp_path / "photographs" / ("train", "test")[i % 2] / f"kind_{i // 2 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i:03d}.png")
    clothes = tmp_path / "clothes"
    clothes.mkdir()
    for name, count in (("train", 120), ("t10k", 60)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            (clothes / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    monkeypatch.setattr(FashionMnist, "FOLDERS", (str(clothes),))
    published(monkeypatch, FashionMnist, clothes, train=120, test=60)
    replace_inception(monkeypatch)
    for name, entry in metric.table().items():
        few_images = dataclasses.replace(entry, least=min(entry.least, 100))
        monkeypatch.setitem(metric.table(), name, few_images)
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "data_sets"))
    use_devices(monkeypatch, 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_fetched(command: str) -> bool:
    """Whether a command is of a card alone, whose weights are no part of this project."""
    named = re.search(r"--source=([\w./-]+)", command)
    card = cards.find(named[1]) if named and "--config=" not in command else None
    return card is not None and not card.address.startswith(cards.SHIPPED)


class Reader:
    """Someone who types the commands, one after the other."""

    def __init__(self, home: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys
        self.config = "configs/ve/cifar10_ncsnpp_continuous.py"  # which C stands for, and
        self.workdir = "runs/imported"  # W

    def type(self, command: str) -> None:
        """Runs a command, which must end well."""
        if command.startswith("-m "):
            for long, short in SHORT:
                command = command.replace(long, short)
            line = [sys.executable, *shlex.split(command)]
            ended = subprocess.run(line, cwd=self.home, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
            return
        for placeholder, typed in PLACEHOLDERS:
            command = command.replace(placeholder, typed)
        if "--mode=import" in command and "--workdir=W" in command:
            self.workdir += "_"
            named = re.search(r"--config=(configs\S+)", command)
            self.config = named[1] if named else self.config
        words = shlex.split(command, comments=True)
        names = {
            "--config=C": f"--config={self.config}",
            "--workdir=W": f"--workdir={self.workdir}",
        }
        words = [names.get(word, word) for word in words]
        if not any(word.startswith("--config=") for word in words):
            few = {"sampling.num_samples": 4, "sampling.batch_size": 4}
            self.run([*words, *(self.typed(few) if "--mode=sample" in words else [])])
            return
        config = from_file(ROOT / next(w for w in words if "--config=" in w).partition("=")[2])
        overrides = self.overrides(config, words)
        self.provide(words, config, overrides)
        self.run([*words, *self.typed(overrides)])

    @staticmethod
    def typed(overrides: dict[str, Any]) -> list[str]:
        """Overrides as they stand on a command line."""
        return [f"--config.{name}={value}" for name, value in overrides.items()]

    def run(self, words: list[str]) -> None:
        """Runs main.py, which may warn, but must not fail."""
        code, lines = tiny.run(self.capsys, *words)
        assert code == 0, lines

    def overrides(self, config: ConfigDict, words: list[str]) -> dict[str, Any]:
        """The overrides that make a command small, of the fields that have an effect in it."""
        values = dict(SMALL)
        if config.model.name != "mlp":
            values |= NETWORK
        if config.data.dataset.startswith(FETCHED):
            values |= PHOTOGRAPHS
        if not config.training.continuous:  # a step for each of its levels
            values |= {"model.num_scales": 100, "sampling.num_steps": 0}
        if "--config.sampling.predictor=reverse_diffusion" in words:
            values["sampling.num_steps"] = 30  # with fewer the discrete betas are no variances
        if "interpolate" in " ".join(words):
            del values["sampling.rtol"], values["sampling.atol"]
        return values

    def provide(self, words: list[str], config: ConfigDict, overrides: dict[str, Any]) -> None:
        """Makes the weights of others, or the run of another page, that a command goes on from."""
        config.update_from_flattened_dict(overrides)
        if "--source=checkpoint_24.pth" in words:
            weights = tiny_checkpoint(config)
            del weights["optimizer"]
            save(self.home / "checkpoint_24.pth", weights)
        if "--config.control.operator=camera.py:measure" in words:
            page = (ROOT / "docs" / "controllable.md").read_text()
            code = page.partition("which is yours, and is executed:\n\n")[2].partition(
                "\n\nIt may"
            )[0]
            (self.home / "camera.py").write_text(textwrap.dedent(code))
        if "--source=church" in words:
            module, shape = models.from_config(config), experiment.image_shape(config)
            params = tiny_params(module, shape)
            tensors = diffusers.params_to_diffusers(module, params, shape)
            description = diffusers_config.description(module, shape)
            diffusers.write(self.home / "church", description, tensors)
        flags = dict(word.removeprefix("--").partition("=")[::2] for word in words[1:])
        goes_on = flags["mode"] in ("eval", "sample", "control", "export")
        if goes_on and not (self.home / flags["workdir"] / "checkpoints").is_dir():
            run = ("--mode=train", f"--config={flags['config']}", f"--workdir={flags['workdir']}")
            self.run(["main.py", *run, *self.typed(overrides)])


def tiny_params(module: Any, shape: tuple[int, ...]) -> Any:
    """Random weights of a network, in NumPy."""
    import jax

    params = models.init(module, jax.random.key(0), shape)
    return jax.tree.map(np.asarray, params)


def test_commands_that_are_left_out_stand_on_a_page() -> None:
    every = [command for page in PAGES for command in commands(page)]
    assert len(every) > 30
    assert set(LEFT_OUT) <= set(every)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(
    page: pathlib.Path, home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, failures = Reader(home, capsys), []
    for command in commands(page):
        if command in LEFT_OUT or is_fetched(command):
            continue
        try:
            reader.type(command)
        except Exception as error:  # all that fail are named at the end
            failures.append(f"python {command}\n    {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
