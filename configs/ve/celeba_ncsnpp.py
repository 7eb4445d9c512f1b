"""NCSN++ on CelebA at 64 x 64, VE with 1000 discrete noise levels (SMLD).

The official file also sets `sigma_begin`, which nothing reads: `sigma_max` says the same.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.celeba()
    defaults.ve(config, continuous=False)
    defaults.ncsnpp(config)
    return config
