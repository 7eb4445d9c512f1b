"""EDM's ADM on ImageNet at 64 x 64, class-conditional (edm-imagenet-64x64-cond-adm)."""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "imagenet64"
    config.data.image_size = 64
    defaults.edm_published(config, millions=2500, batch_size=4096, lr=1e-4, half_life=50)
    config.model.name = "adm"
    config.model.nf = 192
    config.model.ch_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.model.attn_resolutions = (32, 16, 8)
    config.model.dropout = 0.1
    config.model.embedding_type = "log_positional"
    config.model.num_labels = 1000
    config.sampling.num_steps = 256
    config.sampling.churn = 40.0
    config.sampling.churn_min = 0.05
    config.sampling.churn_max = 50.0
    config.sampling.churn_noise = 1.003
    return config
