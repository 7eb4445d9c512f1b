"""Velocity prediction on a Gaussian mixture."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.vp(config, continuous=True)
    config.training.weighting = "velocity"
    config.model.prediction = "velocity"
    return config
