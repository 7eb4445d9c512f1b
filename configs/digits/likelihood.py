"""Likelihood weighting on digits, with importance-sampled times."""

from ml_collections import ConfigDict

from configs import quickstart, siblings


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    siblings.likelihood(config)
    return config
