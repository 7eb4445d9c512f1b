"""The cells of the study: those of the paper's Tables 1 and 2, and few-step solvers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SNRS = (0.06, 0.1, 0.16, 0.25, 0.4)
FURTHER_SNRS = (0.6, 1.0)  # tried one by one while the largest of all is the best

PREDICTORS = {  # as the rows of Table 1: sampling.predictor, sampling.probability_flow
    "ancestral": ("ancestral_sampling", False),
    "reverse diffusion": ("reverse_diffusion", False),
    "probability flow": ("reverse_diffusion", True),
}
COLUMNS = ("P1000", "P2000", "C2000", "PC1000")  # the paper's: P predicts, C corrects
PAPER_LEVELS = 1000
FLOW = "flow"  # the cell of Table 2
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
      levels: noise levels of Table 1, for the paper's 1000.
      images: of each cell and training; half as many of a trial in a search.
      rows, columns: of Table 1.
      snrs: with which the search for each corrector's ratio begins.
      solvers: by SDE, the few-step solvers.
      evaluations: of the few-step solvers.
      examples: of the training set, the first ones, whose exact score is sampled from.
    """

    levels: int
    images: int
    rows: Sequence[str]
    columns: Sequence[str]
    snrs: Sequence[float]
    solvers: Mapping[str, Sequence[str]]
    evaluations: Sequence[int]
    examples: int


MAIN_SOLVERS = ("ddim", "dpmpp_3m", "unipc_3")
LARGER_IMAGES = Scale(
    levels=30,
    images=300,
    rows=("reverse diffusion",),
    columns=("P2000", "PC1000"),
    snrs=SNRS,
    solvers={"vp": MAIN_SOLVERS},
    evaluations=(10,),
    examples=2000,
)
SCALES = {
    "digits": Scale(
        levels=100,
        images=1000,
        rows=tuple(PREDICTORS),
        columns=COLUMNS,
        snrs=SNRS,
        solvers={"vp": tuple(SOLVERS), "subvp": MAIN_SOLVERS, "ve": MAIN_SOLVERS},
        evaluations=(10, 20),
        examples=1500,
    ),
    "fashion": LARGER_IMAGES,
    "emoji": LARGER_IMAGES,
}


class Cell(NamedTuple):
    """One measurement: the SDE of its network, its name, config overrides, and images."""

    sde: str
    name: str
    settings: Mapping[str, Any]
    images: int


def chain(scale: Scale, sde: str, predictor: str, column: str, snr: float) -> dict[str, Any]:
    """The settings of a cell of Table 1.

    VP's chain ends where its first beta belongs. The paper's has 1000 levels and ends at 1e-3; with
    a tenth of the levels and the same end, the last step would be nine times as long as the noise
    that is left allows.
    """
    name, flow = PREDICTORS[predictor]
    corrects = "C" in column
    levels = scale.levels if corrects or column == "P1000" else 2 * scale.levels
    return {
        "sampling.method": "pc",
        "sampling.num_steps": levels,
        "sampling.predictor": "none" if column == "C2000" else name,
        "sampling.probability_flow": flow and column != "C2000",
        "sampling.corrector": "langevin" if corrects else "none",
        "sampling.n_steps_each": 2 if column == "C2000" else 1,
        "sampling.snr": snr,
        "sampling.eps": 1.0 / scale.levels if sde == "vp" else 0.0,  # 0: the SDE's own
    }


def cell_name(predictor: str, column: str) -> str:
    """The name of a cell of Table 1; correctors alone know no predictor."""
    return column if column == "C2000" else f"{predictor.replace(' ', '_')}_{column}"


def label(name: str, levels: int) -> str:
    """The name of a column or cell with the numbers of levels that it has here."""
    return name.replace("1000", str(levels)).replace("2000", str(2 * levels))


def table_1(scale: Scale, ratios: Mapping[tuple[str, str], float]) -> Iterator[Cell]:
    """The cells of Table 1 for VE and VP, each with its corrector's ratio (by SDE and name)."""
    for sde in ("ve", "vp"):
        for column in scale.columns:
            for row in scale.rows:
                if column != "C2000" or row == scale.rows[0]:
                    name = cell_name(row, column)
                    settings = chain(scale, sde, row, column, ratios.get((sde, name), SNRS[0]))
                    yield Cell(sde, name, settings, scale.images)


def table_2(scale: Scale) -> Iterator[Cell]:
    """Samples of the probability flow, and with them the likelihood, of every SDE."""
    for sde in SDES:
        ode = {"sampling.method": "ode", "sampling.rtol": 1e-4, "sampling.atol": 1e-4}
        yield Cell(sde, FLOW, ode, scale.images)


def few_steps(scale: Scale) -> Iterator[Cell]:
    """The solvers that need few evaluations."""
    for sde, names in scale.solvers.items():
        for name in names:
            cost, settings = SOLVERS[name]
            solver = {f"sampling.{field}": value for field, value in settings.items()}
            for evaluations in scale.evaluations:
                steps = {"sampling.num_steps": -(-evaluations // cost)}
                yield Cell(sde, f"{name}_{evaluations}", solver | steps, scale.images)


def planned(scale: Scale, ratios: Mapping[tuple[str, str], float]) -> list[Cell]:
    """All cells of a data set."""
    return [*table_1(scale, ratios), *table_2(scale), *few_steps(scale)]


def with_all_levels(
    scale: Scale, ratios: Mapping[tuple[str, str], float]
) -> Mapping[tuple[str, str], Cell]:
    """The cells of Table 1 with as many levels as in the paper, and a quarter of the images."""
    paper = scale._replace(levels=PAPER_LEVELS, images=scale.images // 4)
    return {
        (cell.sde, cell.name): cell._replace(name=f"{cell.name}_of_{PAPER_LEVELS}_levels")
        for cell in table_1(paper, ratios)
    }


class Search(NamedTuple):
    """The search for the ratio of one cell of Table 1."""

    sde: str
    row: str
    column: str

    @property
    def name(self) -> str:
        """The cell's."""
        return cell_name(self.row, self.column)

    def trial(self, scale: Scale, snr: float) -> Cell:
        """The cell with this ratio."""
        settings = chain(scale, self.sde, self.row, self.column, snr)
        return Cell(self.sde, f"search_{self.name}_{snr:g}", settings, scale.images // 2)


def searches(scale: Scale) -> list[Search]:
    """One for each cell of Table 1 that corrects: each predictor has its own corrector's ratio."""
    return [
        Search(sde, row, column)
        for sde in ("ve", "vp")
        for column in scale.columns
        if "C" in column
        for row in (scale.rows[:1] if column == "C2000" else scale.rows)
    ]
