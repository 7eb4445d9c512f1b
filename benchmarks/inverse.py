"""Distance to the posterior against evaluations (NFE), for every method of inverse problems.

    python benchmarks/inverse.py [--page=docs/inverse.md] [--picture=docs/pictures/inverse.png]

Priors are mixtures of Gaussians, whose score is known at every noise level, and whose posterior
given a measurement is known too: a mixture of Gaussians where the operator is linear, a density on
a grid of the plane where it is not. So what is measured is the method alone. The distance is the
sliced Wasserstein-2 distance of the method's draws to exact draws of the posterior, averaged over
measurements; that of exact draws to others is what a perfect method would get.

Prints one Markdown table, writes it into a page where that has the two comments which mark its
place, and draws the curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

import controllable
import sde_lib
from benchmarks import pages
from diffusion import daps as decoupled
from diffusion import (
    few_steps,
    grids,
    inverse,
    moment_guidance,
    restoration,
    svd,
    twisted,
)

Array = jax.Array
Errors = dict[str, dict[int, float]]  # by method and NFE

SIZES = (20, 100, 500)
MEASUREMENTS = 3


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians: weights [K], means [K, D], covariances [K, D, D]."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def score_fn(self, sde: sde_lib.SDE) -> sde_lib.ScoreFn:
        """The score of the mixture with noise, for images of D entries."""
        spectra = [np.linalg.eigh(c) for c in self.covariances]
        values = jnp.asarray([v for v, _ in spectra], jnp.float32)
        vectors = jnp.asarray([e for _, e in spectra], jnp.float32)
        log_weights, means = jnp.log(self.weights), jnp.asarray(self.means, jnp.float32)

        def score(x: Array, t: Array) -> Array:
            alpha, sigma = sde.alpha(t)[:, None, None], sde.sigma(t)[:, None, None]
            off = jnp.einsum("bkd,kde->bke", x.reshape(len(x), 1, -1) - alpha * means, vectors)
            variances = alpha**2 * values + sigma**2
            logs = log_weights - 0.5 * jnp.sum(off**2 / variances + jnp.log(variances), -1)
            shares = jax.nn.softmax(logs, -1)
            slopes = jnp.einsum("bke,kde->bkd", off / variances, vectors)
            return -jnp.einsum("bk,bkd->bd", shares, slopes).reshape(x.shape)

        return jax.jit(score)

    def sample(self, rng: np.random.RandomState, count: int) -> np.ndarray:
        """Draws [count, D]."""
        kinds = rng.choice(len(self.weights), count, p=self.weights)
        roots = [_root(c) for c in self.covariances]
        z = rng.standard_normal((count, self.means.shape[1]))
        return np.stack([self.means[k] + roots[k] @ z[i] for i, k in enumerate(kinds)])

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The log-density [N] at x [N, D]."""
        parts = []
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            off = x - mean
            energy = np.einsum("nd,nd->n", off, np.linalg.solve(covariance, off.T).T)
            parts.append(np.log(weight) - 0.5 * (energy + np.linalg.slogdet(covariance)[1]))
        return np.asarray(np.logaddexp.reduce(parts))

    def posterior(self, a: np.ndarray, y: np.ndarray, noise_std: float) -> Mixture:
        """The law of x_0 given y = a x_0 + noise: the same parts, each conditioned."""
        means, covariances, logs = [], [], []
        noise = max(noise_std, 1e-6) ** 2 * np.eye(len(a))
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            s = a @ covariance @ a.T + noise
            gain, off = covariance @ a.T @ np.linalg.inv(s), y - a @ mean
            means.append(mean + gain @ off)
            covariances.append(covariance - gain @ a @ covariance)
            energy = off @ np.linalg.solve(s, off) + np.linalg.slogdet(s)[1]
            logs.append(np.log(weight) - 0.5 * energy)
        weights = np.exp(logs - np.logaddexp.reduce(logs))
        return Mixture(weights / weights.sum(), np.array(means), np.array(covariances))

    @property
    def std(self) -> float:
        """The root mean square, over entries, of their standard deviations."""
        mean = self.weights @ self.means
        second = np.einsum("k,kdd->d", self.weights, self.covariances) + self.weights @ (
            np.square(self.means)
        )
        return float(np.sqrt(np.mean(second - mean**2)))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prior of images, a measurement of them, and how many are drawn for each."""

    title: str
    prior: Mixture
    shape: tuple[int, ...]
    operator: inverse.Operator
    noise_std: float
    linear: bool = True
    draws: int = 400

    def measured(self, x: np.ndarray) -> np.ndarray:
        """A(x) [N, M] of x [N, D]."""
        images = jnp.asarray(x.reshape(len(x), *self.shape), jnp.float32)
        return np.asarray(jax.jit(self.operator)(images), np.float64).reshape(len(x), -1)

    def posterior(self, y: np.ndarray, rng: np.random.RandomState, count: int) -> np.ndarray:
        """Exact draws [count, D] of p(x_0 | y)."""
        if self.linear:
            size = math.prod(self.shape)
            matrix = (self.measured(np.eye(size)) - self.measured(np.zeros((1, size)))).T
            return self.prior.posterior(matrix, y, self.noise_std).sample(rng, count)
        axis = np.linspace(-4.0, 4.0, 801)
        points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        errors = (self.measured(points) - y) / self.noise_std
        logs = self.prior.log_prob(points) - 0.5 * np.sum(errors**2, -1)
        chances = np.exp(logs - logs.max())
        rows = rng.choice(len(points), count, p=chances / chances.sum())
        return np.asarray(points[rows] + (axis[1] - axis[0]) * rng.uniform(-0.5, 0.5, (count, 2)))


def problems() -> list[Problem]:
    """A ring in the plane, of which a coordinate or a distance was measured, and small images."""
    turns = 2.0 * np.pi * np.arange(8) / 8
    ring = Mixture(
        np.arange(1, 9) / 36.0,
        1.2 * np.stack([np.cos(turns), np.sin(turns)], -1),
        np.array([_covariance([0.25, 0.08], turn) for turn in turns]),
    )
    mask = jnp.array([1.0, 0.0]).reshape(1, 2, 1)

    def distance(x: Array) -> Array:
        """The distance to (1, 0): it says a circle, and not where on it."""
        off = x.reshape(len(x), 2) - jnp.array([1.0, 0.0])
        return jnp.sqrt(jnp.sum(off**2, -1, keepdims=True) + 1e-8)

    return [
        Problem("plane, first coordinate", ring, (1, 2, 1), inverse.masking(mask), 0.2, draws=2000),
        Problem("plane, a distance", ring, (1, 2, 1), distance, 0.2, linear=False),
        Problem("4x4, means of 2x2", _images(4, 4, 0), (4, 4, 1), inverse.average_pool(2), 0.0),
    ]


def _covariance(stds: list[float], turn: float) -> np.ndarray:
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(turned @ np.diag(np.square(stds)) @ turned.T)


def _images(side: int, parts: int, seed: int) -> Mixture:
    """A mixture of smooth images, whose parts have means and correlations of their own."""
    rng = np.random.RandomState(seed)
    places = np.stack(np.meshgrid(range(side), range(side)), -1).reshape(-1, 2)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    covariances = np.array(
        [rng.uniform(0.2, 0.4) ** 2 * np.exp(-apart / rng.uniform(1.0, 4.0)) for _ in range(parts)]
    )
    smooth = _root(np.exp(-apart / 2.0))
    means = 0.6 * rng.standard_normal((parts, side * side)) @ smooth.T
    return Mixture(rng.dirichlet(5.0 * np.ones(parts)), means, covariances)


# Methods: (problem, sde, score, noise, y, NFE) -> images, of at most so many evaluations.

Method = Callable[[Problem, sde_lib.SDE, Any, Any, Array, int], Array]


def grid_of(sde: sde_lib.SDE, steps: int) -> np.ndarray:
    if steps < 2:
        raise ValueError("too few evaluations")
    return grids.time_grid(sde, "log_snr", steps)


def sampled(guided: Callable[..., Any]) -> Method:
    """A method that guides the score, with DPM-Solver++ of the reverse SDE."""

    def draw(p: Problem, sde: sde_lib.SDE, score: Any, noise: Any, y: Array, nfe: int) -> Array:
        conditional = guided(p, sde, score, y)
        times = grid_of(sde, nfe - 1)
        return few_steps.dpm_solver_pp(sde, conditional, noise, times, stochastic=True).x

    return draw


def posterior(p: Problem, sde: sde_lib.SDE, score: Any, y: Array) -> Any:
    return inverse.posterior_guided(
        sde, score, p.operator, y, noise_std=p.noise_std, iterations=min(16, y[0].size)
    )


def pigdm(p: Problem, sde: sde_lib.SDE, score: Any, y: Array) -> Any:
    return moment_guidance.pigdm(
        sde, score, p.operator, y, noise_std=p.noise_std, data_std=p.prior.std, iterations=30
    )


def tmpd(p: Problem, sde: sde_lib.SDE, score: Any, y: Array) -> Any:
    return moment_guidance.tmpd(sde, score, p.operator, y, noise_std=p.noise_std)


def infill(p: Problem, sde: sde_lib.SDE, score: Any, y: Array) -> Any:
    return controllable.infilled(sde, score, exactly(p, y))


def exactly(p: Problem, y: Array) -> inverse.MeasurementConstraint:
    if p.noise_std or not p.linear:
        raise ValueError("the measurement is not exact")
    return inverse.constraint_of(p.operator, y, p.shape)


def dps(p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int) -> Array:
    times = grid_of(sde, nfe - 1)
    return inverse.dps(sde, score, noise, times, p.operator, y, scale=0.3).x


def replace(p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int) -> Array:
    known, process = exactly(p, y), dataclasses.replace(sde, N=nfe)
    return controllable.pc_infill(
        process, score, noise, known, predictor="ancestral_sampling", corrector="none"
    ).x


def repaint(p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int) -> Array:
    times = grid_of(sde, (nfe - 1) // 5)
    return controllable.repaint(sde, score, noise, times, exactly(p, y), jump=1, repeats=5).x


def spectral(p: Problem, y: Array) -> svd.SVD:
    if not p.linear:
        raise ValueError("the operator is not linear")
    return svd.decomposition(p.operator, p.shape)


def ddrm(p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int) -> Array:
    times, parts = grid_of(sde, nfe - 1), spectral(p, y)
    return restoration.ddrm(sde, score, noise, times, parts, y, noise_std=p.noise_std).x


def ddnm(p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int) -> Array:
    times, parts = grid_of(sde, nfe - 1), spectral(p, y)
    return restoration.ddnm(sde, score, noise, times, parts, y, noise_std=p.noise_std).x


def diffpir(p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int) -> Array:
    times = grid_of(sde, nfe - 1)
    return restoration.diffpir(
        sde, score, noise, times, p.operator, y, noise_std=p.noise_std, iterations=30
    ).x


def daps(p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int) -> Array:
    times = grid_of(sde, nfe - 1)
    if p.linear:
        given = decoupled.linear_conditional(spectral(p, y), y, p.noise_std)
    else:
        given = decoupled.langevin_conditional(p.operator, y, p.noise_std, steps=50)
    return decoupled.daps(sde, score, noise, times, given, data_std=p.prior.std).x


def particles(
    p: Problem, sde: Any, score: Any, noise: Any, y: Array, nfe: int, count: int
) -> Array:
    times, gain = grid_of(sde, nfe // count - 1), twisted.gain_of(p.operator, p.shape)
    options = {"noise_std": p.noise_std, "data_std": p.prior.std, "count": count, "gain": gain}
    return twisted.twisted(sde, score, noise, times, p.operator, y, **options).x


METHODS: dict[str, Method] = {
    "posterior": sampled(posterior),
    "pigdm": sampled(pigdm),
    "tmpd": sampled(tmpd),
    "dps": dps,
    "ddrm": ddrm,
    "ddnm": ddnm,
    "diffpir": diffpir,
    "daps": daps,
    "twisted, 8 particles": functools.partial(particles, count=8),
    "infill": sampled(infill),
    "replace": replace,
    "repaint": repaint,
}


def sliced_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """The root mean square, over 128 directions, of the Wasserstein-2 distances of projections.

    Of as many draws a and b [N, D]; scaled by sqrt(D), so that two point masses one apart in every
    entry are at the distance 1 in any dimension.
    """
    directions = np.random.RandomState(0).standard_normal((a.shape[1], 128))
    directions *= np.sqrt(a.shape[1]) / np.linalg.norm(directions, axis=0)
    ordered = [np.sort(x @ directions, 0) for x in (a, b)]
    return float(np.sqrt(np.mean(np.square(ordered[0] - ordered[1])) / a.shape[1]))


def errors_of(problem: Problem) -> tuple[Errors, float]:
    """The distances by method and NFE, and that of exact draws to others."""
    sde, rng = sde_lib.VPSDE(), np.random.RandomState(1)
    truths = problem.prior.sample(rng, MEASUREMENTS)
    y = problem.measured(truths)
    y += problem.noise_std * rng.standard_normal(y.shape)
    exact = [problem.posterior(row, rng, problem.draws) for row in y]
    others = [problem.posterior(row, rng, problem.draws) for row in y]
    floor = float(np.mean([sliced_wasserstein(a, b) for a, b in zip(exact, others, strict=True)]))
    score = problem.prior.score_fn(sde)

    def noise(y: Array, i: Any) -> Array:
        """Draw number i of all images at once, which compiles sooner than one of each."""
        key = jax.random.fold_in(jax.random.key(0), i)
        return jax.random.normal(key, (len(y), *problem.shape))

    seen = jax.eval_shape(problem.operator, jax.ShapeDtypeStruct((1, *problem.shape), jnp.float32))
    repeated = jnp.asarray(y.repeat(problem.draws, 0).reshape(-1, *seen.shape[1:]), jnp.float32)
    errors: Errors = {}
    for name, method in METHODS.items():
        errors[name] = {}
        for nfe in SIZES:
            began = time.process_time()
            try:

                @jax.jit
                def draw(y: Array, method: Method = method, nfe: int = nfe) -> Array:
                    return method(problem, sde, score, functools.partial(noise, y), y, nfe)

                x = np.asarray(draw(repeated), np.float64).reshape(MEASUREMENTS, problem.draws, -1)
            except ValueError as refusal:
                print(f"{problem.title}, {name}, NFE {nfe}: {refusal}", file=sys.stderr)
                continue
            distances = [sliced_wasserstein(a, b) for a, b in zip(x, exact, strict=True)]
            errors[name][nfe] = float(np.mean(distances))
            seconds = time.process_time() - began
            print(
                f"{problem.title}, {name}, NFE {nfe}: {errors[name][nfe]:.3f} ({seconds:.1f} s)",
                file=sys.stderr,
                flush=True,
            )
    return errors, floor


def markdown(results: dict[str, tuple[Errors, float]]) -> str:
    """One table: the distances at `SIZES` evaluations, a column for each problem."""
    sizes = ", ".join(map(str, SIZES[:-1])) + f" and {SIZES[-1]}"
    lines = [
        f"Distances at {sizes} NFE:",
        "",
        f"| method | {' | '.join(results)} |",
        "|---" * (len(results) + 1) + "|",
    ]
    for name in METHODS:
        cells = []
        for errors, _ in results.values():
            row = errors[name]
            numbers = [f"{row[nfe]:.3f}" if nfe in row else "–" for nfe in SIZES]
            cells.append(", ".join(numbers) if row else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    floors = [f"{floor:.3f}" for _, floor in results.values()]
    lines.append(f"| exact draws | {' | '.join(floors)} |")
    return "\n".join(lines) + "\n"


def draw_curves(path: pathlib.Path, results: dict[str, tuple[Errors, float]]) -> None:
    """A panel for each problem, with the distance of exact draws as a grey line."""
    figure = Figure(figsize=(4.2 * len(results) + 1.6, 4.2), dpi=90, layout="constrained")
    for axes, (title, (errors, floor)) in zip(
        np.atleast_1d(figure.subplots(1, len(results))), results.items(), strict=True
    ):
        axes.axhline(floor, color="0.6", linewidth=3.0, zorder=0)
        for k, (name, row) in enumerate(errors.items()):
            style = ("-o", "--s")[k // 10]
            axes.plot(
                *zip(*row.items(), strict=True) if row else ([], []),
                style,
                color=f"C{k % 10}",
                label=name,
                linewidth=3.2 - 0.18 * k,  # what lies on another is seen below it
                markersize=6.0 - 0.3 * k,
            )
        axes.set(xscale="log", yscale="log", xlabel="NFE")
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FormatStrFormatter("%.2f"))
        axes.yaxis.set_minor_formatter(FormatStrFormatter("%.2f"))
        axes.tick_params(labelsize="small", which="both")
        axes.set_title(title, fontsize="medium", loc="left")
        axes.grid(color="0.9", linewidth=0.7)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    figure.supylabel("sliced Wasserstein-2 distance to the posterior", fontsize="medium")
    FigureCanvasAgg(figure).print_figure(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=pathlib.Path, help="whose table is written anew")
    parser.add_argument("--picture", type=pathlib.Path, help="where to draw the curves")
    args = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # much is compiled, little computed
    results = {problem.title: errors_of(problem) for problem in problems()}
    table = markdown(results)
    print(table)
    if args.page:
        pages.write(args.page, "benchmarks/inverse.py", table)
    if args.picture:
        draw_curves(args.picture, results)
    print(f"{time.process_time():.0f} s of CPU time", file=sys.stderr)


if __name__ == "__main__":
    main()
