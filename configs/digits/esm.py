"""Explicit score matching on digits: the score of a kernel density estimate of all of them."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.training.objective = "esm"
    config.training.kde_bandwidth = 0.1  # pixels are in [-1, 1]
    return config
