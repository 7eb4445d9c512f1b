"""The small reproduction on digits: sub-VP."""

from ml_collections import ConfigDict

from configs.small import digits_vp


def get_config() -> ConfigDict:
    config = digits_vp.get_config()
    config.training.sde = "subvpsde"
    return config
