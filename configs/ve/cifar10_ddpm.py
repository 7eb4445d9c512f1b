"""DDPM network on CIFAR-10, VE with 1000 discrete noise levels (SMLD)."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.ve(config, continuous=False)
    defaults.ddpm(config)
    return config
