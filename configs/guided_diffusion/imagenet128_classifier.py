"""The classifier of noisy ImageNet 128 x 128: `128x128_classifier.pt`.

`data.data_dir` is a folder of its images, with a sub-folder for each class.
"""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "folder"
    defaults.adm_classifier(config, 128)
    return config
