"""The published orderings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.reproduction.cells import COLUMNS, FLOW, PREDICTORS, SDES, cell_name

# FID on CIFAR-10 as published. Table 1, by SDE and predictor, in the order of COLUMNS.
TABLE_1 = {
    ("ve", "ancestral"): (4.98, 4.88, 20.43, 3.62),
    ("ve", "reverse diffusion"): (4.79, 4.74, 20.43, 3.60),
    ("ve", "probability flow"): (15.41, 10.54, 20.43, 3.51),
    ("vp", "ancestral"): (3.24, 3.24, 19.06, 3.21),
    ("vp", "reverse diffusion"): (3.21, 3.19, 19.06, 3.18),
    ("vp", "probability flow"): (3.59, 3.23, 19.06, 3.06),
}
TABLE_2 = {"vp": (3.16, 3.93), "subvp": (3.02, 3.16)}  # DDPM++ cont.: bits/dim, FID of the ODE
FEW_STEPS = {  # on a VP network: arXiv:2010.02502, 2206.00927, 2211.01095, 2302.04867
    ("ddim", 10): 15.7,
    ("dpm_2", 10): 5.0,
    ("dpmpp_3m", 10): 3.0,
    ("unipc_3", 10): 2.9,
    ("ddim", 20): 6.84,
    ("ddim_eta_1", 20): 18.36,
}


class Claim(NamedTuple):
    """A published ordering: `better` has the smaller number.

    Attributes:
      text: in words.
      better, worse: (SDE, cell).
      published: the two numbers.
      quantity: a name in the numbers of a cell: "distance" or "bits_per_dim".
    """

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]
    published: tuple[float, float]
    quantity: str = "distance"


def claims() -> Iterator[Claim]:
    """The orderings of Tables 1 and 2 and of the papers of few-step solvers."""
    at = {column: i for i, column in enumerate(COLUMNS)}

    def cell(sde: str, row: str, column: str) -> tuple[tuple[str, str], float]:
        return (sde, cell_name(row, column)), TABLE_1[sde, row][at[column]]

    def ordering(text: str, *pair: tuple[tuple[str, str], float]) -> Claim:
        (better, least), (worse, most) = pair
        return Claim(text, better, worse, (least, most))

    for sde in ("ve", "vp"):
        name = SDES[sde]
        for row in PREDICTORS:
            one, two, alone, both = (cell(sde, row, column) for column in COLUMNS)
            yield ordering(f"{name}, {row}: a corrector helps more than twice the steps", both, two)
            yield ordering(f"{name}, {row}: better than the corrector alone", two, alone)
            if one[1] - two[1] >= 0.1:
                yield ordering(f"{name}, {row}: twice the steps help", two, one)
        for row in ("ancestral", "probability flow"):
            worse, better = cell(sde, row, "P1000"), cell(sde, "reverse diffusion", "P1000")
            if worse[1] - better[1] >= 0.1:
                text = f"{name}: reverse diffusion is better than {row} as predictor"
                yield ordering(text, better, worse)
        flow, noisy = (
            cell(sde, row, "PC1000") for row in ("probability flow", "reverse diffusion")
        )
        yield ordering(f"{name}: with a corrector, the flow is the best predictor", flow, noisy)
    for i, (text, quantity) in enumerate(
        [
            ("sub-VP has fewer bits/dim than VP", "bits_per_dim"),
            ("samples of the ODE are better for sub-VP than for VP", "distance"),
        ]
    ):
        published = (TABLE_2["subvp"][i], TABLE_2["vp"][i])
        yield Claim(text, ("subvp", FLOW), ("vp", FLOW), published, quantity)
    for low, high, count in [
        ("dpm_2", "ddim", 10),
        ("dpmpp_3m", "ddim", 10),
        ("unipc_3", "dpmpp_3m", 10),
        ("unipc_3", "dpm_2", 10),
        ("ddim", "ddim_eta_1", 20),
    ]:
        yield ordering(
            f"VP, {count} evaluations: {low} is better than {high}",
            *((("vp", f"{name}_{count}"), FEW_STEPS[name, count]) for name in (low, high)),
        )
