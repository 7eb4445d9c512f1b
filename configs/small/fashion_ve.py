"""The small reproduction on Fashion-MNIST: VE."""

from ml_collections import ConfigDict

from configs.small import fashion_vp
from configs.small.digits_ve import ve


def get_config() -> ConfigDict:
    return ve(fashion_vp.get_config(), sigma_max=21.0)
