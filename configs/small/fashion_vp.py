"""The small reproduction on Fashion-MNIST: VP."""

from ml_collections import ConfigDict

from configs.fashion_mnist import score


def get_config() -> ConfigDict:
    """The network of `configs/fashion_mnist/score.py`, trained for half as long."""
    config = score.get_config()
    config.training.n_iters = 800
    config.training.snapshot_freq = 800
    config.training.eval_freq = 800
    config.training.log_freq = 100
    config.optim.decay_steps = 800
    config.sampling.num_frames = 0
    config.sampling.batch_size = 100
    config.eval.bpd_num_images = 100
    return config
