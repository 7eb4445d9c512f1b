"""ADM on ImageNet 256 x 256, told the class: `256x256_diffusion.pt`.

`data.data_dir` is a folder of its images, with a sub-folder for each class.
"""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "folder"
    defaults.adm(config, 256)
    config.model.num_labels = 1000
    config.training.n_iters = 1980000
    return config
