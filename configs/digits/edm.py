"""EDM on digits: its preconditioning, noise levels, weighting and sampler."""

from ml_collections import ConfigDict

from configs import defaults, quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    defaults.edm_training(config, sigma_data=0.75)
    return config
