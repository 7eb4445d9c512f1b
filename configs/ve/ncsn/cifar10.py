"""NCSN on CIFAR-10, as first published (arXiv:1907.05600).

Mended: the official file lacks `model.num_classes` (here = `model.num_scales`).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.ncsn(config)
    return config
