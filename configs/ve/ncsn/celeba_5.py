"""NCSN on CelebA at 64 x 64 with technique 5 (EMA) of arXiv:2006.09011.

Mended: the official file lacks `model.num_classes` (here = `model.num_scales`).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.celeba()
    defaults.ncsn(config)
    config.model.ema_rate = 0.999
    return config
