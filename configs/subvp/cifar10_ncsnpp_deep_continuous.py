"""NCSN++ with twice the blocks on CIFAR-10, sub-VP SDE."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.subvp(config)
    defaults.ncsnpp(config)
    defaults.deep(config)
    return config
