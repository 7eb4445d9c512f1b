"""DDPM++ with twice the blocks on CIFAR-10, VP SDE, continuous time."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.vp(config, continuous=True)
    defaults.ddpmpp(config)
    defaults.deep(config)
    return config
