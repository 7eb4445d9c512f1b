"""The small reproduction on Fashion-MNIST: sub-VP."""

from ml_collections import ConfigDict

from configs.small import fashion_vp


def get_config() -> ConfigDict:
    config = fashion_vp.get_config()
    config.training.sde = "subvpsde"
    return config
