"""Mutants of the update rules: a changed sign, factor or time index, which the tests must notice.

    python tests/mutation.py [--sample N] [--seed 0] [--file sampling.py]

Mutants of the update rules are made from their syntax trees, one at a time, in a copy of the
project. A mutant that its quick tests (`RULES`) let pass has survived, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ast
import multiprocessing
import os
import pathlib
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 300.0  # after which a mutant counts as noticed: it does not end

# Functions (or classes) of each file, and the tests that must notice a mutant of theirs.
RULES: list[tuple[str, str, dict[str, str]]] = [
    (
        "sampling.py",
        "euler_maruyama reverse_diffusion ancestral_sampling",
        {
            "sampling": "single_updates_of_the_original predictors_converge_at_order_one "
            "ancestral_subvp_is_exact_for_one_data_point",
            "few_steps": "ancestral_sampling_without_noise_is_ddim",
            "orders": "samplers_have_their_weak_order",
        },
    ),
    (
        "diffusion/flow_maps.py",
        "consistency_sampler consistency_tangent consistency_error",
        {"flow_maps": ""},
    ),
    (
        "sampling.py",
        "annealed_langevin_dynamics",
        {"few_steps": "annealed_langevin_dynamics_is_the_update_of_smld"},
    ),
    (
        "diffusion/langevin.py",
        "_batch_norm langevin annealed_langevin _steps",
        {
            "sampling": "single_updates_of_the_original "
            "batch_norm_is_the_mean_of_norms_over_batch_and_devices",
            "few_steps": "annealed_langevin_dynamics_is_the_update_of_smld",
        },
    ),
    (
        "sampling.py",
        "pc_sampler ode_sampler",
        {
            "sampling": "denoise_returns_the_mean_of_the_last_update pc_reports_true_evaluations "
            "ode_denoising_takes_one_noise_free_step_at_eps ode_reports_true_evaluations "
            "predictor_corrector_runs_of_the_original frames_are_states_of_the_same_run "
            "what_follows_an_update_takes_a_draw_of_its_own"
        },
    ),
    (
        "diffusion/reverse_sde.py",
        "LogSNRForm Steps sde_sampler",
        {"sampling": "sde_sampler_draws_the_data sde_sampler_gives_up_and_refuses"},
    ),
    (
        "diffusion/trajectory.py",
        "denoised",
        {"few_steps": "tweedie_is_the_posterior_mean"},
    ),
    (
        "diffusion/probes.py",
        "exact",
        {"likelihood": "exact_trace_and_both_probes_on_a_mixture"},
    ),
    (
        "diffusion/few_steps.py",
        "dpm_solver",
        {"few_steps": "every_deterministic_solver_has_its_order evaluations_are_counted"},
    ),
    (
        "diffusion/edm.py",
        "heun_along edm restart",
        {
            "few_steps": "churn_raises_the_noise_by_at_most_the_square_root_of_two "
            "churn_acts_between_its_limits a_restart_forgets_what_was_before "
            "without_a_restart_it_is_edm every_deterministic_solver_has_its_order "
            "stochastic_solvers_have_their_weak_order evaluations_are_counted"
        },
    ),
    (
        "diffusion/multistep.py",
        "_ddim _dpmpp_2m _adams _weights _quadrature _lagrange _stochastic_adams _deis multistep "
        "finished",
        {
            "few_steps": "third_order_multistep_is_exact_for_parabolas "
            "sa_solver_without_noise_is_unipc_and_with_it_the_sde "
            "churn_raises_the_noise_by_at_most_the_square_root_of_two "
            "churn_acts_between_its_limits "
            "every_deterministic_solver_has_its_order stochastic_solvers_have_their_weak_order "
            "tweedie_is_the_posterior_mean evaluations_are_counted"
        },
    ),
    (
        "diffusion/grids.py",
        "_uniform _quadratic _log_snr _karras time_grid half_log_snr times_of",
        {"few_steps": "time_grids_are_even_in_their_own_variable"},
    ),
    (
        "diffusion/grids.py",
        "sampling_times",
        {"sampling": "each_time_has_its_own_level_of_the_discrete_chain"},
    ),
    (
        "likelihood.py",
        "log_likelihood drift_and_divergence bits_per_dim",
        {
            "likelihood": "bits_per_dim_of_a_uniform_density "
            "one_rademacher_probe_is_exact_for_an_isotropic_score "
            "exact_trace_and_both_probes_on_a_mixture"
        },
    ),
    (
        "likelihood.py",
        "elbo",
        {
            "likelihood": "the_bound_is_tight_for_the_score_of_the_data "
            "the_bound_holds_for_the_sde_of_a_wrong_score "
            "the_bound_of_a_point_has_a_finite_variance"
        },
    ),
    (
        "diffusion/times.py",
        "uniform_times likelihood_times noise_share low_discrepancy",
        {
            "likelihood": "times_of_the_bound_carry_their_density "
            "low_discrepancy_fills_every_stratum_and_belongs_to_its_image "
            "the_bound_is_tight_for_the_score_of_the_data "
            "the_bound_holds_for_the_sde_of_a_wrong_score "
            "exact_trace_and_both_probes_on_a_mixture"
        },
    ),
    (
        "diffusion/times.py",
        "independent stratified log_snr_times _at_log_snr log_normal_times log_normal_range "
        "noise_range time_of_noise _likelihood",
        {
            "objectives": "time_draws_are_uniform_for_every_image_and_their_mean_is_steadier "
            "importance_sampled_times_are_those_of_the_likelihood "
            "log_normal_noise_levels_are_truncated_to_those_of_the_sde "
            "a_fixed_noise_level_is_that_relative_to_the_data",
            "losses": "draws_are_uniform_in_time_normal_and_one_per_image",
        },
    ),
    (
        "diffusion/times.py",
        "logit_normal_times mode_times _on_the_way",
        {"times": ""},
    ),
    (
        "diffusion/coupling.py",
        "minibatch_ot reflow inner_products assignment",
        {"coupling": "", "flow": "of_reflowed_pairs_one_step_draws_the_data"},
    ),
    (
        "diffusion/straightness.py",
        "straightness",
        {"straightness": ""},
    ),
    (
        "controllable.py",
        "MaskConstraint infilled noised pc_infill _official_pc_infill travel",
        {"controllable": ""},
    ),
    (
        "diffusion/guidance.py",
        "guided classifier_free within times_of_noise",
        {
            "controllable": "guidance_by_the_exact_classifier_is_the_score_of_the_class "
            "guidance_acts_inside_its_interval_only"
        },
    ),
    (
        "diffusion/guidance.py",
        "projected Product _changed",
        {"guidance": ""},
    ),
    (
        "diffusion/feynman_kac.py",
        "cloud sample",
        {
            "feynman_kac": "a_product_and_a_reward_are_one_target "
            "without_resampling_the_weights_say_the_same "
            "without_weights_it_is_a_sampler_of_second_weak_order "
            "an_image_is_drawn_from_its_own_particles_alone"
        },
    ),
    (
        "diffusion/inverse.py",
        "average_pool gaussian_blur adjoint conjugate_gradients MeasurementConstraint "
        "pseudo_inverse posterior_guided denoised_with_pullback linearised",
        {"inverse": ""},
    ),
    ("diffusion/svd.py", "SVD decomposition _squares_of_rows _without_overlap", {"svd": ""}),
    (
        "diffusion/moment_guidance.py",
        "variance_of_data pigdm tmpd",
        {"moment_guidance": ""},
    ),
    (
        "diffusion/restoration.py",
        "ddrm ddnm diffpir _kept _renoised _walk",
        {"restoration": ""},
    ),
    (
        "diffusion/daps.py",
        "linear_conditional langevin_conditional largest_eigenvalue daps",
        {"daps": ""},
    ),
    ("diffusion/twisted.py", "twisted twisted_particles gain_of", {"twisted": ""}),
    (
        "diffusion/particles.py",
        "Cloud cloud noise_of_particles uniform log_mean effective_number systematic _passed "
        "children resampled one_of_each",
        {"particles": ""},
    ),
    (
        "diffusion/latent.py",
        "slerp direction times_from",
        {"latent": ""},
    ),
    (
        "diffusion/ode.py",
        "heun_steps",
        {"ode": ""},
    ),
    (
        "diffusion/ode.py",
        "probability_flow evaluations",
        {"sampling": "ode_sampler_follows_the_exact_flow ode_reports_true_evaluations"},
    ),
    (
        "sde_lib.py",
        "SDE ReverseSDE BetaSDE VariancePreservingSDE LinearBetaSDE SubVPSDE CosineVPSDE "
        "DriftlessSDE VarianceExplodingSDE VESDE EDMSDE SigmaPowerSDE Interpolant RectifiedSDE "
        "FlowOTSDE "
        "TrigonometricSDE PowerInterpolant",
        {"sde_lib": ""},
    ),
    (
        "diffusion/parametrisation.py",
        "PREDICTIONS _edm input_std level coefficients convert",
        {
            "parametrisation": "every_conversion_agrees_with_the_definitions_and_inverts",
            "objectives": "edm_preconditioning_is_of_unit_variance_and_least_amplification",
        },
    ),
    (
        "losses.py",
        "dsm smld ddpm _mean_square",
        {
            "losses": "dsm_of_a_multiple_of_the_target ddpm_error_is_against_the_noise_itself "
            "draws_are_uniform_in_time_normal_and_one_per_image "
            "smld_is_dsm_at_its_levels_from_the_largest_down "
            "discrete_labels_are_uniform_and_one_per_image "
            "ddpm_equals_dsm_as_the_number_of_steps_grows"
        },
    ),
    (
        "diffusion/training_draws.py",
        "part_of noise integers",
        {
            "losses": "draws_are_uniform_in_time_normal_and_one_per_image "
            "discrete_labels_are_uniform_and_one_per_image"
        },
    ),
    (
        "diffusion/weighting.py",
        "_in_space _likelihood weighted",
        {
            "losses": "dsm_of_a_multiple_of_the_target",
            "objectives": "weightings_are_squared_errors_in_the_space_of_their_name",
        },
    ),
    (
        "losses.py",
        "esm ssm ssm_vr ism _along _by_parts",
        {
            "objectives": "sliced_losses_of_a_linear_score_are_closed_forms "
            "every_objective_is_half_the_fisher_divergence_plus_a_constant "
            "weightings_are_squared_errors_in_the_space_of_their_name"
        },
    ),
    (
        "runtime/ema.py",
        "constant power update width_of gamma_of combination inner_product",
        {"ema": ""},
    ),
    (
        "training/optimizers.py",
        "_inverse_sqrt _after_warmup SCHEDULES learning_rate clip_by_norm make_optimizer",
        {"optimizers": ""},
    ),
]

# Mutants that compute the same: (file, the mutated line) and why.
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "sde_lib.py",
        "early = jnp.tan(self.RATE * (jnp.minimum(t, 1.0) + self.OFFSET))",
    ): "later than 1/2 the other branch is taken",
    (
        "diffusion/ode.py",
        "return reverse.drift(x[None], jnp.reshape(t, (1,)))[1]",
    ): "there is one image, and JAX takes the last for an index beyond it",
}


class Mutant(NamedTuple):
    file: str
    function: str
    line: int
    old: str  # the line as it is, and as the mutant has it
    new: str
    source: str
    tests: list[str]


def edits(function: ast.AST) -> Iterator[tuple[ast.expr, str, str]]:
    """(node, text, other text): what to replace where, in the executed parts of a function."""
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    times = {"t": "s", "s": "t"} if {"t", "s"} <= names else {}
    for node in executed(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            yield node, *("+-" if isinstance(node.op, ast.Add) else "-+")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "-", ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            other = {0.5: "1.0", 2.0: "1.0", 1.5: "1.0", 1.0: "2.0"}.get(node.value)
            if other:
                yield node, str(node.value), other
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            if ast.unparse(node.right) == "2":
                yield node.right, "2", "1"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in times:
            yield node, node.id, times[node.id]
        elif isinstance(node, ast.Slice):
            other = {"1:": ":-1", ":-1": "1:"}.get(ast.unparse(node))
            if other:
                yield node, ast.unparse(node), other
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            index = ast.unparse(node.slice)
            if index in ("0", "1", "2", "3"):
                yield node.slice, index, str(abs(int(index) - 1))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` without annotations, defaults, decorators and refusals."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "args", "decorator_list", "test") and not isinstance(
            node, ast.Call | ast.Lambda | ast.IfExp
        ):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.arguments):
                yield child
                yield from executed(child)


def mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of the rules in a file.

    Raises:
      ValueError: a name in RULES that the file does not define.
    """
    source = (ROOT / file).read_text()
    offsets = [0]
    for text in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(text))
    tops: dict[str, ast.AST] = {}
    for top in ast.parse(source).body:
        targets = top.targets if isinstance(top, ast.Assign) else [getattr(top, "target", top)]
        tops |= {getattr(t, "id", getattr(t, "name", "")): top for t in targets}
    for owner, functions, tests in RULES:
        nodes = [
            f"tests/test_{stem}.py" + (f"::test_{name}" if name else "")
            for stem, names in tests.items()
            for name in names.split() or [""]
        ]
        for function in functions.split() if owner == file else ():
            if function not in tops:
                raise ValueError(f"{file} has no {function}: bring RULES in tests/mutation.py up")
            for node, old, new in edits(tops[function]):
                # The operator of a sum stands after its left operand.
                before = end_of(node.left) if isinstance(node, ast.BinOp) else None
                line, column = before or (node.lineno, node.col_offset)
                at = source.index(old, offsets[line - 1] + column)
                line = source.count("\n", 0, at)
                mutated = source[:at] + new + source[at + len(old) :]
                was, now = (text.splitlines()[line].strip() for text in (source, mutated))
                yield Mutant(file, function, line + 1, was, now, mutated, nodes)


