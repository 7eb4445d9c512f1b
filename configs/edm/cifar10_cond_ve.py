"""EDM's NCSN++ on CIFAR-10, class-conditional (edm-cifar10-32x32-cond-ve)."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.edm_cifar10(num_labels=10)
    defaults.edm_ncsnpp(config)
    return config
