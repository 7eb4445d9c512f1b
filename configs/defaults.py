"""Families of configs: the settings of a data set, of an SDE, of a network.

A config starts from a data set (`cifar10()`, ...), applies one SDE and one network, and then sets
what is its own.
"""

from ml_collections import ConfigDict

from configs import schema

# Factors on ADM's width by the size of the images.
ADM_WIDTHS = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}


def cifar10() -> ConfigDict:
    """CIFAR-10 and its training schedule, which are the schema's defaults."""
    return schema.base()


def celeba() -> ConfigDict:
    """CelebA at 64 x 64."""
    config = schema.base()
    config.data.dataset = "celeba"
    config.data.image_size = 64
    config.model.sigma_max = 90.0
    config.sampling.snr = 0.17
    config.eval.begin_ckpt = 1
    config.eval.enable_sampling = True
    return config


def px256(dataset: str) -> ConfigDict:
    """LSUN, CelebA-HQ or FFHQ at 256 x 256: a longer schedule and a smaller batch."""
    config = schema.base()
    config.data.dataset = dataset
    config.data.image_size = 256
    config.training.batch_size = 64
    config.training.n_iters = 2400001
    config.training.snapshot_freq_for_preemption = 5000
    config.sampling.snr = 0.075
    config.eval.batch_size = 512
    config.eval.begin_ckpt = 50
    config.eval.end_ckpt = 96
    config.eval.enable_sampling = True
    config.model.sigma_max = 378.0
    config.model.dropout = 0.0
    return config


def px1024(dataset: str) -> ConfigDict:
    """CelebA-HQ or FFHQ at 1024 x 1024."""
    config = px256(dataset)
    config.data.image_size = 1024
    config.training.batch_size = 8
    config.sampling.snr = 0.15
    config.eval.batch_size = 1024
    config.eval.begin_ckpt = 1
    config.eval.enable_sampling = False
    config.model.sigma_max = 1348.0
    return config


def points(dataset: str) -> ConfigDict:
    """A set of points of the plane (`data/toy.py`), and a small residual network for it.

    The network predicts the score, whose size is bounded, where a prediction of the noise would be
    divided by ever less noise; for the same reason beta and sigma begin higher than for images. The
    trace of the Jacobian is exact: it takes two passes.
    """
    config = schema.base()
    config.data.dataset = dataset
    config.data.image_size = 1
    config.data.num_channels = 2
    config.data.centered = True
    config.data.random_flip = False
    config.training.batch_size = 512
    config.training.n_iters = 3000
    config.training.n_jitted_steps = 50
    config.training.log_freq = 100
    config.training.eval_freq = 500
    config.training.snapshot_freq = 3000
    config.training.snapshot_freq_for_preemption = 3000
    config.training.snapshot_sampling = False
    config.model.name = "mlp"
    config.model.nf = 96
    config.model.num_res_blocks = 3
    config.model.dropout = 0.0
    config.model.ema_rate = 0.998
    config.model.ema_warmup = True
    config.model.embedding_type = "positional"
    config.model.fourier_scale = 0.2
    config.model.prediction = "score"
    config.model.beta_min = 1.0
    config.model.sigma_min = 0.05
    config.model.sigma_max = 10.0
    config.optim.lr = 3e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.optim.decay_steps = 3000
    config.sampling.method = "dpmpp_2m"
    config.sampling.num_steps = 40
    config.sampling.num_samples = 5000
    config.sampling.batch_size = 5000
    config.eval.batch_size = 2000
    config.eval.num_samples = 10000
    config.eval.enable_sampling = True
    config.eval.enable_bpd = True
    config.eval.bpd_num_images = 2000
    config.eval.bpd_probe = "exact"
    config.eval.bpd_rtol = 1e-3
    config.eval.bpd_atol = 1e-3
    return config


def ve(config: ConfigDict, continuous: bool) -> None:
    """Variance exploding: pixels in [0, 1], reverse diffusion corrected by Langevin steps."""
    config.training.sde = "vesde"
    config.training.continuous = continuous
    config.sampling.predictor = "reverse_diffusion"
    config.sampling.corrector = "langevin"
    config.model.scale_by_sigma = True
    config.model.ema_rate = 0.999
    config.classifier.embedding_type = "fourier"


def vp(config: ConfigDict, continuous: bool) -> None:
    """Variance preserving: pixels in [-1, 1]; discrete: DDPM's ancestral sampling."""
    config.training.sde = "vpsde"
    config.training.continuous = continuous
    config.training.reduce_mean = True
    config.data.centered = True
    config.sampling.predictor = "euler_maruyama" if continuous else "ancestral_sampling"


def subvp(config: ConfigDict) -> None:
    """Sub-VP: as continuous VP."""
    vp(config, continuous=True)
    config.training.sde = "subvpsde"


def cosine_vp(config: ConfigDict, continuous: bool) -> None:
    """VP with the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672)."""
    vp(config, continuous)
    config.training.sde = "cosine_vpsde"


