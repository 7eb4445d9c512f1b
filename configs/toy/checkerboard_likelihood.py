"""Likelihood weighting with importance-sampled times on a checkerboard."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("checkerboard")
    defaults.vp(config, continuous=True)
    config.training.likelihood_weighting = True
    config.training.time = "likelihood"
    config.training.time_draws = "stratified"
    config.model.prediction = "noise"
    return config
