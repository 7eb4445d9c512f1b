"""ADM on ImageNet 256 x 256 without classes: `256x256_diffusion_uncond.pt`.

`data.data_dir` is a folder of its images.
"""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "folder"
    defaults.adm(config, 256)
    config.training.n_iters = 1980000
    return config