def edm(config: ConfigDict) -> None:
    """sigma = t from 0.002 to 80, for pixels in [-1, 1] (Karras et al. 2022, arXiv:2206.00364).

    The network is that of VE, hence trained and sampled in its way, but for their sampler.
    """
    ve(config, continuous=True)
    config.training.sde = "edm"
    config.data.centered = True
    config.sampling.method = "edm"
    config.sampling.num_steps = 18
    config.model.sigma_min = 0.002
    config.model.sigma_max = 80.0


def edm_training(config: ConfigDict, sigma_data: float) -> None:
    """`edm` and its authors' training: preconditioning, log-normal sigma, their weighting.

    `sigma_data` is the standard deviation of the data.
    """
    edm(config)
    config.training.weighting = "edm"
    config.training.time = "log_normal"
    config.model.prediction = "edm"
    config.model.sigma_data = sigma_data
    config.model.scale_by_sigma = False
    config.model.embedding_type = "fourier"


def adm(config: ConfigDict, image_size: int) -> None:
    """ADM at 64, 128 or 256 pixels, as guided-diffusion publishes it (Dhariwal and Nichol 2021,
    arXiv:2105.05233, table 11): DDPM's chain, with the cosine schedule at 64 pixels."""
    (cosine_vp if image_size == 64 else vp)(config, continuous=False)
    config.data.image_size = image_size
    config.model.name = "adm"
    config.model.nf = 192 if image_size == 64 else 256
    config.model.ch_mult = ADM_WIDTHS[image_size]
    config.model.num_res_blocks = 3 if image_size == 64 else 2
    config.model.attn_resolutions = (32, 16, 8)
    config.model.num_heads = 4 if image_size == 128 else 0
    config.model.num_groups = 32
    config.model.learned_variance = True
    config.model.attention_order = "new" if image_size == 64 else "legacy"
    config.model.embedding_type = "positional"
    config.model.dropout = 0.1 if image_size == 64 else 0.0
    config.sampling.method = "ancestral"
    config.sampling.num_steps = 250
    config.sampling.variance = "learned"
    config.sampling.clip = True
    config.training.batch_size = 2048 if image_size == 64 else 256
    config.optim.lr = 3e-4 if image_size == 64 else 1e-4
    config.optim.warmup = 0
    config.optim.grad_clip = -1.0
    config.eval.batch_size = 256
    config.eval.enable_sampling = True


def adm_classifier(config: ConfigDict, image_size: int) -> None:
    """guided-diffusion's classifier of noisy ImageNet, in the process that `adm` has there."""
    adm(config, image_size)
    config.training.objective = "classifier"
    config.training.batch_size = 1024 if image_size == 64 else 256
    config.training.n_iters = 300000
    config.optim.optimizer = "AdamW"
    config.optim.lr = 3e-4
    config.optim.weight_decay = 0.05
    config.model.ema_rate = 0.0
    config.classifier.name = "adm"
    config.classifier.num_classes = 1000
    config.classifier.widen_factor = 8  # 128 channels
    config.classifier.blocks_per_group = 4 if image_size == 64 else 2
    config.classifier.ch_mult = ADM_WIDTHS[image_size]
    config.eval.enable_sampling = False


def score_flow(config: ConfigDict) -> None:
    """ScoreFlow (Song et al. 2021, arXiv:2101.09258): samples by the probability flow, likelihoods
    of the test images, five times."""
    config.training.log_freq = 100
    config.sampling.method = "ode"
    config.eval.enable_loss = False
    config.eval.enable_bpd = True
    config.eval.bpd_num_repeats = 5


def score_flow_imagenet32() -> ConfigDict:
    """ImageNet at 32 x 32 as ScoreFlow trains on it: no mirror images, no dropout."""
    config = schema.base()
    config.data.dataset = "imagenet32"
    config.data.random_flip = False
    config.model.dropout = 0.0
    return config


def edm_published(
    config: ConfigDict, millions: float, batch_size: int, lr: float, half_life: float = 0.5
) -> None:
    """EDM's training as published for its networks (configuration F), and its sampler.

    The batch is `batch_size` images, the whole `millions` of images and the average's half-life as
    many; the learning rate grows over the first 10 million. Adam as usual, without a limit on
    gradients. Images are mirrored by the augmentation alone.
    """
    edm_training(config, sigma_data=0.5)
    config.training.batch_size = batch_size
    config.training.n_iters = round(millions * 1e6 / batch_size)
    config.optim.lr = lr
    config.optim.warmup = round(10e6 / batch_size)
    config.optim.grad_clip = -1.0
    config.model.ema_half_life = half_life * 1e6
    config.model.ema_ramp_up = 0.05
    config.data.random_flip = False
    config.sampling.method = "heun"


def edm_augmented(config: ConfigDict, probability: float) -> None:
    """EDM's augmentations, of which the network is told."""
    config.training.augment = probability
    config.model.augment_dim = 9


def edm_ddpmpp(config: ConfigDict) -> None:
    """EDM's DDPM++, the network of "VP", which embeds log(sigma) / 4."""
    ddpmpp(config)
    config.model.embedding_type = "log_positional"


