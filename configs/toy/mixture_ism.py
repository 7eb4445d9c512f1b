"""Implicit score matching on a Gaussian mixture."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.vp(config, continuous=True)
    config.training.objective = "ism"
    return config
