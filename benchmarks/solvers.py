"""Error against evaluations (NFE) of the samplers: closed-form scores and the quickstart network.

    python benchmarks/solvers.py [--workdir=runs/quickstart] [--picture=docs/pictures/error_nfe.png]

Prints one Markdown table each of

1. the error of the law of the samples, for data N(m, diag(s^2)) with the means and deviations of
   the digits' pixels: exact, for then a sampler is affine in its draws;
2. the deviation from the probability flow, for a mixture of Gaussians (deterministic samplers);
3. with --workdir, the Fréchet distance of a trained network's images to its training images, in
   the features of the data set's own classifier;

and draws them as curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import data
import sampling
import sde_lib
from configs import quickstart
from data import transforms
from diffusion import few_steps, grids, reverse_sde
from diffusion.noise import image_noise, recorded_noise
from diffusion.trajectory import denoised
from evaluation.metrics import classifier, frechet
from runtime import devices, experiment, figures
from runtime.workdir import restore
from tests import gaussians

Array = jax.Array
Errors = dict[str, dict[int, float]]  # by sampler and NFE

SIZES = (10, 15, 20, 30, 50, 100)
LONG = (200, 500, 1000)  # for samplers of the discretised reverse SDE
# Name -> predictor, corrector, whether it is the flow, evaluations a step.
CHAINS: dict[str, tuple[str, str, bool, int]] = {
    "euler_maruyama": ("euler_maruyama", "none", False, 1),
    "reverse_diffusion": ("reverse_diffusion", "none", False, 1),
    "ancestral_sampling": ("ancestral_sampling", "none", False, 1),
    "reverse_diffusion, flow": ("reverse_diffusion", "none", True, 1),
    "reverse_diffusion, langevin": ("reverse_diffusion", "langevin", False, 2),
    "langevin": ("none", "langevin", False, 1),
}
# Name -> solver, its time grid, evaluations a step.
FEW: dict[str, tuple[Callable[..., Any], str, int]] = {
    "ddim": (few_steps.ddim, "uniform", 1),
    "ddim, eta 1": (functools.partial(few_steps.ddim, eta=1.0), "uniform", 1),
    "dpm_2": (functools.partial(few_steps.dpm_solver, order=2), "log_snr", 2),
    "dpm_3": (functools.partial(few_steps.dpm_solver, order=3), "log_snr", 3),
    "dpmpp_2m": (functools.partial(few_steps.dpm_solver_pp, order=2), "log_snr", 1),
    "dpmpp_3m": (functools.partial(few_steps.dpm_solver_pp, order=3), "log_snr", 1),
    "dpmpp_2m_sde": (functools.partial(few_steps.dpm_solver_pp, stochastic=True), "log_snr", 1),
    "edm": (few_steps.edm, "karras", 2),
    "edm, churn 10": (functools.partial(few_steps.edm, churn=10.0), "karras", 2),
    "deis_2": (functools.partial(few_steps.deis, order=2), "log_snr", 1),
    "deis_3": (functools.partial(few_steps.deis, order=3), "log_snr", 1),
    "sa_solver_2, tau 1": (functools.partial(few_steps.sa_solver, order=2), "log_snr", 1),
    "sa_solver_3, tau 1": (functools.partial(few_steps.sa_solver, order=3), "log_snr", 1),
    "unipc_2": (functools.partial(few_steps.unipc, order=2), "log_snr", 1),
    "unipc_3": (functools.partial(few_steps.unipc, order=3), "log_snr", 1),
}
SHARK = "sde, ShARK"
ADAPTIVE = {"ode": sampling.ode_sampler, "sde": reverse_sde.sde_sampler}
TOLERANCES = (1e-1, 1e-2, 1e-3)
DETERMINISTIC = [name for name in FEW if not name.endswith(("1", "sde", "10"))]


def sample(name: str, nfe: int, sde: sde_lib.SDE, score_fn: Any, noise: Any) -> Array:
    """Samples of at most `nfe` evaluations; the solvers with few steps keep one to denoise.

    Raises:
      ValueError: a chain of so few steps does not exist.
    """
    if name in CHAINS:
        predictor, corrector, flow, stages = CHAINS[name]
        return sampling.pc_sampler(
            dataclasses.replace(sde, N=nfe // stages),
            score_fn,
            noise,
            predictor=predictor,
            corrector=corrector,
            probability_flow=flow,
        ).x
    if name == SHARK:
        times = grids.time_grid(sde, "log_snr", (nfe - 1) // reverse_sde.sde_solvers()["ShARK"][1])
        return reverse_sde.sde_sampler(sde, score_fn, noise, times=times).x
    solver, grid, stages = FEW[name]
    times = grids.time_grid(sde, grid, (nfe - 1) // stages)
    return solver(sde, score_fn, noise, times).x


def law_errors() -> Errors:
    """Root mean square over pixels of the Wasserstein-2 distance of their laws, each a Gaussian.

    The data have the means and deviations of the pixels of the (dequantised) digits. Image i has
    draw i equal to 1 and all others 0, the last image none: their distances are the coefficients
    of the draws, and the variance of a sample is the sum of their squares.
    """
    sde = sde_lib.VPSDE()
    digits = data.from_config(quickstart.get_config(), "train")
    pixels = (2 * digits.take(np.arange(len(digits)))[0].reshape(len(digits), -1) + 1.0) / 17 - 1
    mean, std = pixels.mean(0), np.sqrt(pixels.var(0) + (2 / 17) ** 2 / 12)
    score_fn = gaussians.gaussian(mean, std, mean.shape).score_fn(sde)

    def error(name: str, nfe: int) -> float:
        def noise(i: Any) -> Array:
            return jnp.where(jnp.arange(nfe + 2) == i, 1.0, 0.0)[:, None] * jnp.ones_like(mean)

        x = np.asarray(jax.jit(lambda: sample(name, nfe, sde, score_fn, noise))(), np.float64)
        deviation = np.sqrt(np.sum((x[:-1] - x[-1]) ** 2, 0))
        return float(np.sqrt(np.mean((x[-1] - mean) ** 2 + (deviation - std) ** 2)))

    affine = [name for name in CHAINS if not name.endswith("langevin")]
    return sweep(affine, SIZES + LONG, error) | sweep(FEW, SIZES, error)


def flow_errors() -> Errors:
    """Root mean square deviation of 64 denoised samples from the flow's, for a mixture in 2-D."""
    sde = sde_lib.VPSDE()
    score_fn = gaussians.two_modes((2,)).score_fn(sde)
    noise = recorded_noise(jax.random.normal(jax.random.key(0), (1, 64, 2)))

    @jax.jit
    def solution() -> Array:
        x = sampling.ode_sampler(sde, score_fn, noise, rtol=1e-6, atol=1e-6).x
        return denoised(sde, score_fn, x, sde.sampling_eps)

    exact = solution()

    def error(name: str, nfe: int) -> float:
        x = jax.jit(lambda: sample(name, nfe, sde, score_fn, noise))()
        return float(jnp.sqrt(jnp.mean(jnp.square(x - exact))))

    return sweep(DETERMINISTIC, SIZES, error)


