"""The one schema of all configs: every field, its type and its default.

`config_flags` gives an override `--config.section.field=value` the type of the default written
here, so whatever may be fractional is a float (50.0, not 50) and every list is a tuple. The config
is locked: assigning to a field that does not exist raises (`training.continuouse` of the original
went unnoticed). Field names are the original configs'; a few fields are new.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Every field with its default: the CIFAR-10 settings that most official configs share."""
    config = ConfigDict(
        {
            "seed": 42,
            "training": _training(),
            "sampling": _sampling(),
            "eval": _eval(),
            "data": _data(),
            "model": _model(),
            "classifier": _classifier(),
            "optim": _optim(),
        }
    )
    return config.lock()


def _training() -> dict:
    return {
        "sde": "vpsde",
        "continuous": True,  # t in [0, T]; False: one of model.num_scales noise levels
        "batch_size": 128,  # over all hosts and devices
        "n_iters": 1300001,
        "snapshot_freq": 50000,  # this and the next four: in training steps
        "snapshot_freq_for_preemption": 10000,
        "log_freq": 50,
        "eval_freq": 100,
        "n_jitted_steps": 5,  # in one compiled call
        "snapshot_sampling": True,
        "reduce_mean": False,  # mean over pixels and channels; False: half the sum
        "likelihood_weighting": False,  # weight g(t)^2
    }


def _sampling() -> dict:
    return {
        "method": "pc",
        "predictor": "none",
        "corrector": "none",
        "n_steps_each": 1,  # corrector steps per noise level
        "noise_removal": True,
        "probability_flow": False,
        "snr": 0.16,  # signal-to-noise ratio of the corrector
        "corrector_norm": "image",  # "batch": averaged norms, as the original
        "num_steps": 0,  # 0: model.num_scales
        "eps": 0.0,  # last time; 0: the SDE's own
        "time_grid": "",  # few steps: "uniform", "quadratic", "log_snr", "karras"; "": the method's
        "solver": "Dopri5",  # this and the next two: methods "ode" and "sde"
        "rtol": 1e-5,
        "atol": 1e-5,
        "eta": 0.0,  # "ddim": 0 deterministic, 1 ancestral
        "churn": 0.0,  # this and the next three: "edm"; between the noise levels min and max
        "churn_min": 0.0,
        "churn_max": 1e9,
        "churn_noise": 1.0,
        "step_size": 2e-5,  # "annealed_langevin"
        "num_frames": 0,  # of the trajectory, kept for pictures
        "seed": 0,  # of the drawn images; `config.seed` is that of training
        "num_samples": 64,  # images of --mode=sample
        "batch_size": 64,  # of them at a time
    }


def _eval() -> dict:
    return {
        "batch_size": 1024,
        "num_samples": 50000,
        "begin_ckpt": 9,  # in snapshots: step begin_ckpt * training.snapshot_freq
        "end_ckpt": 26,
        "enable_loss": True,
        "enable_sampling": False,
        "enable_bpd": False,
        "checkpoint": "latest",  # or "best", or the number of a step
        "seed": 0,  # of dequantisation, probes and the bound's draws
        "bpd_dataset": "test",
        "bpd_num_images": 0,  # 0: the whole split
        "bpd_rtol": 1e-5,
        "bpd_atol": 1e-5,
        "bpd_solver": "Dopri5",
        "bpd_num_probes": 1,
        "bpd_probe": "rademacher",
        "bpd_num_repeats": 1,  # draws of dequantisation and probes; the published numbers had 5
        "bpd_bound": False,  # also the variational bound of score flow
        "bpd_bound_draws": 64,  # of time and noise, for each image
    }


def _data() -> dict:
    return {
        "dataset": "cifar10",
        "data_dir": "",  # "": the data set's usual place
        "image_size": 32,
        "num_channels": 3,
        "random_flip": True,
        "centered": False,  # pixels in [-1, 1]; False: [0, 1]
        "uniform_dequantization": False,
    }


def _model() -> dict:
    return {
        "name": "ncsnpp",
        "sigma_min": 0.01,
        "sigma_max": 50.0,
        "beta_min": 0.1,
        "beta_max": 20.0,
        "num_scales": 1000,
        "num_classes": 0,  # NCSN: = num_scales, the rows of its conditional norms
        "num_labels": 0,  # classes that the network is told; 0: none
        "dropout": 0.1,
        "ema_rate": 0.9999,
        "ema_warmup": False,
        "scale_by_sigma": False,
        "conditional": True,  # on the noise level
        "normalization": "GroupNorm",
        "nonlinearity": "swish",
        "nf": 128,
        "ch_mult": (1, 2, 2, 2),
        "num_res_blocks": 4,
        "attn_resolutions": (16,),
        "attention_type": "ddpm",
        "attn_each_up_block": False,  # DDPM: not only after the last block of a level
        "attn_num_groups": 0,  # NCSN++: of attention's norms; 0: as the other norms
        "resamp_with_conv": True,
        "fir": True,
        "fir_kernel": (1, 3, 3, 1),
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "none",
        "progressive_combine": "sum",
        "embedding_type": "fourier",
        "fourier_scale": 16.0,
        "init_scale": 0.0,
        "conv_size": 3,
        "interpolation": "bilinear",  # NCSN, NCSNv2
        "pytorch": False,  # NCSN, NCSNv2: as the authors' PyTorch version computes them
        "dtype": "float32",  # of the network's arithmetic; parameters stay float32
        "remat": False,
    }


def _classifier() -> dict:
    return {  # of noisy images, for guidance; the score network knows nothing of it
        "num_classes": 10,
        "widen_factor": 10,  # width, in units of 16 channels
        "blocks_per_group": 4,  # 10 and 4: WRN-28-10
        "dropout": 0.0,
        "nonlinearity": "swish",
        "embedding_type": "positional",  # of times; VE: "fourier", of noise levels
        "fourier_scale": 16.0,
        "dtype": "float32",
    }


def _optim() -> dict:
    return {
        "optimizer": "Adam",
        "lr": 2e-4,
        "beta1": 0.9,
        "eps": 1e-8,
        "amsgrad": False,
        "weight_decay": 0.0,
        "warmup": 5000,  # steps of linear growth of lr
        "grad_clip": 1.0,  # global norm; negative: off
        "clip_rule": "max",
    }
