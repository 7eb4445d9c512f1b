"""ADM on LSUN's horses at 256 x 256: `lsun_horse.pt`.

`data.data_dir` is a folder of LSUN's horses.
"""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "folder"
    defaults.adm(config, 256)
    config.model.dropout = 0.1
    config.training.n_iters = 250000
    return config
