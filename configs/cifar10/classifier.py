"""A classifier of noisy CIFAR-10, WRN-28-10, that guides the scores of `cifar10` and `vp`."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.classifier(config, n_iters=300000)
    return config
