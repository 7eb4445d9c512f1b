"""Fashion-MNIST, a VP SDE and a small NCSN++: ten minutes on a CPU."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """28x28 pixels, 256 grey levels, 0.7 million parameters."""
    config = quickstart.get_config()

    config.data.dataset = "fashion_mnist"
    config.data.image_size = 28

    training = config.training
    training.batch_size = 64
    training.n_iters = 1600
    training.n_jitted_steps = 10
    training.log_freq = 50
    training.eval_freq = 400
    training.snapshot_freq = 1600
    training.snapshot_freq_for_preemption = 400

    model = config.model
    model.nf = 16
    model.ch_mult = (1, 2, 4)
    model.attn_resolutions = (7,)

    config.optim.schedule = "cosine"
    config.optim.decay_steps = 1600

    config.sampling.batch_size = 100

    config.eval.batch_size = 500
    config.eval.bpd_num_images = 200
    config.eval.num_samples = 2000
    return config
