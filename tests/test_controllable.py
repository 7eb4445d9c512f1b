"""Guidance and in-filling against closed forms and the original code's numbers."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import controllable
import sampling
from diffusion import few_steps, grids, inverse
from diffusion.noise import image_noise, recorded_noise
from diffusion.trajectory import Samples
from sde_lib import SDE, VESDE, VPSDE, ScoreFn, batch_mul
from tests import analytic_models, gaussians, golden_cases
from tests.test_sampling import keys_of, normal_noise

Array = jax.Array

# Guidance: for a mixture every conditional score is known.


def mixture_scores(sde: SDE, y: Array) -> tuple[Any, Any, Any]:
    """Scores of the mixture and of its parts y [B], and log p_t(part | x)."""
    mixture = gaussians.two_modes((2, 2, 1))

    def log_posterior(x: Array, t: Array) -> Array:
        return jax.vmap(lambda x, t: jax.nn.log_softmax(mixture._log_parts(sde, x, t)))(x, t)

    def of_part(x: Array, t: Array) -> Array:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = batch_mul(alpha**2, mixture.stds[y] ** 2) + batch_mul(sigma**2, jnp.ones_like(x))
        return (batch_mul(alpha, mixture.means[y]) - x) / variance

    return mixture.score_fn(sde), of_part, log_posterior


@pytest.mark.parametrize(
    "kind",
    [
        "vp",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("subvp", "ve", "cosine", "edm")),
    ],
)
def test_guidance_by_the_exact_classifier_is_the_score_of_the_class(kind: str) -> None:
    """And classifier-free guidance of any scale is classifier guidance of that scale."""
    sde = gaussians.EVERY_SDE[kind]
    x, t = gaussians.places(sde, 6, seed=5, margin=0.02)
    y = jnp.array([0, 1, 1, 0, 1, 0])
    score_fn, of_part, log_posterior = mixture_scores(sde, y)
    likelihood = controllable.of_class(log_posterior, y)

    @jax.jit
    def compare() -> list[Array]:
        free = controllable.classifier_free
        exact = sde.sigma(t).reshape(-1, 1, 1, 1) * of_part(x, t)
        pairs = [
            (controllable.guided(score_fn, likelihood)(x, t), of_part(x, t)),
            (free(score_fn, of_part, 1.0)(x, t), of_part(x, t)),
            (free(score_fn, of_part, 0.0)(x, t), score_fn(x, t)),
            (
                free(score_fn, of_part, 2.5)(x, t),
                controllable.guided(score_fn, likelihood, 2.5)(x, t),
            ),
        ]
        errors = [jnp.abs(batch_mul(sde.sigma(t), a - b)).max() for a, b in pairs]
        moved = jnp.abs(exact - batch_mul(sde.sigma(t), score_fn(x, t))).max()
        return [jnp.stack(errors), moved]

    errors, moved = compare()
    assert jnp.all(errors < 2e-5), errors
    assert moved > 0.05, "the class makes a difference"


def test_guidance_acts_inside_its_interval_only() -> None:
    sde = VPSDE()
    low, high = controllable.times_of_noise(sde, 0.5, 2.0)
    ends = jnp.array([low, high])
    np.testing.assert_allclose(sde.sigma(ends) / sde.alpha(ends), [0.5, 2.0], rtol=1e-4)
    scale = controllable.within(low, high, 3.0, 1.0)
    t = jnp.array([low, low + 0.01, high, high + 0.01])
    np.testing.assert_array_equal(scale(t), [1.0, 3.0, 3.0, 1.0])
    combined = controllable.classifier_free(lambda x, t: x, lambda x, t: 2 * x, scale)
    np.testing.assert_allclose(combined(jnp.ones((4, 1)), t)[:, 0], 1 + scale(t))
    assert controllable.times_of_noise(sde, 0.0, 1e9) == (pytest.approx(0.0, abs=1e-6), sde.T)
    with pytest.raises(ValueError, match=r"interval \(0.5, 0.5\] is empty"):
        controllable.within(0.5, 0.5, 3.0, 1.0)


def test_a_class_out_of_range_is_no_class() -> None:
    def log_prob(x: Array, t: Array) -> Array:
        return jnp.log(jnp.full((len(x), 2), 0.5))

    found = controllable.of_class(log_prob, jnp.array([0, 2, -1]))(jnp.zeros((3, 1)), jnp.ones(3))
    np.testing.assert_array_equal(jnp.isnan(found), [False, True, True])
    with pytest.raises(ValueError, match="3 classes for 1 images"):
        controllable.of_class(log_prob, jnp.array([0, 0, 1]))(jnp.zeros((1, 1)), jnp.ones(1))


# In-filling.

CORRELATION = 0.8


def correlated_score(sde: SDE) -> ScoreFn:
    """Two pixels, N(0, [[1, c], [c, 1]]): their mean and difference are independent."""

    def score_fn(x: Array, t: Array) -> Array:
        mean = jnp.broadcast_to(x.mean(2, keepdims=True), x.shape)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        together = 1.0 / (alpha**2 * (1 + CORRELATION) + sigma**2)
        apart = 1.0 / (alpha**2 * (1 - CORRELATION) + sigma**2)
        return -batch_mul(together, mean) - batch_mul(apart, x - mean)

    return score_fn


def law_of_the_unknown(sde: SDE, y: float, steps: int = 3000) -> tuple[float, float]:
    """Mean and variance of the second pixel under the reverse SDE of the in-filled score.

    The SDE is linear, so both solve ordinary differential equations; integrated by Euler's method.
    """
    ts = np.linspace(sde.T, 1e-3, steps + 1)
    with jax.ensure_compile_time_eval():
        times = jnp.asarray(ts)
        alpha, sigma = np.asarray(sde.alpha(times)), np.asarray(sde.sigma(times))
        f = np.asarray(sde.drift(jnp.ones((len(ts), 1)), times))[:, 0]
        g2 = np.asarray(sde.diffusion(times)) ** 2
    mean, covariance = np.zeros(2), np.eye(2)
    for i in range(steps):
        h = ts[i] - ts[i + 1]
        a, s2 = alpha[i], sigma[i] ** 2
        precision = np.linalg.inv(
            a**2 * np.array([[1, CORRELATION], [CORRELATION, 1]]) + s2 * np.eye(2)
        )
        score = np.stack([[-1 / s2, 0.0], -precision[1]])
        drift = -f[i] * np.eye(2) + g2[i] * score
        mean = mean + h * (drift @ mean + g2[i] * np.array([a * y / s2, 0.0]))
        covariance = covariance + h * (
            drift @ covariance + covariance @ drift.T + g2[i] * np.eye(2)
        )
    return float(mean[1]), float(covariance[1, 1])


def test_in_filling_is_exact_where_pixels_are_independent() -> None:
    """Pointwise, for isotropic data: known pixels, or grey, are those of one point; others stay."""
    sde, mean, std = VPSDE(), 0.3, 0.5
    t = jnp.array([0.1, 0.4, 0.9])
    x, values = np.random.default_rng(1).standard_normal((2, 3, 2, 2, 3)).astype(np.float32)
    score_fn = gaussians.linear_score(sde, mean, std)
    mask = jnp.array([[[1.0], [0.0]]])

    @jax.jit
    def scores() -> tuple[Array, ...]:
        painted = controllable.infilled(sde, score_fn, controllable.in_painting(values, mask))
        coloured = controllable.infilled(sde, score_fn, controllable.colourisation(values))
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        point = batch_mul(1 / sigma**2, batch_mul(alpha, values) - x)
        return painted(x, t), coloured(x, t), point, score_fn(x, t)

    painted, coloured, point, free = scores()
    point, free = np.asarray(point), np.asarray(free)
    np.testing.assert_array_equal(painted, np.where(np.asarray(mask) > 0, point, free))
    grey = np.mean(point, -1, keepdims=True)
    expected = grey + free - np.mean(free, -1, keepdims=True)
    np.testing.assert_allclose(coloured, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_in_filling_has_the_law_of_its_own_sde_and_time_travel_that_of_the_posterior() -> None:
    """The posterior of the unknown pixel is N(c y, 1 - c^2); 2,048 samples, error 0.02 and 3 %.

    The noised known pixel says less than the known one, so the in-filled SDE has a smaller mean and
    a larger variance. Replacement has about the same bias; repeated steps take it away.
    """
    sde, y = VPSDE(), 1.5
    score_fn = correlated_score(sde)
    key = jax.random.key(0)
    noise = lambda i: jax.random.normal(jax.random.fold_in(key, i), (2048, 1, 2, 1))  # noqa: E731
    known = controllable.in_painting(jnp.full((2048, 1, 2, 1), y), jnp.array([[[1.0], [0.0]]]))

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def moments(steps: int, jump: int, repeats: int) -> Array:
        times = grids.time_grid(sde, "log_snr", steps)
        if repeats:
            painted = controllable.repaint
            x = painted(sde, score_fn, noise, times, known, jump=jump, repeats=repeats).x
        else:
            infilled = controllable.infilled(sde, score_fn, known)
            x = few_steps.ddim(sde, infilled, noise, times, eta=1.0).x
        return jnp.array([x[:, 0, 1].mean(), x[:, 0, 1].var(), jnp.abs(x[:, 0, 0] - y).max()])

    mean, variance = law_of_the_unknown(sde, y)
    exact = CORRELATION * y, 1 - CORRELATION**2
    assert mean < 0.7 * exact[0]
    assert variance > 1.4 * exact[1]
    found = moments(300, 1, 0)
    np.testing.assert_allclose(found[:2], [mean, variance], rtol=0.06)
    assert found[2] < 1e-5, "the known pixel"
    once, often = moments(50, 5, 1), moments(50, 5, 20)
    assert once[0] < 0.7 * exact[0]
    np.testing.assert_allclose(often[0], exact[0], rtol=0.06)
    assert abs(often[1] - exact[1]) < 0.5 * (variance - exact[1])
    assert once[2] == often[2] == 0.0


def test_time_travel_is_algorithm_1_of_repaint_step_by_step() -> None:
    """Three times, each step twice: onward to where the known part is noised anew, and back. Images
    have more pixels than there are images, and draws are known."""
    sde, times = VPSDE(), np.array([1.0, 0.6, 0.2])
    score_fn = gaussians.two_modes((5,)).score_fn(sde)
    draws = jnp.asarray(np.random.default_rng(0).standard_normal((13, 3, 5)), jnp.float32)
    values, mask = draws[12], jnp.array([1.0, 0.0, 0.0, 1.0, 0.0])
    known = controllable.in_painting(values, mask)
    found = controllable.repaint(
        sde, score_fn, recorded_noise(draws), times, known, jump=1, repeats=2
    )
    x = draws[0]
    for i, (start, end) in enumerate([(0, 1), (1, 0), (0, 1), (1, 2), (2, 1), (1, 2)]):
        t, s = (jnp.full(3, times[k], jnp.float32) for k in (start, end))
        alpha = sde.alpha(s) / sde.alpha(t)
        if end < start:
            std = jnp.sqrt(1 - jnp.square(alpha))
            x = batch_mul(alpha, x) + batch_mul(std, draws[1 + 2 * i])
            continue
        x0 = batch_mul(1 / sde.alpha(t), x + batch_mul(sde.sigma(t) ** 2, score_fn(x, t)))
        step = 1 - jnp.square(sde.alpha(t) / sde.alpha(s))  # the variance of x_t given x_s
        of_x = (sde.sigma(s) / sde.sigma(t)) ** 2 / alpha
        of_x0 = sde.alpha(s) * step / sde.sigma(t) ** 2
        std = jnp.sqrt(step) * sde.sigma(s) / sde.sigma(t)
        x = batch_mul(of_x0, x0) + batch_mul(of_x, x) + batch_mul(std, draws[1 + 2 * i])
        noised = batch_mul(sde.alpha(s), values) + batch_mul(sde.sigma(s), draws[2 + 2 * i])
        x = jnp.where(mask > 0, noised, x)
    t = jnp.full(3, times[-1], jnp.float32)
    x0 = batch_mul(1 / sde.alpha(t), x + batch_mul(sde.sigma(t) ** 2, score_fn(x, t)))
    np.testing.assert_allclose(found.x, jnp.where(mask > 0, values, x0), rtol=1e-3, atol=1e-4)
    assert found.nfe == 5


SAMPLERS: dict[str, Any] = {
    "pc": lambda sde, score_fn, noise, known: sampling.pc_sampler(
        dataclasses.replace(sde, N=500), controllable.infilled(sde, score_fn, known), noise
    ),
    "ode": lambda sde, score_fn, noise, known: sampling.ode_sampler(
        sde, controllable.infilled(sde, score_fn, known), noise, rtol=1e-2, atol=1e-2
    ),
    "unipc": lambda sde, score_fn, noise, known: few_steps.unipc(
        sde,
        controllable.infilled(sde, score_fn, known),
        noise,
        grids.time_grid(sde, "log_snr", 8),
    ),
    "replaced": lambda sde, score_fn, noise, known: controllable.pc_infill(
        sde, score_fn, noise, known
    ),
    "repaint": lambda sde, score_fn, noise, known: controllable.repaint(
        sde, score_fn, noise, grids.time_grid(sde, "log_snr", 8), known, jump=3, repeats=2
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [*[(name, "in_painting") for name in SAMPLERS], ("unipc", "colour"), ("repaint", "colour")],
)
def test_every_sampler_keeps_what_is_known_and_each_image_is_its_own(name: str, task: str) -> None:
    """In-painting keeps pixels, colourisation the grey channel; neighbours change nothing.

    Solvers that do not end on E[x_0 | x] leave the noise of the last time, 1e-2, on known pixels.
    """
    sde = VPSDE(N=30, beta_max=10.0)
    score_fn = analytic_models.score_fn(sde, "vp", 0.3)
    images = jnp.asarray(np.random.default_rng(7).standard_normal((3, 4, 4, 3)), jnp.float32)
    if task == "colour":
        known = controllable.colourisation(images.mean(-1, keepdims=True))
    else:
        known = controllable.in_painting(images, (jnp.arange(4) < 2)[:, None, None])

    @jax.jit
    def run(values: Array, keys: Array) -> Samples:
        def one(values: Array, key: Array) -> Samples:
            given = dataclasses.replace(known, values=values[None])
            noise = image_noise(key[None], (4, 4, 3))
            samples = SAMPLERS[name](sde, score_fn, noise, given)
            return jax.tree.map(lambda leaf: jnp.reshape(leaf, jnp.shape(leaf)[1:]), samples)

        return jax.vmap(one)(values, keys)

    keys, order = keys_of(jnp.arange(3)), jnp.array([2, 0, 0])
    x = run(known.values, keys).x
    assert jnp.abs(x[0] - x[1]).max() > 0.1
    np.testing.assert_allclose(run(known.values[order], keys[order]).x, x[order], atol=1e-5)
    if task == "colour":
        np.testing.assert_allclose(x.mean(-1), images.mean(-1), atol=1e-5)
        assert x.std(-1).max() > 0.1
    else:
        bound = {"ode": 0.1, "pc": 0.1, "unipc": 1e-5}.get(name, 0.0)
        assert jnp.abs(x - images)[:, :2].max() <= bound
        assert jnp.abs(x - images)[:, 2:].max() > 0.5


def golden_cases_of(task: str) -> list[Any]:
    """Runs `<task>_<tag>` of every math/*controllable* file."""
    cases = []
    for path in golden_cases.about("math", "controllable"):
        for tag, settings in golden_cases.load(path)["meta_json"].items():
            slow = settings["n_steps"] > 1 or settings["beta_max"] != 20.0
            marks = [pytest.mark.slow] if slow else []
            name = f"{path.stem}-{task}-{tag}"
            cases.append(pytest.param(task, path, tag, id=name, marks=marks))
    return cases


@dataclasses.dataclass(frozen=True)
class RoundedVPSDE(VPSDE):
    """VP whose standard deviation loses the digits that it loses in the original's float32."""

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(1.0 - jnp.exp(2.0 * self.log_alpha(t)))


@pytest.mark.golden
@pytest.mark.parametrize(
    ("task", "path", "tag"), [*golden_cases_of("inpaint"), *golden_cases_of("color")]
)
def test_official_in_painting_and_colourisation(task: str, path: pathlib.Path, tag: str) -> None:
    """The original's runs with its own noise, in its own way (`official`)."""
    stored = golden_cases.load(path)
    settings, kind = stored["meta_json"][tag], stored["meta_json"][tag]["sde"]
    sde = analytic_models.sde_of(kind, settings)
    if kind == "vp":
        sde = RoundedVPSDE(**dataclasses.asdict(sde))
    score_fn = analytic_models.score_fn(sde, kind, settings["mix"], settings["continuous"])
    if task == "color":
        known = controllable.colourisation(jnp.asarray(golden_cases.nhwc(stored["gray"])))
    else:
        data, mask = (golden_cases.nhwc(stored[name]) for name in ("data", "mask"))
        known = controllable.in_painting(jnp.asarray(data), jnp.asarray(mask))

    @jax.jit
    def run(draws: Array) -> Array:
        return controllable.pc_infill(
            sde,
            score_fn,
            recorded_noise(draws),
            known,
            predictor=settings["predictor"],
            corrector=settings["corrector"],
            snr=settings["snr"],
            n_steps_each=settings["n_steps"],
            denoise=settings["denoise"],
            eps=settings["eps"],
            corrector_norm="batch",
            official=True,
        ).x

    noise = stored[f"{task}_{tag}/noise"]
    assert len(noise) == settings["noise_draws"]
    out = (run(golden_cases.nhwc(noise)) + 1) / 2
    expected = golden_cases.nhwc(stored[f"{task}_{tag}/out"])
    np.testing.assert_allclose(out, expected, atol=5e-5)


@pytest.mark.golden
@pytest.mark.parametrize(
    "path", golden_cases.about("math", "controllable"), ids=lambda path: path.stem
)
def test_the_basis_is_the_papers(path: pathlib.Path) -> None:
    stored = golden_cases.load(path)
    np.testing.assert_allclose(controllable.GREY_AND_COLOURS, stored["M"], atol=5e-7)
    np.testing.assert_allclose(controllable.GREY_AND_COLOURS.T, stored["invM"], atol=5e-7)


@pytest.mark.slow
def test_replacement_denoises_what_it_fills_in_unless_official() -> None:
    """With data that are one point, the last mean is that point; the official end is noisy."""
    sde = VESDE(N=20, sigma_min=0.1, sigma_max=5.0)
    known = controllable.in_painting(jnp.full((2, 2, 2, 1), 0.3), jnp.array([[[1.0]], [[0.0]]]))

    @jax.jit
    def run() -> tuple[Array, Array]:
        ends = [
            controllable.pc_infill(
                sde,
                gaussians.linear_score(sde, 0.3, 0.0),
                normal_noise(2, (2, 2, 1)),
                known,
                predictor="reverse_diffusion",
                corrector="none",
                official=official,
            )
            for official in (False, True)
        ]
        return ends[0].x, ends[1].x

    ours, official = run()
    np.testing.assert_array_equal(ours[:, 0], 0.3 * jnp.ones((2, 2, 1)))
    error, official_error = (jnp.abs(x - 0.3)[:, 1].max() for x in (ours, official))
    assert error < 1e-4
    assert official_error > 0.03


def test_time_is_travelled_in_stretches() -> None:
    assert controllable.travel(3, 2, 2).tolist() == [0, 1, 2, 0, 1, 2, 3, 2, 3]
    assert controllable.travel(4, 1, 1).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="jump 0, repeats 2: all must be 1 or more"):
        controllable.travel(4, 0, 2)


def test_what_cannot_be_filled_in_is_refused() -> None:
    images: Any = np.zeros((2, 4, 4, 1))
    other: Any = np.zeros((2, 4, 4, 4))
    ones: Any = np.ones((3, 4, 1))
    with pytest.raises(ValueError, match=r"mask is \(3, 4, 1\), which does not fit .*4, 4, 1"):
        controllable.in_painting(images, ones)
    with pytest.raises(
        ValueError, match=r"0 \(unknown.*\) or 1 \(known.*\) everywhere; it has 0.5"
    ):
        controllable.check_mask(np.array([[[1.0]], [[0.5]], [[0.0]], [[1.0]]]), images.shape)
    with pytest.raises(ValueError, match="nothing to paint"):
        controllable.check_mask(np.ones((4, 4, 1)), images.shape)
    with pytest.raises(ValueError, match="plain sampling"):
        controllable.check_mask(np.zeros((4, 4, 1)), images.shape)
    with pytest.raises(ValueError, match="3 channels, not 4"):
        controllable.colourisation(other)
    known = controllable.in_painting(images, ones[:1])
    run = functools.partial(
        controllable.pc_infill, VPSDE(N=30), lambda x, t: x, normal_noise(2), known
    )
    with pytest.raises(ValueError, match="both 'none'"):
        run(predictor="none", corrector="none")
    with pytest.raises(ValueError, match="n_steps_each must be at least 1, not 0"):
        run(n_steps_each=0)
    with pytest.raises(ValueError, match="unknown predictor 'euler'"):
        run(predictor="euler")
    with pytest.raises(ValueError, match="unknown corrector_norm 'mean'"):
        run(corrector_norm="mean")
    lines = inverse.MeasurementConstraint(inverse.identity, images)
    with pytest.raises(ValueError, match="official start is defined for masks"):
        controllable.pc_infill(
            VPSDE(N=30), lambda x, t: x, normal_noise(2, (4, 4, 1)), lines, official=True
        )
