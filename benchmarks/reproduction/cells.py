"""The cells of the study: those of the paper's Tables 1 and 2, and few-step solvers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

LEVELS = 100  # noise levels of the tables, for the paper's 1000
SEARCH_SEED = 1000  # far from the seeds that are reported
SNRS = (0.01, 0.03, 0.1, 0.16, 0.25)
FURTHER_SNRS = (0.4, 0.6, 1.0)  # tried one by one while the largest of all is the best

PREDICTORS = {  # as the rows of Table 1: sampling.predictor, sampling.probability_flow
    "ancestral": ("ancestral_sampling", False),
    "reverse diffusion": ("reverse_diffusion", False),
    "probability flow": ("reverse_diffusion", True),
}
COLUMNS = ("P1000", "P2000", "C2000", "PC1000")  # the paper's: P predicts, C corrects
SDES = {"ve": "VE", "vp": "VP", "subvp": "sub-VP"}

SOLVERS: dict[str, tuple[int, Mapping[str, Any]]] = {  # evaluations a step, settings
    "ddim": (1, {"method": "ddim"}),
    "ddim_eta_1": (1, {"method": "ddim", "eta": 1.0}),
    "dpm_2": (2, {"method": "dpm_2"}),
    "dpmpp_2m": (1, {"method": "dpmpp_2m"}),
    "dpmpp_3m": (1, {"method": "dpmpp_3m"}),
    "unipc_3": (1, {"method": "unipc_3"}),
    "edm": (2, {"method": "edm"}),
}


class Scale(NamedTuple):
    """The part of the tables that is measured on a data set.

    Attributes:
      rows, columns: of Table 1.
      snrs: with which the search for the corrector's ratio begins, on `search_images` images.
      solvers: by SDE, the few-step solvers.
      evaluations: of the few-step solvers.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    snrs: Sequence[float]
    search_images: int
    solvers: Mapping[str, Sequence[str]]
    evaluations: Sequence[int]


MAIN_SOLVERS = ("ddim", "dpmpp_3m", "unipc_3")
SCALES = {
    "digits": Scale(
        tuple(PREDICTORS),
        COLUMNS,
        SNRS,
        500,
        {"vp": tuple(SOLVERS), "subvp": MAIN_SOLVERS, "ve": MAIN_SOLVERS},
        (10, 20),
    ),
    "fashion": Scale(
        ("reverse diffusion",),
        ("P2000", "PC1000"),
        (0.03, 0.1, 0.2),
        125,
        {"vp": MAIN_SOLVERS},
        (10,),
    ),
}


class Cell(NamedTuple):
    """One evaluation: the run of an SDE, the folder of its results, and config overrides."""

    sde: str
    name: str
    settings: Mapping[str, Any]


def chain(predictor: str, column: str, snr: float) -> dict[str, Any]:
    """The settings of a cell of Table 1."""
    name, flow = PREDICTORS[predictor]
    corrects = "C" in column
    levels = LEVELS if corrects or column == "P1000" else 2 * LEVELS
    settings = {
        "sampling.method": "pc",
        "sampling.num_steps": levels,
        "sampling.predictor": "none" if column == "C2000" else name,
        "sampling.probability_flow": flow and column != "C2000",
        "sampling.corrector": "langevin" if corrects else "none",
        "sampling.n_steps_each": 2 if column == "C2000" else 1,
        "sampling.snr": snr,
    }
    return settings | {"eval.enable_bpd": False}


def cell_name(predictor: str, column: str) -> str:
    """The folder of a cell of Table 1; correctors alone know no predictor."""
    return column if column == "C2000" else f"{predictor.replace(' ', '_')}_{column}"


def table_1(scale: Scale, snrs: Mapping[tuple[str, str], float]) -> Iterator[Cell]:
    """The cells of Table 1 for VE and VP, with the best ratio of each SDE and kind of corrector."""
    for sde in ("ve", "vp"):
        for column in scale.columns:
            for predictor in scale.rows:
                if column != "C2000" or predictor == scale.rows[0]:
                    snr = snrs.get((sde, column), SNRS[0])
                    settings = chain(predictor, column, snr)
                    yield Cell(sde, cell_name(predictor, column), settings)


def table_2() -> Iterator[Cell]:
    """Likelihood, and samples of the probability flow, of every SDE."""
    for sde in SDES:
        ode = {"sampling.method": "ode", "sampling.rtol": 1e-4, "sampling.atol": 1e-4}
        likelihood = {"eval.enable_bpd": True, "eval.enable_loss": True}
        yield Cell(sde, "flow", ode | likelihood)


def few_steps(scale: Scale) -> Iterator[Cell]:
    """The solvers that need few evaluations."""
    for sde, names in scale.solvers.items():
        for name in names:
            cost, settings = SOLVERS[name]
            solver = {f"sampling.{field}": value for field, value in settings.items()}
            for evaluations in scale.evaluations:
                steps = {"sampling.num_steps": -(-evaluations // cost), "eval.enable_bpd": False}
                yield Cell(sde, f"{name}_{evaluations}", solver | steps)


def searches(scale: Scale) -> list[tuple[str, str]]:
    """(SDE, column) of all ratios that are searched for."""
    return [(sde, column) for sde in ("ve", "vp") for column in scale.columns if "C" in column]


def trial(scale: Scale, sde: str, column: str, snr: float) -> Cell:
    """The cell that rates a signal-to-noise ratio: few images of one seed, by reverse diffusion."""
    small = {
        "eval.seeds": 1,
        "eval.num_samples": scale.search_images,
        "sampling.seed": SEARCH_SEED,
    }
    settings = chain("reverse diffusion", column, snr) | small
    return Cell(sde, f"search_{column}_{snr:g}", settings)
