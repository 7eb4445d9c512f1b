"""What `tests/mutation.py` changes, and the tests that must notice."""

from __future__ import annotations

# Functions (or classes) of each file, and the tests that must notice a mutant of theirs. Networks
# of our own are not among them: the sign before a layer that is learned is one of its weights'.
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
        "consistency_sampler consistency_tangent consistency_error mean_flow_sampler "
        "mean_flow_error",
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
        {
            "sampling": "sde_sampler_draws_the_data sde_sampler_gives_up_and_refuses "
            "adaptive_steps_begin_and_are_resolved_in_proportion_to_the_interval "
            "sde_sampler_begins_at_the_prior_and_ends_with_an_evaluation_more_if_denoised"
        },
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
        {
            "few_steps": "every_deterministic_solver_has_its_order evaluations_are_counted "
            "steps_of_the_singlestep_solver_are_those_of_its_authors"
        },
    ),
    (
        "diffusion/edm.py",
        "heun_along edm restart",
        {
            "few_steps": "churn_raises_the_noise_by_at_most_the_square_root_of_two "
            "churn_acts_between_its_limits a_restart_forgets_what_was_before "
            "steps_with_churn_are_those_of_algorithm_2_of_edm "
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
            "second_order_multistep_on_an_uneven_grid_is_that_of_its_authors "
            "ddim_takes_its_share_of_the_ancestral_noise_and_ends_at_the_last_time "
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
        "log_likelihood step_error drift_and_divergence bits_per_dim",
        {
            "likelihood": "bits_per_dim_of_a_uniform_density "
            "the_error_of_a_step_in_the_density_is_seen "
            "one_rademacher_probe_is_exact_for_an_isotropic_score "
            "exact_trace_and_both_probes_on_a_mixture",
            "likelihoods": "a_trace_of_many_entries_is_exact_in_parts",
        },
    ),
    (
        "likelihood.py",
        "Bound bound_levels",
        {"likelihood": "parts_of_the_bound_are_those_of_gaussian_data"},
    ),
    (
        "evaluation/metrics/calibration.py",
        "calibration",
        {"likelihoods": "calibration_by_its_definition"},
    ),
    (
        "evaluation/metrics/cmmd.py",
        "cmmd _mean_kernel",
        {"feature_networks": "cmmd_by_its_definition"},
    ),
    (
        "evaluation/metrics/memorisation.py",
        "Neighbours nearest",
        {
            "memorisation": "neighbours_by_their_definition_in_blocks_of_any_size "
            "a_sample_is_memorised_up_to_a_quarter_of_the_way "
            "what_is_there_twice_is_memorised_as_a_copy_alone",
        },
    ),
    (
        "models/dinov2.py",
        "Layer DINOv2 cubic_interpolation _keys",
        {
            "dinov2": "a_folder_of_weights_computes_what_transformers_does "
            "interpolation_has_the_kernels_weights",
        },
    ),
    (
        "likelihood.py",
        "elbo",
        {
            "likelihood": "the_bound_is_tight_for_the_score_of_the_data "
            "the_bound_holds_for_the_sde_of_a_wrong_score "
            "the_control_of_the_bound_knows_all_of_the_noise_at_most "
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
            "exact_trace_and_both_probes_on_a_mixture",
            "times": "uniform_times_lie_evenly_between_the_first_one_and_the_last",
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
            "times": "a_stratified_draw_is_below_one_however_its_sum_is_rounded "
            "times_of_the_likelihood_leave_the_mean_over_uniform_times_as_it_is",
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
        "GREY_AND_COLOURS colourisation MaskConstraint infilled noised repaint pc_infill "
        "_official_pc_infill travel",
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
            "an_image_is_drawn_from_its_own_particles_alone no_draw_is_used_twice "
            "steps_without_weights_are_written_out"
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
            "losses": "parts_of_a_key_are_those_of_its_splits_and_all_apart "
            "draws_are_uniform_in_time_normal_and_one_per_image "
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
            "explicit_matching_does_not_depend_on_how_pixels_lie_in_arrays "
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
    (
        "data/standardisation.py",
        "Standard of_examples",
        {
            "standardisation": "the_numbers_are_those_of_the_training_examples "
            "a_channel_of_a_series_has_one_mean_over_all_places "
            "likelihoods_are_those_of_the_numbers_in_their_own_units"
        },
    ),
    ("data/simulators.py", "TwoMoonsSBI GaussianLinear SLCP normals", {"simulators": ""}),
    ("data/fields.py", "OscillatingSeries Burgers", {"fields": ""}),
    ("sde_lib.py", "batch_mul DDPMChain _derivative", {"sde_lib": ""}),
    (
        "losses.py",
        "_discrete",
        {
            "losses": "from_config_discrete every_stored_loss_is_recognised "
            "networks_have_the_original_losses"
        },
    ),
    (
        "diffusion/ancestral.py",
        "ScoreAndVariance ancestral transition without_noise _estimate levels steps",
        {
            "guided_diffusion": "the_chain_is_that_of_the_original "
            "samples_are_those_of_the_original "
            "gradients_of_guidance_add_up_in_the_score_and_leave_the_variance "
            "without_noise_the_chain_is_ddim_and_guidance_is_a_part_of_its_score"
        },
    ),
    (
        "diffusion/heun.py",
        "_ve _vp SCALINGS steps_of raised_levels heun",
        {"edm_samplers": ""},
    ),
    (
        "diffusion/grids.py",
        "karras_noise vp_noise iddpm_noise VPBetas vp_betas discrete_noise noise_range noise_at "
        "_nearest levels_of_noise",
        {"edm_samplers": "", "few_steps": "time_grids_are_even_in_their_own_variable"},
    ),
    ("diffusion/inverse.py", "dps", {"inverse": ""}),
    ("diffusion/latent.py", "sdedit ddim_encode", {"latent": ""}),
    (
        "diffusion/nonlinear_operators.py",
        "YCC clipping phase_retrieval jpeg",
        {"nonlinear_operators": ""},
    ),
    (
        "diffusion/times.py",
        "antithetic _uniform _logit_normal _mode",
        {
            "times": "",
            "likelihood": "low_discrepancy_fills_every_stratum_and_belongs_to_its_image",
            "objectives": "time_draws_are_uniform_for_every_image_and_their_mean_is_steadier",
        },
    ),
    (
        "models/score.py",
        "discrete_labels score_fn score_and_variance",
        {"score": "", "guided_diffusion": "the_chain_is_that_of_the_original"},
    ),
    (
        "models/embeddings.py",
        "positional_embedding over_noise_level",
        {
            "models": "official_numbers scale_by_sigma_divides_by_the_noise_level "
            "positional_embedding_is_sines_then_cosines "
            "positional_embeddings_of_several_numbers_stand_side_by_side "
            "an_output_is_divided_by_each_images_own_noise_level",
            "transformer": "a_network_is_told_noise_level_and_class",
        },
    ),
    (
        "models/layers.py",
        "GroupNorm NIN residual dropout AttnBlockpp Combine Upsample Downsample "
        "ResnetBlockBigGANpp",
        {
            "models": "a_residual_is_a_sum_that_may_keep_the_variance "
            "official_numbers dropout_keeps_the_mean_and_the_right_share "
            "group_norm_is_accurate_far_from_zero "
            "initial_output_is_nearly_zero_and_a_function_of_the_key "
            "dropout_takes_the_low_halves_of_an_images_words_and_then_the_high_ones "
            "the_pyramid_joins_the_features_by_sum_or_beside_them "
            "other_resolutions_have_as_many_channels"
        },
    ),
    (
        "models/ncsnpp.py",
        "NCSNpp",
        {"models": "official_numbers scale_by_sigma_divides_by_the_noise_level"},
    ),
    (
        "models/ddpm.py",
        "DDPM",
        {
            "models": "official_numbers ddpm_is_ncsnpp_with_ddpm_blocks "
            "ddpm_is_its_blocks_one_after_the_other"
        },
    ),
    (
        "models/refinenet.py",
        "_near_one _standardise _instance_norm_plus InstanceNorm2dPlus "
        "ConditionalInstanceNorm2dPlus conv3x3 _resize _aligned_corners _max_pool CRPBlock "
        "RCUBlock MSFBlock ResidualBlock RefineBlock",
        {"ncsn": ""},
    ),
    ("models/edm2.py", "unit mp_sum mp_cat MPFourier MPConv EDM2Block EDM2", {"edm2": ""}),
    ("models/ncsn.py", "NCSNv2 NCSN", {"ncsn": ""}),
    (
        "models/resample.py",
        "naive_downsample_2d upfirdn_1d upsample_2d downsample_2d upsample_conv_2d "
        "conv_downsample_2d Conv2d",
        {"resample": ""},
    ),
    ("models/transformer.py", "tokens_of examples_of", {"transformer": ""}),
    (
        "models/adm.py",
        "ADM down_path ADMBlock Heads attention",
        {
            "guided_diffusion": "outputs_are_those_of_the_original "
            "gradients_are_those_of_the_original "
            "logits_and_their_gradients_are_those_of_the_original"
        },
    ),
    (
        "models/adm_classifier.py",
        "ADMClassifier AttentionPool",
        {"guided_diffusion": "logits_and_their_gradients_are_those_of_the_original"},
    ),
    (
        "models/guide_losses.py",
        "classifier_cross_entropy contrastive classifier_loss clip_loss",
        {
            "classifier": "the_posterior_minimises_the_cross_entropy "
            "cross_entropy_of_one_image_at_a_time "
            "a_class_below_zero_is_none_however_few_the_images_are "
            "the_noise_of_an_image_is_its_own_keys",
            "clip": "contrast_of_towers_that_see_nothing_or_everything "
            "the_loss_is_both_cross_entropies_where_every_class_occurs_once "
            "the_minimum_is_the_mutual_information_of_image_and_class "
            "the_scale_counts_as_100_at_most "
            "an_objective_of_noisy_images_and_captions "
            "an_image_has_noise_and_a_caption_of_its_own_key",
        },
    ),
    (
        "evaluation/metrics/frechet.py",
        "gaussian_distance _root extrapolated_distance",
        {
            "metrics": "distance_of_commuting_gaussians "
            "distance_of_any_gaussians_is_that_of_the_matrix_root "
            "distance_survives_rank_deficiency distance_to_itself_and_to_a_point "
            "golden_frechet_distance "
            "extrapolated_distance_has_little_bias_left "
            "split_distance_draws_disjoint_subsets_of_one_size"
        },
    ),
    (
        "evaluation/metrics/kernel.py",
        "squared_mmd _kernel _mean_of_pairs",
        {"metrics": "kernel_distance_by_its_definition golden_kernel_distance"},
    ),
    (
        "evaluation/metrics/manifold.py",
        "precision_recall _radii _squared_distances",
        {
            "metrics": "neighbours_on_a_line neighbours_of_one_set_and_far_away "
            "golden_precision_and_recall"
        },
    ),
    (
        "evaluation/metrics/moments.py",
        "Moments",
        {"metrics": "streaming_and_merged_moments_equal_those_of_the_batch"},
    ),
    (
        "evaluation/metrics/inception_score.py",
        "inception_score _score",
        {"metrics": "inception_score_counts_classes golden_inception_score"},
    ),
    (
        "evaluation/metrics/sliced.py",
        "sliced_wasserstein",
        {"toy": "sliced_wasserstein_distance_of_shifted_points"},
    ),
    (
        "evaluation/metrics/two_sample.py",
        "c2st",
        {
            "simulators": "a_classifier_cannot_tell_equal_sets_and_can_tell_others "
            "a_classifier_is_right_as_often_as_the_best_one_can_be "
            "the_metric_compares_as_many_samples_as_data "
            "vectors_that_are_told_apart_are_in_units_of_the_first_set"
        },
    ),
    (
        "evaluation/metrics/fidelity.py",
        "psnr ssim",
        {"control": "fidelity_is_that_of_its_definitions"},
    ),
    ("control/rewards.py", "redness symmetry in_range_of", {"rewards": ""}),
    (
        "data/resize.py",
        "_triangle _keys_cubic taps resize _weighted centre_crop",
        {"resize": ""},
    ),
    (
        "data/augmentation.py",
        "LOW_PASS _augment random_transform rotation transformed reflected coarser finer",
        {"augmentation": ""},
    ),
]

# Mutants that compute the same, or draw from the same law: (file, the mutated line) and why.
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "diffusion/heun.py",
        "t_second = np.append((t + alpha * h)[:-1], t[1])",
    ): "the last step has no second evaluation",
    (
        "diffusion/heun.py",
        "np.stack([scale, np.append(scale[1:], 2.0)], 1),",
    ): "the last step ends in an image, whose scale it does not read",
    (
        "models/resample.py",
        "reach = weight.shape[1] - 1",
    ): "kernels are square",
    (
        "models/resample.py",
        "extra = len(kernel) - factor + weight.shape[1] - 1",
    ): "kernels are square",
    (
        "sde_lib.py",
        "early = jnp.tan(self.RATE * (jnp.minimum(t, 1.0) + self.OFFSET))",
    ): "later than 1/2 the other branch is taken",
    (
        "diffusion/ode.py",
        "return reverse.drift(x[None], jnp.reshape(t, (1,)))[1]",
    ): "there is one image, and JAX takes the last for an index beyond it",
    (
        "diffusion/reverse_sde.py",
        'noise = convert(self.sde, x, t, self.score_fn(x, t), "score", "noise")[1]',
    ): "there is one image, and JAX takes the last for an index beyond it",
    (
        "diffusion/feynman_kac.py",
        "ahead = mean - batch_mul(std, draws(number))",
    ): "the noise is symmetric",
    (
        "models/dinov2.py",
        "h += self.places(places[1], side)",
    ): "there is one row, and JAX takes the last for an index beyond it",
    (
        "diffusion/times.py",
        "first = jnp.minimum((shift * total).astype(jnp.int32), total + 1)",
    ): "parts are numbered modulo their total",
    (
        "diffusion/times.py",
        "u = ((numbers - first) % total + independent(step_key, numbers, total)) / total",
    ): "the first part is a random one",
    (
        "diffusion/times.py",
        "return jnp.where(numbers % 2 == 1, jnp.mod(2.0 - u, 1.0), u)",
    ): "modulo 1 it is 1 - u",
    (
        "diffusion/latent.py",
        "safe = jnp.where(close, 2.0, angle)",
    ): "it stands where the angle is not used",
    (
        "diffusion/inverse.py",
        "length = jnp.where(active, size / jnp.where(active, curvature, 2.0), 0.0)",
    ): "it stands where the curvature is not used",
    (
        "diffusion/moment_guidance.py",
        "variances > 0, (y - value) / jnp.where(variances > 0, variances, 2.0), 0.0",
    ): "it stands where the variance is not used",
    (
        "diffusion/inverse.py",
        "turn = left / jnp.where(size > 0, size, 2.0)",
    ): "it stands where nothing is left",
    (
        "diffusion/inverse.py",
        "return mean - batch_mul(std, noise(draw)) + down, None",
    ): "the noise is symmetric",
    (
        "diffusion/daps.py",
        "return x + batch_mul(size, slope) - batch_mul(jnp.sqrt(2.0 * size), noise(k))",
    ): "the noise is symmetric",
    (
        "diffusion/restoration.py",
        "kept = jnp.sqrt(1.0 - at.eta**2) * (c - own) / jnp.where(spread > 0, spread, 2.0)",
    ): "it stands where no noise is, and is not used there",
    (
        "diffusion/restoration.py",
        "sharp = own + eta_b * (c - own) - left * draw",
    ): "the noise is symmetric",
    (
        "diffusion/restoration.py",
        "end = Step(alpha[-1], sigma[-1], alpha[1], sigma[-1], jnp.zeros((), x.dtype))",
    ): "no last correction asks for the level after it",
    (
        "diffusion/restoration.py",
        "end = Step(alpha[-1], sigma[-1], alpha[-1], sigma[1], jnp.zeros((), x.dtype))",
    ): "no last correction asks for the level after it",
    (
        "diffusion/daps.py",
        "seen = own + gain * (c - own) - jnp.sqrt(gain * variances) * svd.coordinates(z)",
    ): "the noise is symmetric",
    ("diffusion/daps.py", "x = x0 - batch_mul(jnp.sqrt(v[:, 0]), z)"): "the noise is symmetric",
    (
        "diffusion/daps.py",
        "return mean - batch_mul(std, noise(draw + conditional.draws)), None",
    ): "the noise is symmetric",
    (
        "diffusion/twisted.py",
        "return max(float(mean_square(centre - 0.1 * x, z)), 1e-6)",
    ): "the noise is symmetric",
    ("sde_lib.py", "return 0.5 * (bracket[1] + bracket[1])"): "60 halvings make both ends one",
    ("sde_lib.py", "return 0.5 * (bracket[0] + bracket[0])"): "60 halvings make both ends one",
    (
        "sde_lib.py",
        "early = 0.5 * jnp.log1p(-jnp.square(self.sigma(jnp.minimum(t, 1.0))))",
    ): "later than 1/2 the other branch is taken",
    (
        "sde_lib.py",
        "early = jnp.log1p(-(jnp.minimum(t, 1.0) ** self.time_power))",
    ): "later than 1/2 the other branch is taken",
    ("losses.py", "x = batch_mul(alpha, x0) - batch_mul(std, z)"): "the noise is symmetric",
    (
        "data/simulators.py",
        "weights = np.exp(log_p + log_p.max())",
    ): "the weights are normalised",
    (
        "data/fields.py",
        "integral = (cosine / k) @ np.sin(angle) + (sine / k) @ (2.0 - np.cos(angle))",
    ): "a factor of phi leaves u as it is",
    (
        "data/fields.py",
        "phi = np.exp(exponent + exponent.max(1, keepdims=True))",
    ): "a factor of phi leaves u as it is",
    (
        "losses.py",
        "labels = jnp.minimum((u * sde.N).astype(jnp.int32), sde.N + 1)",
    ): "u N is below N for every float32 u below 1",
    (
        "data/simulators.py",
        "return 0.5 * x - np.sqrt(0.5 * cls.VARIANCE) * rng.normal(size=(count, 10))",
    ): "the noise is symmetric",
    (
        "data/simulators.py",
        "proposal = anchor - stretch[:, None] * (theta[mine] - anchor)",
    ): "a stretch through the anchor has the same law",
    (
        "models/layers.py",
        "both = jax.lax.optimization_barrier(low - 2 * high)",
    ): "2 and -2 are the same two bits",
    (
        "data/augmentation.py",
        "return abs((place - (side - 1)) % period - (side - 1))",
    ): "it is a whole period less",
    (
        "data/augmentation.py",
        "margin = len(LOW_PASS) // 2 + 1  # pixels beyond each border that the grid sees",
    ): "pixels farther beyond have no weight",
    (
        "data/augmentation.py",
        "angles = math.pi * (2.0 * u[5:] + 1.0)",
    ): "it is a whole turn more",
    (
        "data/resize.py",
        "end = np.minimum(np.floor(centres + reach + half), before - 1.0).astype(int)",
    ): "beyond its radius the kernel is zero",
    (
        "data/resize.py",
        "columns = start[:, None] + np.arange(np.max(end + start) + 1)",
    ): "columns past the end weigh nothing",
    (
        "evaluation/metrics/frechet.py",
        "_, distance = np.polyfit(2.0 / sizes, values, 1)",
    ): "the value at 0 does not depend on the unit",
    (
        "diffusion/multistep.py",
        "return 0.5 * (start + end) - 0.5 * (end - start) * points, 0.5 * (end - start) * shares",
    ): "points and weights are symmetric",
    ("diffusion/daps.py", "v = batch_mul(2.0 / norm(v), v)"): "each power is normalised",
    (
        "sde_lib.py",
        "rest = 1.0 - jnp.where(t < 0.5, 1.0, t)  # exact",
    ): "earlier than 1/2 the other branch is taken",
    (
        "sde_lib.py",
        "angle = self.RATE * jnp.where(t < 0.5, t, 1.0)",
    ): "later than 1/2 the other branch is taken",
    (
        "sde_lib.py",
        "angle = self.RATE * jnp.where(t < 1.0, t, 0.5)",
    ): "later than 1/2 the other branch is taken",
    (
        "diffusion/restoration.py",
        "vague = own + level * (kept - at.eta * draw)",
    ): "the noise is symmetric",
    (
        "diffusion/restoration.py",
        "seen = jnp.where(left >= 0, at.alpha_t * c - share * draw, draw)",
    ): "the noise is symmetric",
    (
        "diffusion/flow_maps.py",
        "u, change = jax.jvp(lambda x, t: mean_velocity(x, t, s), (x, t), "
        "(velocity, jnp.ones_like(s)))",
    ): "both times have one shape",
}
