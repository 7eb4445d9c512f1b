"""The classifier of noisy ImageNet 64 x 64: `64x64_classifier.pt`."""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "imagenet64"
    defaults.adm_classifier(config, 64)
    return config
