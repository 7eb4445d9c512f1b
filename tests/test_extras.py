"""Without the packages of an extra: one line with the cure, and all else goes on."""

from __future__ import annotations

import ast
import importlib.metadata
import pathlib
import sys
import tomllib

import numpy as np
import pytest
from packaging.requirements import Requirement

import data
from configs import extras
from control import results
from data.cifar10 import Cifar10
from data.digits import Digits
from evaluation import judge
from evaluation.metrics import two_sample
from runtime import experiment
from tests import test_layers as layers
from tests import tiny
from tests.test_layers import MODULES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = ("data", "metrics", "native", "demo", "hub", "hf", "tokenizers", "wandb", "mlflow")

# The files that import optional packages when they are themselves imported; others import these
# inside of functions, after `extras.require`.
BEHIND = {"data.preparation", "demo.app"}


def optional_modules() -> set[str]:
    """The modules of all packages that only an extra brings, by their names in an import."""
    base = {Requirement(line).name for line in PROJECT["dependencies"]}
    packages = {Requirement(line).name for extra in OPTIONAL for line in EXTRAS[extra]} - base
    known = importlib.metadata.packages_distributions().items()
    modules = {module for module, owners in known if packages & set(owners)}
    modules = {name for name in modules if name.isidentifier() and not name.startswith("_")}
    return modules | {"datasets", "huggingface_hub", "tokenizers", "wandb", "mlflow"}


def imported(module: str, everywhere: bool) -> set[str]:
    """The first names of what a file imports, `everywhere` or when it is itself imported."""
    tree = ast.parse(MODULES[module].read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def test_no_file_needs_an_extra_to_be_imported() -> None:
    optional = optional_modules()
    assert {"sklearn", "skimage", "tensorflow_datasets", "threadpoolctl", "starlette"} <= optional
    program = [name for name in MODULES if not name.startswith("benchmarks")]
    needy = {name for name in program if imported(name, everywhere=False) & optional}
    assert needy <= BEHIND
    at_once = {name for module in program for name in layers.imports(module, everywhere=False)}
    assert not at_once & BEHIND
    users = {name for name in program if imported(name, everywhere=True) & {"sklearn", "skimage"}}
    assert users == {"evaluation.metrics.fidelity", "evaluation.metrics.two_sample"}


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Lets modules be as if they were not installed."""
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(autouse=True)
def no_user_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "default"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def test_several_packages_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.require("the test", "test", pytest="pytest")
    hide(monkeypatch, "one", "two")
    assert extras.missing("one", "pytest", "two") == ["one", "two"]
    message = r"^the test needs package-one and two: pip install -e '\.\[test\]', or wait$"
    with pytest.raises(ImportError, match=message):
        extras.require("the test", "test", ", or wait", one="package-one", two="two")


def test_without_scikit_learn_digits_are_read_from_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    before = data.load("digits", "train")
    file = pathlib.Path(*Digits.FOLDERS, "digits.csv.gz")
    (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(Digits, "FOLDERS", ())
    hide(monkeypatch, "sklearn")
    message = r"^data set digits needs scikit-learn: pip install -e '\.\[data\]', or name the fol"
    for modules in ((), ("tensorflow_datasets",)):
        hide(monkeypatch, *modules)
        with pytest.raises(ImportError, match=message):
            data.load("digits", "train")
    assert data.load("digits", "train", tmp_path).fingerprint == before.fingerprint


def test_without_tfds_what_is_to_be_prepared_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    hide(monkeypatch, "tensorflow_datasets")
    message = (
        r"^data set cifar10 needs tensorflow-datasets: pip install -e '\.\[data\]', or name the "
        r"folder that holds cifar-10-binary\.tar\.gz with --config\.data\.data_dir$"
    )
    with pytest.raises(ImportError, match=message):
        data.load("cifar10", "train")
    prepared = tmp_path / "default" / "cifar10" / Cifar10.VERSION
    prepared.mkdir(parents=True)
    (prepared / "cifar10-train.array_record-00000-of-00001").touch()
    with pytest.raises(ImportError, match=message):
        data.load("cifar10", "train")


def test_without_scikit_image_images_are_kept_and_not_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    assert results.likeness(images, images, 17)["ssim"] == 1.0
    hide(monkeypatch, "skimage")
    assert results.likeness(images, images, 17) == {}
    assert capsys.readouterr().out == (
        "PSNR and SSIM are left out: the comparison with originals needs scikit-image: "
        "pip install -e '.[metrics]'\n"
    )


def test_without_scikit_learn_its_metric_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny.config(eval__metrics=("fid", "c2st"), eval__num_samples=200)
    parts = experiment.Parts.__new__(experiment.Parts)
    monkeypatch.setattr(judge.features, "network_of", lambda parts, options: "")
    assert list(judge.metrics_of(parts, config.eval)) == ["fid", "c2st"]
    hide(monkeypatch, "sklearn")
    message = "has c2st, which needs scikit-learn: pip install -e '.[metrics]'"
    with pytest.raises(ImportError) as caught:
        judge.metrics_of(parts, config.eval)
    assert str(caught.value) == f"eval.metrics {message}"
    vectors = np.zeros((9, 2))
    with pytest.raises(ImportError, match=r"^C2ST needs scikit-learn"):
        two_sample.c2st(vectors, vectors)
