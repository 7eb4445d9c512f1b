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
            "clip": _clip(),
            "control": _control(),
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
        "accumulation": 1,  # parts in which a device takes its share of a batch, to save memory
        "label_dropout": 0.0,  # probability that an image's class is withheld from the network
        "ema_rates": (),  # of further averages beside model.ema_rate's
        "ema_profiles": (),  # relative widths of power-function averages, (0.05, 0.1) for instance
        "ema_snapshot_freq": 20000,  # steps after which those of ema_profiles are kept
        "objective": "dsm",  # and "esm", "ism", "ssm", "ssm_vr", "classifier", "clip"
        "weighting": "",  # "noise", "score", "x0", "velocity", "edm", "likelihood"; "": noise
        "time": "uniform",  # how t is distributed: "likelihood", "log_normal", "fixed"
        "time_draws": "independent",  # in a batch; "antithetic", "stratified"
        "log_sigma_mean": -1.2,  # this and the next: time "log_normal"
        "log_sigma_std": 1.2,
        "sigma": 0.0,  # time "fixed": the one noise level, relative to the data
        "num_directions": 1,  # this and the next: objectives "ssm" and "ssm_vr"
        "directions": "rademacher",  # or "gaussian"
        "kde_bandwidth": 0.1,  # this and the next: objective "esm"
        "kde_points": 0,  # training images in the density estimate; 0: all
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
        "seeds": 1,  # of sampling, from sampling.seed on; several give each number a spread
        "keep_samples": False,  # the drawn images as npz shards, for a later evaluation too
        "begin_ckpt": 9,  # in snapshots: step begin_ckpt * training.snapshot_freq
        "end_ckpt": 26,
        "enable_loss": True,
        "enable_sampling": False,
        "enable_bpd": False,
        "checkpoint": "latest",  # "best", the number of a step, "range": begin_ckpt to end_ckpt
        "samplers": (),  # instead of sampling.method: several, each "method" or "method:num_steps"
        "ema": "",  # weights: "raw", a rate, "posthoc:0.1[@step]"; "": model.ema_rate's average
        "seed": 0,  # of dequantisation, probes, the bound's draws and subsets of features
        "features": "auto",  # "inception", "classifier"; "auto": Inception for colour images
        "metrics": ("fid",),  # and others of quality.METRICS
        "bootstrap": 0,  # draws for the error bar of the FID; 0: none
        "resize": "tensorflow",  # to Inception's 299 x 299; or "pytorch", pytorch-fid's
        "repeat_grey": False,  # let Inception see grey images, their channel three times
        "inception_path": "",  # of pytorch-fid's weights; "": the cache, or downloaded
        "stats_path": "",  # of the data set's statistics; "": made once, and cached
        "stats_images": 0,  # training images in them; 0: all
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
        "prediction": "",  # "score", "noise", "x0", "velocity", "edm"; "": VE score, else noise
        "sigma_data": 0.5,  # prediction and weighting "edm": standard deviation of the data
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


def _clip() -> dict:
    return {  # of noisy images and texts, for guidance; its image tower is of section classifier
        "embedding_dim": 64,  # of the space that both towers map to
        "text_width": 64,
        "text_layers": 2,
        "text_heads": 4,
        "text_length": 48,  # in bytes, the end included
    }


def _control() -> dict:
    return {  # of --mode=control: docs/controllable.md
        "task": "inpaint",  # a name in control.TASKS
        "method": "",  # a name in measure.METHODS, or "flow", "ddim"; "": the task's own
        "split": "test",  # where the input images are from
        "num_images": 8,  # the first ones of the split
        "num_variants": 4,  # drawn for each of them
        "seed": 0,  # of variants, measurement noise and random masks
        "batch_size": 64,  # images drawn at a time, over all devices
        "mask": "box",  # "half", "box", "random", or a picture: white is known, black is not
        "mask_share": 0.25,  # of the pixels that "box" and "random" hide
        "factor": 2,  # "super_resolution": pixels a side that are averaged
        "blur_std": 1.0,  # "deblur": in pixels
        "num_measurements": 0,  # "compressed_sensing"; 0: a quarter of the image's entries
        "noise_std": 0.0,  # of the measurement, in the range that the network sees
        "iterations": 3,  # this and the next: method "posterior", conjugate gradients, and
        "damping": 0.02,  # what keeps a network's errors out of them
        "scale": 1.0,  # "posterior", "dps", "class", "prompt": of guidance; "attribute": of a step
        "interval": (),  # "class", "prompt": noise levels sigma / alpha where scale acts; (): all
        "classes": (),  # "class"; (): all; "attribute": (from, to)
        "num_examples": 64,  # "attribute": training images of each class, for their mean latents
        "official": False,  # method "replace": as the original code
        "jump": 10,  # this and the next: method "repaint", steps taken again and how many times
        "repeats": 5,
        "guide": "",  # a run that guides: of a classifier, method "classifier"; of a CLIP, "prompt"
        "prompt": "",  # "prompt": a text, or several separated by semicolons
        "start": 0.3,  # "sdedit": the time to which images are noised, as a share of T
        "temperature": 1.0,  # "reconstruct", "interpolate": factor on the latents
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
        "schedule": "constant",  # after it; or "cosine", "linear", "inverse_sqrt"
        "decay_steps": 0,  # where cosine and linear end, and inverse_sqrt begins
        "decay_to": 0.0,  # the fraction of lr that cosine and linear end at
        "grad_clip": 1.0,  # global norm; negative: off
        "clip_rule": "max",
    }
