"""EDM's DDPM++ on CIFAR-10, class-conditional (edm-cifar10-32x32-cond-vp)."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.edm_cifar10(num_labels=10)
    defaults.edm_ddpmpp(config)
    return config
