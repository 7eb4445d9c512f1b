"""Emoji with the network and the schedule of CIFAR-10's DDPM++, for an accelerator."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """32x32 pixels, colour, 61.8 million parameters."""
    config = defaults.cifar10()
    defaults.vp(config, continuous=True)
    defaults.ddpmpp(config)
    config.data.dataset = "emoji"
    config.data.random_flip = False
    config.training.n_iters = 100000
    config.training.snapshot_freq = 10000
    config.model.ema_warmup = True
    config.classifier.num_classes = 9
    config.eval.batch_size = 128
    config.eval.num_samples = 3282
    config.eval.enable_sampling = True
    config.eval.features = "classifier"
    return config
