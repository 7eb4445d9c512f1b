"""EDM on two moons."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("two_moons")
    defaults.edm_training(config, sigma_data=0.9)
    return config
