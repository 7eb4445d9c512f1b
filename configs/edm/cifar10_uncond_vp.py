"""EDM's DDPM++ on CIFAR-10, without classes (edm-cifar10-32x32-uncond-vp)."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.edm_cifar10(num_labels=0)
    defaults.edm_ddpmpp(config)
    return config
