"""NCSN++ on CelebA-HQ at 256 x 256, VE SDE, continuous time."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.px256("celebahq")
    defaults.ve(config, continuous=True)
    defaults.ncsnpp_256(config)
    config.model.sigma_max = 348.0
    return config
