"""The small reproduction on Fashion-MNIST: VP."""

from ml_collections import ConfigDict

from configs.fashion_mnist import score


def get_config() -> ConfigDict:
    config = score.get_config()
    config.sampling.num_frames = 0
    config.sampling.batch_size = 125
    return config
