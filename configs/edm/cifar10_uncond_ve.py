"""EDM's NCSN++ on CIFAR-10, without classes (edm-cifar10-32x32-uncond-ve)."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.edm_cifar10(num_labels=0)
    defaults.edm_ncsnpp(config)
    return config