def network_errors(
    workdir: pathlib.Path, count: int
) -> tuple[Errors, list[tuple[str, float, float, float]], frechet.Splits]:
    """Fréchet distances of `count` images from as many training images, means of 10 draws.

    Returns:
      The distances of the samplers with a number of steps; rows (sampler, tolerance, NFE, distance)
      of the adaptive ones; and the distance between disjoint sets of as many training images, which
      a perfect sampler would get.
    """
    config = quickstart.get_config()
    parts = experiment.build(config)
    params = devices.fetch(restore(config, parts, workdir).params)
    score_fn = parts.score(params)
    real = data.from_config(config, "train")
    extractor = classifier.load(real, data.from_config(config, "test"))
    expected = extractor.features(real.take(np.arange(len(real)))[0])
    keys = devices.image_keys(jax.random.key(0), jnp.arange(count))

    def distance(samples: Callable[[Any], tuple[Array, Any]]) -> tuple[float, float]:
        """The Fréchet distance of the images that `samples` makes of its noise, and the NFE."""

        @jax.jit
        def run(keys: Array) -> tuple[Array, Array]:
            x, nfe = samples(image_noise(keys, parts.image_shape))
            levels = transforms.inverse_scale(x, parts.levels, config.data.centered, True)
            return levels, jnp.mean(jnp.asarray(nfe, jnp.float32))

        images, nfe = run(keys)
        features = extractor.features(np.asarray(images))
        splits = frechet.split_distance(features, size=count, other=expected, n_splits=10)
        return splits.mean, float(nfe)

    def error(name: str, nfe: int) -> float:
        value, _ = distance(lambda noise: (sample(name, nfe, parts.sde, score_fn, noise), nfe))
        print(f"{name}, NFE {nfe}: {value:.2f}", file=sys.stderr, flush=True)
        return value

    def adaptive(name: str, tolerance: float) -> tuple[str, float, float, float]:
        def samples(noise: Any) -> tuple[Array, Any]:
            solved = ADAPTIVE[name](
                parts.sde, score_fn, noise, rtol=tolerance, atol=tolerance, denoise=True
            )
            return solved.x, solved.nfe

        value, nfe = distance(samples)
        print(f"{name}, {tolerance:g}: {value:.2f}, NFE {nfe:.0f}", file=sys.stderr, flush=True)
        return name, tolerance, nfe, value

    distances = sweep(FEW, (10, 20, 50), error)
    distances |= sweep([SHARK], (20, 50, 100), error)
    distances |= sweep(CHAINS, (100, 1000), error)
    solved = [adaptive(name, tolerance) for name in ADAPTIVE for tolerance in TOLERANCES]
    return distances, solved, frechet.split_distance(expected, size=count, n_splits=10)


