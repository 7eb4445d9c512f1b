"""NCSN++ on FFHQ at 1024 x 1024, VE SDE, continuous time."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.px1024("ffhq")
    defaults.ve(config, continuous=True)
    defaults.ncsnpp_1024(config)
    config.training.reduce_mean = True
    return config
