"""Prediction of x0 on digits; its error is weighted as a velocity's, |x0 error|^2 (1 + SNR)."""

from ml_collections import ConfigDict

from configs import quickstart, siblings


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    siblings.x0(config)
    return config
