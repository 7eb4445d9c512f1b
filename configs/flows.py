"""Families of configs of flow matching: an SDE of interpolants, and a network of its velocity."""

from ml_collections import ConfigDict


def flow(config: ConfigDict, sde: str = "rectified") -> None:
    """The velocity of an interpolant's paths, its plain error, and its flow to sample.

    With `sampling.method=pc` and a number of steps it is Euler's method, as rectified flows are
    sampled (Liu et al. 2022, arXiv:2209.03003).
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
