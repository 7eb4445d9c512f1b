"""The rows of the table: who runs what, how often, and what is to be reached."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import checkouts
from configs.names import lookup


class Contender(NamedTuple):
    """A project, or one way to run it.

    Attributes:
      title: in the tables.
      packages: that its Python must have, and what pip calls them where that differs.
      project: the key of `checkouts.PROJECTS` of the checkout that it runs; "": none.
      variables: of its environment.
    """

    title: str
    packages: tuple[str, ...] = ()
    project: str = ""
    variables: Mapping[str, str] = {}


OURS = "ours"
JAX, TORCH = ("jax", "flax", "diffrax"), ("torch", "ml_collections")
EDM = (*TORCH, "click", "requests")
CONTENDERS = {
    OURS: Contender("ours", JAX),
    "ours_xla": Contender("ours, `SCORE_SDE_NATIVE=0`", JAX, "", {"SCORE_SDE_NATIVE": "0"}),
    "score_sde_torch": Contender("score_sde, PyTorch", ("torch", *JAX), "torch"),
    "score_sde_jax": Contender("score_sde, JAX", JAX, "jax"),
    "score_flow": Contender("score_flow, JAX", JAX, "score_flow"),
    "edm": Contender("EDM's SongUNet", EDM, "edm"),
    "edm_compiled": Contender("EDM's SongUNet, torch.compile", EDM, "edm"),
    "diffusers": Contender("diffusers' UNet2DModel", (*TORCH, "diffusers")),
    "diffusers_compiled": Contender("diffusers' UNet2DModel, torch.compile", (*TORCH, "diffusers")),
    "torchdiffeq": Contender(
        "torchdiffeq, score_sde's PyTorch network", ("torch", "torchdiffeq", *JAX), "torch"
    ),
    "pytorch_fid": Contender("pytorch-fid", ("torch", "torchvision", "pytorch_fid")),
    "torch_fidelity": Contender("torch-fidelity", ("torch", "torchvision", "torch_fidelity")),
    "clean_fid": Contender("clean-fid", ("torch", "torchvision", "cleanfid")),
    "azula": Contender("azula", ("torch", "azula", "matplotlib")),
    "hackable": Contender("hackable-diffusion", ("hackable_diffusion", "matplotlib")),
}
PIP = {"cleanfid": "clean-fid", "pytorch_fid": "pytorch-fid", "torch_fidelity": "torch-fidelity"}
PIP["hackable_diffusion"] = "hackable-diffusion (Python 3.12)"


class Row(NamedTuple):
    """One comparison, in one or more cases.

    Attributes:
      title: above its table.
      goal: what the project wants to reach, in words.
      cases: of each its words and its rounds.
      contenders: keys of `CONTENDERS`, ours first.
      only: the contenders of a case that not all have.
    """

    title: str
    goal: str
    cases: Mapping[str, tuple[str, int]]
    contenders: tuple[str, ...]
    only: Mapping[str, tuple[str, ...]] = {}

    def of(self, case: str) -> tuple[str, ...]:
        """The contenders of a case."""
        return self.only.get(case, self.contenders)


EAGER_AND_COMPILED = ("edm", "edm_compiled", "diffusers", "diffusers_compiled")
ROWS = {
    "step": Row(
        "A training step",
        "1.25 x the fastest at 32 channels",
        {
            "vp_32": ("DDPM++, 32 channels, batch 16", 5),
            "ve_fir_32": ("NCSN++ with FIR, 32 channels, batch 16", 5),
            "vp_128": ("DDPM++, 128 channels, batch 4", 3),
        },
        (OURS, "ours_xla", "score_sde_torch", "score_sde_jax", *EAGER_AND_COMPILED),
    ),
    "sampler": Row(
        "Samplers of 16 images",
        "1.25 x; at most 2 % beyond the network",
        {
            "heun": ("18 Heun steps, DDPM++ with 32 channels, beside `edm_sampler`", 3),
            "pc": ("50 steps of PC, NCSN++ with 32 channels, beside `ScoreSdeVePipeline`", 2),
        },
        (OURS, "ours_xla", *EAGER_AND_COMPILED),
        {
            "heun": (OURS, "ours_xla", "edm", "edm_compiled"),
            "pc": (OURS, "ours_xla", "diffusers", "diffusers_compiled"),
        },
    ),
    "bits": Row(
        "Bits/dim of digits, rtol = atol = 1e-5",
        "5 x",
        {"1": ("1 image", 3), "8": ("8 images", 2), "32": ("32 images", 1)},
        (OURS, "ours_xla", "score_sde_jax", "score_flow", "torchdiffeq"),
    ),
    "start": Row(
        "From the start, seconds of CPU",
        "20 s and 6 s; a compilation no longer than the official one",
        {
            "step": ("quickstart: to the first training step, nothing compiled before", 1),
            "step_again": ("quickstart: to the first training step, compiled before", 1),
            "sample": ("digits: to 64 images, nothing compiled before", 1),
            "sample_again": ("digits: to 64 images, compiled before", 1),
            "compile": ("compilation of the step of `vp/cifar10_ddpmpp_continuous`", 1),
        },
        (OURS, "score_sde_jax", "edm"),
        {"compile": (OURS, "score_sde_jax")},
    ),
    "fid": Row(
        "The Fréchet distance of 5,000 images of 32 pixels",
        "1.5 x in all",
        {"fid": ("files to statistics, and a distance of 2,048 features", 2)},
        (OURS, "pytorch_fid", "torch_fidelity", "clean_fid"),
    ),
    "toy": Row(
        "Two moons, 3,000 steps, from the start to a picture, seconds of CPU",
        "half of the faster",
        {"toy": ("512 points a step, 96 units, nothing compiled before", 1)},
        (OURS, "azula", "hackable"),
    ),
}


class Missing(ValueError):
    """Contenders that cannot run here; `names` are theirs."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.names = tuple(reasons)
        super().__init__(
            "; ".join(f"{CONTENDERS[name].title} needs {why}" for name, why in reasons.items())
            + "; --skip_missing measures the others"
        )


