"""Likelihood weighting on digits, with importance-sampled times."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.training.likelihood_weighting = True
    config.training.time = "likelihood"
    config.training.time_draws = "stratified"
    return config
