"""NCSN on CIFAR-10 with technique 5 (EMA) of arXiv:2006.09011.

Mended: the official file lacks `model.num_classes` (here = `model.num_scales`).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.ncsn(config)
    config.model.ema_rate = 0.999
    return config
