"""Velocity prediction on a Swiss roll."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("swiss_roll")
    defaults.vp(config, continuous=True)
    config.training.weighting = "velocity"
    config.model.prediction = "velocity"
    return config