def edm_ncsnpp(config: ConfigDict) -> None:
    """EDM's NCSN++, the network of "VE", with features of log(sigma) / 4."""
    ncsnpp(config, embedding_type="fourier")
    config.model.fourier_scale = 4.0


def edm_cifar10(num_labels: int) -> ConfigDict:
    """CIFAR-10 as EDM trains on it, with `num_labels` classes or none."""
    config = cifar10()
    edm_published(config, millions=200, batch_size=512, lr=1e-3)
    edm_augmented(config, 0.12)
    config.model.ch_mult = (2, 2, 2)
    config.model.dropout = 0.13
    if num_labels:
        config.model.num_labels = num_labels
        config.model.class_embedding = "input"
    config.sampling.num_steps = 18
    return config


def edm_64(dataset: str, dropout: float) -> ConfigDict:
    """Faces, of people or of animals, at 64 x 64 as EDM trains on them."""
    config = schema.base()
    config.data.dataset = dataset
    config.data.image_size = 64
    edm_published(config, millions=200, batch_size=256, lr=2e-4)
    edm_augmented(config, 0.15)
    config.model.ch_mult = (1, 2, 2, 2)
    config.model.dropout = dropout
    config.sampling.num_steps = 40
    return config


def ddpm(config: ConfigDict) -> None:
    """The network of Ho et al. (2020), arXiv:2006.11239."""
    config.model.name = "ddpm"
    config.model.num_res_blocks = 2


def ddpm_256(config: ConfigDict) -> None:
    """DDPM for 256 x 256, with its smaller learning rate."""
    ddpm(config)
    config.model.ch_mult = (1, 1, 2, 2, 4, 4)
    config.optim.lr = 2e-5


def ddpmpp(config: ConfigDict) -> None:
    """DDPM++: BigGAN blocks and rescaled skips on top of DDPM (Song et al. 2021, appendix H)."""
    config.model.name = "ncsnpp"
    config.model.fir = False
    config.model.embedding_type = "positional"


def ncsnpp(config: ConfigDict, embedding_type: str = "positional") -> None:
    """NCSN++: FIR resampling and a residual input pyramid (Song et al. 2021, appendix H)."""
    config.model.name = "ncsnpp"
    config.model.progressive_input = "residual"
    config.model.embedding_type = embedding_type


def deep(config: ConfigDict) -> None:
    """Twice the blocks, and 350,000 fewer steps."""
    config.model.num_res_blocks = 8
    config.training.n_iters = 950001


def ncsnpp_256(config: ConfigDict) -> None:
    """NCSN++ for 256 x 256: skip pyramids at both ends, Fourier embedding, 2000 noise scales."""
    config.model.name = "ncsnpp"
    config.model.num_scales = 2000
    config.model.num_res_blocks = 2
    config.model.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    config.model.progressive = "output_skip"
    config.model.progressive_input = "input_skip"


def ncsnpp_1024(config: ConfigDict) -> None:
    """NCSN++ for 1024 x 1024: narrower and deeper than at 256."""
    ncsnpp_256(config)
    config.model.nf = 16
    config.model.num_res_blocks = 1
    config.model.ch_mult = (1, 2, 4, 8, 16, 32, 32, 32)
    config.model.ema_rate = 0.9999


def ncsn(config: ConfigDict) -> None:
    """NCSN, arXiv:1907.05600: 10 noise scales from sigma 1, 100 annealed Langevin steps on each.

    `num_classes`, which the official configs forget, refers to `num_scales` and follows it.
    """
    _refinenet(config)
    config.model.name = "ncsn"
    config.model.num_classes = config.model.get_ref("num_scales")
    config.model.ema_rate = 0.0
    config.optim.lr = 1e-3
    noise_scales(config, sigma_max=1.0, num_scales=10, n_steps_each=100, snr=0.316)


def ncsnv2(config: ConfigDict, name: str) -> None:
    """NCSNv2, arXiv:2006.09011: unconditional norms, output divided by sigma, EMA weights."""
    _refinenet(config)
    config.model.name = name
    config.model.scale_by_sigma = True
    config.optim.lr = 1e-4


def noise_scales(
    config: ConfigDict, sigma_max: float, num_scales: int, n_steps_each: int, snr: float
) -> None:
    """The largest sigma, the number of scales and the Langevin steps: techniques 1, 2 and 4."""
    config.model.sigma_max = sigma_max
    config.model.num_scales = num_scales
    config.sampling.n_steps_each = n_steps_each
    config.sampling.snr = snr


def _refinenet(config: ConfigDict) -> None:
    config.training.sde = "vesde"
    config.training.continuous = False
    config.sampling.predictor = "none"
    config.sampling.corrector = "ald"
    config.model.ema_rate = 0.999
    config.model.normalization = "InstanceNorm++"
    config.model.nonlinearity = "elu"
    config.classifier.embedding_type = "fourier"
    config.optim.warmup = 0
    config.optim.grad_clip = -1.0