def end_of(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def run_tests(folder: str, nodes: list[str]) -> None:
    """In a process of its own, with the libraries imported already: exits with pytest's code."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, folder)
    log = os.open(os.path.join(folder, "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(pytest.main(["-x", "-p", "no:cacheprovider", "-p", "no:xdist", *nodes]))


def exit_code(folder: str, nodes: list[str]) -> int | None:
    """The exit code of the tests: 0 passed, 1 failed, None not finished in time."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, nodes))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="only so many mutants, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", help="only the mutants of this file")
    args = parser.parse_args()
    files = list(dict.fromkeys(file for file, *_ in RULES if args.file in (None, file)))
    if not files:
        parser.error(f"--file={args.file}: known are {', '.join({file for file, *_ in RULES})}")
    chosen = [m for file in files for m in mutants(file) if (m.file, m.new) not in EQUIVALENT]
    if args.sample:
        chosen = random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))

    runpy.run_path(str(ROOT / "tests" / "conftest.py"))  # the environment, then JAX: once for all
    for library in ("diffrax", "flax.linen", "ml_collections", "optax", "pytest", "scipy.stats"):
        __import__(library)
    survived = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = os.path.join(scratch, "project")
        hidden = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "docs")
        shutil.copytree(ROOT, folder, ignore=hidden)
        nodes = list(dict.fromkeys(node for mutant in chosen for node in mutant.tests))
        if exit_code(folder, nodes) != 0:
            print(pathlib.Path(folder, "log.txt").read_text())
            print("the tests fail without a mutant")
            return 2
        for mutant in chosen:
            path = pathlib.Path(folder, mutant.file)
            original = path.read_text()
            path.write_text(mutant.source)
            began = time.monotonic()
            code = exit_code(folder, mutant.tests)
            path.write_text(original)
            survived += code == 0
            verdict = "SURVIVED" if code == 0 else "killed" if code == 1 else f"killed ({code})"
            print(
                f"{verdict:9} {time.monotonic() - began:5.1f} s  {mutant.file}:{mutant.line} "
                f"{mutant.function}\n    {mutant.old}\n    {mutant.new}",
                flush=True,
            )
    print(f"{len(chosen)} mutants, {survived} survived; {len(EQUIVALENT)} change nothing")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
