"""Families of configs of flows: matching them, and learning maps along them."""

from ml_collections import ConfigDict


def flow(config: ConfigDict, sde: str = "rectified") -> None:
    """The velocity of an interpolant's paths, its plain error, and its flow to sample.

    With `sampling.method=ddim` and a number of steps, straight paths are followed by Euler's
    method, as rectified flows are sampled (Liu et al. 2022, arXiv:2209.03003).
    """
    config.training.sde = sde
    config.training.continuous = True
    config.training.reduce_mean = True
    config.training.weighting = "flow"
    config.data.centered = True
    config.model.prediction = "flow"
    config.sampling.method = "ode"
    config.sampling.predictor = "euler_maruyama"
    config.sampling.probability_flow = True
    if sde == "flow_ot":
        config.model.sigma_min = 1e-4


def consistency(config: ConfigDict) -> None:
    """A consistency function in place of EDM's score, and its sampler with two steps.

    The network and the SDE are those of `defaults.edm_training`. Noise levels that training hardly
    draws are of no use to a map that starts from the largest, so they end earlier than for scores.
    """
    config.training.objective = "consistency"
    config.training.weighting = ""
    config.training.log_sigma_mean = -0.5
    config.training.log_sigma_std = 1.5
    config.training.tangent_warmup = config.training.n_iters // 3
    config.model.sigma_max = 10.0
    config.optim.lr = 1e-3
    config.sampling.method = "consistency"
    config.sampling.num_steps = 2
    config.eval.enable_bpd = False


def consistency_of_points(config: ConfigDict) -> None:
    """`consistency` in the plane, with features of log(sigma) without high frequencies, as their
    derivative is asked for, and tangents as they are: so few dimensions leave them no typical norm,
    and the mean of normalised ones is off."""
    consistency(config)
    config.training.tangent_norm = 0.0
    config.model.fourier_scale = 0.05


def mean_flow(config: ConfigDict) -> None:
    """A mean velocity in place of `flow`'s, and its sampler with one step."""
    config.training.objective = "mean_flow"
    config.training.weighting = ""
    config.training.mean_flow_share = 0.5
    config.optim.lr = 1e-3
    config.sampling.method = "mean_flow"
    config.sampling.num_steps = 1
    config.eval.enable_bpd = False
