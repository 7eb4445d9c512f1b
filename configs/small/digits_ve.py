"""The small reproduction on digits: VE."""

from ml_collections import ConfigDict

from configs.small import digits_vp


def get_config() -> ConfigDict:
    return ve(digits_vp.get_config(), sigma_max=4.5)


def ve(config: ConfigDict, sigma_max: float) -> ConfigDict:
    """The config of VP with what VE needs.

    sigma_max is the largest distance between two training images (arXiv:2006.09011).
    """
    config.training.sde = "vesde"
    config.data.centered = False
    config.model.sigma_max = sigma_max
    config.model.scale_by_sigma = True
    config.model.embedding_type = "fourier"
    return config
