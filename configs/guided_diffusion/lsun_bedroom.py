"""ADM on LSUN's bedrooms at 256 x 256: `lsun_bedroom.pt`."""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "lsun_bedroom"
    defaults.adm(config, 256)
    config.model.dropout = 0.1
    config.training.n_iters = 500000
    return config
