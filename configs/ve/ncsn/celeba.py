"""NCSN on CelebA at 64 x 64, as first published (arXiv:1907.05600).

Mended: the official file lacks `model.num_classes` (here = `model.num_scales`)
and writes `training.loss` for `training.sde`.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.celeba()
    defaults.ncsn(config)
    return config
