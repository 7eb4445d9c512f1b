"""DDPM++ on CIFAR-10 for classifier-free guidance: the class is told, in one draw of ten not."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.classifier_free(config, num_labels=10)
    return config