def chosen(names: str) -> list[str]:
    """Rows by name, separated by commas.

    Raises:
      ValueError: one that is not there.
    """
    rows = names.split(",")
    for name in rows:
        lookup(ROWS, name, "row of --rows")
    return rows


def checkouts_by_project(paths: Sequence[str]) -> dict[str, str]:
    """The checkouts by their keys of `checkouts.PROJECTS`.

    Raises:
      ValueError: a folder that is none, or two of one project.
    """
    found: dict[str, str] = {}
    for path in paths:
        kind = checkouts.kind(path)
        if kind in found:
            raise ValueError(f"--peer={path} and --peer={found[kind]} are of one project")
        found[kind] = str(pathlib.Path(path).resolve())
    return found


def pythons_by_contender(
    names: Sequence[str], pythons: Sequence[str], projects: Mapping[str, str]
) -> dict[str, str]:
    """The first interpreter, for each contender, that has its packages.

    Raises:
      Missing: there is none, or no checkout, for some.
      ValueError: an interpreter that cannot be run.
    """
    packages = sorted({package for name in names for package in CONTENDERS[name].packages})
    installed = {python: packages_of(python, packages) for python in pythons}
    found, reasons = {}, {}
    for name in names:
        contender = CONTENDERS[name]
        able = [python for python in pythons if set(contender.packages) <= installed[python]]
        if contender.project and contender.project not in projects:
            source = checkouts.PROJECTS[contender.project].source
            reasons[name] = f"--peer=PATH, a checkout of {source}"
        elif not able:
            anywhere = set().union(*installed.values())
            lacking = [package for package in contender.packages if package not in anywhere]
            lacking = lacking or list(contender.packages)
            words = ", ".join(PIP.get(package, package) for package in lacking)
            reasons[name] = f"{words} in one Python of --python"
        else:
            found[name] = able[0]
    if reasons:
        raise Missing(reasons)
    return found


def packages_of(python: str, packages: Sequence[str]) -> set[str]:
    """Those of the packages that an interpreter finds; none is imported.

    Raises:
      ValueError: it cannot be run.
    """
    program = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
    try:
        answer = subprocess.run(
            [python, "-c", program, *packages], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"--python={python} cannot be run as a Python") from error
    return set(answer.stdout.split())
