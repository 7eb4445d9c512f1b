"""Explicit score matching on a Gaussian mixture, against a kernel density estimate."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.vp(config, continuous=True)
    config.training.objective = "esm"
    config.training.kde_points = 4000
    config.training.kde_bandwidth = 0.1
    return config
