"""Every official config with a tiny network on its own data set: train, sample, stats, eval.

The files are small ones in the format in which each data set is published, read by the set's own
name: see `tests/official_files.py`.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import data
import models
from configs.stored import load
from evaluation import evaluate, reference
from evaluation.metrics import inception
from generation import sample
from runtime import experiment
from tests import official_files
from tests.test_judge import replace_inception, stand_in
from tests.test_training import use_devices
from training import loop
from training.objective import objective_from_config

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
OFFICIAL = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for family in ("ve", "vp", "subvp")
    for path in (FOLDER / family).rglob("*.py")
    if not path.name.startswith("_")
)
FIRST = {load(name).data.dataset: name for name in reversed(OFFICIAL)}  # a config of each data set

TINY: dict[str, Any] = {
    "training.batch_size": 4,
    "training.n_iters": 2,
    "training.n_jitted_steps": 2,
    "training.log_freq": 2,
    "training.eval_freq": 2,
    "training.snapshot_freq": 2,
    "training.snapshot_freq_for_preemption": 2,
    "training.snapshot_sampling": False,
    "model.nf": 8,
    "sampling.num_steps": 4,
    "sampling.n_steps_each": 1,
    "sampling.num_samples": 4,
    "sampling.batch_size": 4,
    "eval.batch_size": 4,
    "eval.num_samples": 4,
    "eval.enable_sampling": True,
    "eval.bpd_num_images": 2,
    "eval.bpd_solver": "Heun",
    "eval.bpd_rtol": 1e-1,
    "eval.bpd_atol": 1e-1,
}


def tiny_version(name: str, folder: pathlib.Path) -> ConfigDict:
    """An official config with a tiny network, 16 pixels where its data set has any size, few steps.

    Nothing else is changed: SDE, objective, kind of network, sampler and data set are its own.
    """
    config = load(name)
    changes = dict(TINY)
    size = changes["data.image_size"] = 32 if config.data.dataset == "cifar10" else 16
    if config.model.name in ("ncsnpp", "ddpm"):
        changes |= {"model.ch_mult": (1, 1), "model.num_res_blocks": 1}
        changes["model.attn_resolutions"] = (size // 2,)
    if config.model.name == "ddpm":
        changes["model.nf"] = 32  # its 32 groups of channels are fixed
    if not config.training.continuous:  # its samplers take all noise levels
        changes |= {"model.num_scales": 40, "sampling.num_steps": 0}
        changes["model.num_classes"] = 40 if config.model.num_classes else 0
    config.update_from_flattened_dict(changes)
    config.eval.enable_bpd = config.training.continuous
    config.data.data_dir = str(folder)
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The folder of the official files of each data set."""
    places = {}
    for name, write in official_files.WRITERS.items():
        places[name] = tmp_path_factory.mktemp(name)
        write(places[name], 32 if name == "cifar10" else 16)
    return places


@pytest.fixture
def config_of(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """`tiny_version` with the files of its data set; skips, by name, a set without a writer."""
    official_files.small_cifar10(monkeypatch)
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "prepared"))
    use_devices(monkeypatch, 1)

    def config(name: str) -> ConfigDict:
        dataset = load(name).data.dataset
        if dataset in official_files.MISSING and dataset not in folders:
            pytest.skip(f"tests/official_files.py has no writer for data set {dataset}")
        return tiny_version(name, folders[dataset])

    return config


def stand_in_of_any_size(params: Any, images: Any, resize: str) -> inception.Outputs:
    """The stand-in for Inception, of the means of 8 x 8 areas."""
    count, side, _, channels = images.shape
    area = images.reshape(count, 8, side // 8, 8, side // 8, channels)
    return stand_in(params, area.astype(jnp.float32).mean((2, 4)), resize)


def test_the_configs_are_all_and_so_are_their_data_sets() -> None:
    assert len(OFFICIAL) == 39
    assert FIRST.keys() == {*official_files.WRITERS, *official_files.MISSING}
    assert FIRST.keys() - data.DATASETS.keys() <= set(official_files.MISSING)


@pytest.mark.parametrize("name", FIRST.values())
def test_a_config_of_each_data_set_opens_it_and_its_loss_is_lowered(
    name: str, config_of: Any
) -> None:
    """What `test_every_official_config...` runs is built here, for the set's own splits."""
    config = config_of(name)
    config.model.ch_mult, config.model.attn_resolutions = (1,), ()
    parts = experiment.build(config)
    for split in ("train", "test"):
        dataset = parts.dataset(split)
        images, labels = dataset.take(np.arange(2))
        assert images.shape == (2, *parts.image_shape)
        rounded = config.data.dataset != "celeba"
        assert images.dtype == (np.uint8 if rounded else np.float32)
        assert labels.max() < dataset.num_classes
        assert dataset.facts()["dataset"] == f"{config.data.dataset}/{split}"
    objective = objective_from_config(config, parts, parts.dataset("train"))
    init = functools.partial(models.init, parts.module, image_shape=parts.image_shape)
    key = jax.random.key(0)
    loss = functools.partial(objective, total=2, train=True, flip=config.data.random_flip)
    params = jax.eval_shape(init, key)
    jax.jit(loss).lower(params, images, labels, key, np.arange(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_config_trains_samples_and_is_evaluated_on_its_own_data(
    name: str, config_of: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = config_of(name), tmp_path / "run"
    replace_inception(monkeypatch)
    monkeypatch.setattr(inception, "apply", stand_in_of_any_size)
    loop.train(config, workdir)
    sample.sample(config, workdir)
    with np.load(workdir / "samples" / "shard_000000.npz") as shard:
        assert shard["image"].shape == (4, *experiment.image_shape(config))
    config.eval.stats_path = str(tmp_path / "statistics.npz")
    written = reference.write_statistics(config)
    assert written.origin.dataset == f"{config.data.dataset}/train"
    assert written.origin.images == official_files.COUNT
    results = evaluate.evaluate(config, workdir, "eval")
    numbers = ["fid", "loss", *(["bits_per_dim"] if config.training.continuous else [])]
    assert all(np.isfinite(results[number]) for number in numbers)
    stored = json.loads((workdir / "eval" / "results.json").read_text())
    assert stored["statistics"]["dataset"] == f"{config.data.dataset}/train"
    assert stored["loss_data"]["dataset"] == f"{config.data.dataset}/test"
    jax.clear_caches()  # the programs of 39 configs are more than one process can map
