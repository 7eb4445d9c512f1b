"""NCSN++ on LSUN bedrooms at 256 x 256, VE SDE, continuous time."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.px256("lsun_bedroom")
    defaults.ve(config, continuous=True)
    defaults.ncsnpp_256(config)
    return config
