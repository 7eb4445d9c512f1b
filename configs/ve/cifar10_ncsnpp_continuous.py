"""NCSN++ on CIFAR-10, VE SDE, continuous time."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.ve(config, continuous=True)
    defaults.ncsnpp(config, embedding_type="fourier")
    return config