def sweep(names: Any, sizes: Any, error: Callable[[str, int], float]) -> Errors:
    """The error (name, nfe) wherever the sampler can have so many evaluations."""
    errors: Errors = {}
    for name in names:
        errors[name] = {}
        for nfe in sizes:
            try:
                errors[name][nfe] = error(name, nfe)
            except ValueError as refusal:  # DDPM's chain with fewer steps than beta_max
                print(f"{name}, NFE {nfe}: {refusal}", file=sys.stderr)
    return errors


def markdown(title: str, errors: Errors, spec: str) -> str:
    """A table of errors by sampler and NFE."""
    sizes = sorted({nfe for row in errors.values() for nfe in row})
    lines = [
        f"### {title}",
        "",
        f"| NFE | {' | '.join(map(str, sizes))} |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name, row in errors.items():
        cells = [format(row[nfe], spec) if nfe in row else "" for nfe in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(path: pathlib.Path, panels: dict[str, Errors]) -> None:
    """One panel of curves for each table."""
    figure = Figure(figsize=(5.6 * len(panels), 4.0), dpi=100, layout="constrained")
    styles = {name: k for k, name in enumerate([*CHAINS, *FEW, SHARK])}
    for axes, (title, errors) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        for name, row in errors.items():
            k = styles[name]
            axes.plot(
                *zip(*row.items(), strict=True),
                "-o" if k < 10 else "--s",
                color=f"C{k % 10}",
                label=name,
                linewidth=1.3,
                markersize=3,
            )
        axes.set(xscale="log", yscale="log", xlabel="NFE")
        axes.set_title(title, fontsize="medium", loc="left")
        axes.grid(color="0.9", linewidth=0.7)
        axes.legend(frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    FigureCanvasAgg(figure).print_figure(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="of a trained quickstart")
    parser.add_argument("--count", type=int, default=300, help="images of the network")
    parser.add_argument("--picture", type=pathlib.Path, help="where to draw the curves")
    args = parser.parse_args()
    panels = {"error of the law, Gaussian with the moments of the digits": law_errors()}
    print(markdown(*list(panels.items())[-1], ".1e"))
    panels["deviation from the flow, mixture"] = flow_errors()
    print(markdown(*list(panels.items())[-1], ".1e"))
    if args.workdir:
        distances, solved, perfect = network_errors(args.workdir, args.count)
        title = f"Fréchet distance of the network's images, {args.count} and {args.count}"
        print(markdown(title, distances, ".1f"))
        print(figures.table(solved, ["adaptive", "rtol = atol", "mean NFE", "distance"]))
        print(f"between training images: {perfect.mean:.1f} ± {perfect.std:.1f}")
        panels["Fréchet distance, network"] = distances
    if args.picture:
        draw(args.picture, panels)


if __name__ == "__main__":
    main()
