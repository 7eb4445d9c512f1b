"""EDM on a Gaussian mixture: its preconditioning, noise levels, weighting and sampler."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.edm_training(config, sigma_data=0.9)
    return config
