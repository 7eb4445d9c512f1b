"""ADM on LSUN's cats at 256 x 256: `lsun_cat.pt`.

`data.data_dir` is a folder of LSUN's cats.
"""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "folder"
    defaults.adm(config, 256)
    config.model.dropout = 0.1
    config.training.n_iters = 200000
    return config
