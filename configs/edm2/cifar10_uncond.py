"""EDM's process on CIFAR-10 with EDM2's magnitude-preserving network and its training.

No dropout, a learning rate that falls with the square root of the steps, and averages whose length
is chosen after training (Karras et al. 2024, arXiv:2312.02696). The uncertainty of the loss that
its authors learn is left out, and no such network of CIFAR-10 was published.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.edm_published(config, millions=200, batch_size=512, lr=1e-2)
    config.data.random_flip = True

    model = config.model
    model.name = "edm2"
    model.nf = 96
    model.ch_mult = (1, 2, 2)
    model.num_res_blocks = 3
    model.attn_resolutions = (16, 8)
    model.dropout = 0.0
    model.embedding_type = "fourier"
    model.scale_by_sigma = False
    config.training.ema_profiles = (0.05, 0.1)

    config.optim.schedule = "inverse_sqrt"
    config.optim.decay_steps = 35000
    config.sampling.num_steps = 18
    return config
