"""Pickles of EDM's networks: read without running them, and computing what EDM computes."""

from __future__ import annotations

import collections
import functools
import gzip
import json
import pathlib
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import sde_lib
from diffusion import grids
from interop import convert, edm, edm_pickle, official
from tests import edm_cases, golden_cases
from tests.edm_cases import PICKLES, RULES, channels_last

TOLERANCE = 2e-5


def by_stem(paths: list[pathlib.Path]) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.mark.golden
@pytest.mark.parametrize("path", by_stem(PICKLES))
def test_all_tensors_are_read_in_their_order(path: pathlib.Path) -> None:
    expected = json.loads(str(edm_cases.numbers(path)["tensors_json"]))
    tensors = edm_pickle.read(path).tensors
    assert list(tensors) == [entry["name"] for entry in expected]
    for entry in expected:
        array = np.ascontiguousarray(tensors[entry["name"]], "<f4")
        assert (list(array.shape), zlib.crc32(array.tobytes())) == (entry["shape"], entry["crc32"])


@functools.lru_cache(maxsize=2)
def results(path: pathlib.Path) -> dict[str, Any]:
    """What our network computes with the weights of a file, by the names of EDM's numbers."""
    net, z = edm_cases.case(path), edm_cases.numbers(path)
    if same := edm_cases.same_weights(path, net):
        return results(same)
    x, v, count = channels_last(z["x"]), channels_last(z["v"]), len(z["x"])
    y, none = net.classes(count), jnp.zeros((count, 9))

    def run(sigma: np.ndarray, c_noise: np.ndarray, y: jax.Array, augment: Any) -> Any:
        return net.program(x, v, jnp.asarray(sigma), net.told(sigma, c_noise), y, augment)

    sigma = z["sigma"]
    c_noise = z["c_noise"] if "c_noise" in z.files else np.log(sigma) / 4  # by a rule: EDM's own
    (weights, gradx), (D, F) = run(sigma, c_noise, y, none)
    found = {"D": D, "F": F, "gradx": gradx, "gradients": weights}
    if "D_sigma1.7" in z.files:
        one = np.full(count, np.float32(1.7)), np.full(count, z["c_noise_sigma1.7"][0])
        found["D_sigma1.7"] = run(*one, y, none)[1][0]
    if "D_nolabel" in z.files:
        null = jnp.full(count, net.null, jnp.int32)  # of the type of y: one program serves both
        found["D_nolabel"] = run(sigma, c_noise, null, none)[1][0]
    if "D_augment" in z.files:
        found["D_augment"] = run(sigma, c_noise, y, jnp.asarray(z["augment_labels"]))[1][0]
    return found


def networks() -> list[Any]:
    """Every pickle, and every rule, whose networks are wide and therefore slow."""
    by_rule = [pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in RULES]
    return [*by_stem(PICKLES), *by_rule]


def sources(net: edm_cases.Case) -> tuple[list[str], Any]:
    """The names of EDM's tensors, and for each of our parameters which of them it is from."""
    names = [name for name, x in net.network.tensors.items() if x.ndim and name != edm.TABLE]
    numbered = {
        name: np.full(np.shape(net.network.tensors[name]), i, np.float32)
        for i, name in enumerate(names, 1)
    }
    if net.config.model.num_labels and net.config.model.name == "ncsnpp":
        for name in ("model.map_label.weight", "model.map_label.bias"):  # which are added
            numbered[name] *= 0
    tensors = {**net.network.tensors, **numbered}
    numbered_network = net.network._replace(tensors=tensors)
    return names, edm.params(numbered_network, net.module, net.image_shape, "numbers")


def norms_by_source(net: edm_cases.Case, grads: Any) -> dict[str, float]:
    """The norms of gradients with respect to EDM's own tensors, by their names."""
    names, origins = sources(net)
    squares: dict[str, float] = collections.defaultdict(float)
    for origin, grad in zip(jax.tree.leaves(origins), jax.tree.leaves(grads), strict=True):
        for number in np.unique(origin):
            if number:
                part = np.asarray(grad, np.float64)[origin == number]
                squares[names[int(number) - 1]] += float(np.sum(part**2))
    if "ClassEmbed_0" in grads and net.config.model.name == "ncsnpp":
        rows = np.asarray(grads["ClassEmbed_0"]["embedding"], np.float64)
        squares["model.map_label.weight"] = float(len(rows) - 1) * np.sum(rows[:-1] ** 2)
        squares["model.map_label.bias"] = float(np.sum(np.sum(rows, 0) ** 2))
    return {name: float(np.sqrt(square)) for name, square in squares.items()}


@pytest.mark.golden
@pytest.mark.parametrize("path", networks())
def test_the_denoiser_is_that_of_edm(path: pathlib.Path) -> None:
    """D by the config that the file describes, for each image's sigma, for one of all images,
    without classes, with augmentation; its gradients with respect to x and to the weights, tensor
    by tensor; and F, of whose 6 channels iDDPM uses 3."""
    z = edm_cases.numbers(path)
    # Phases of Fourier features are hundreds of radians; so are VP's labels, 1e-4 off in float32.
    tolerances = {"F": 2e-4, "gradx": 1e-4}
    for name, made in results(path).items():
        if name != "gradients":
            expected = channels_last(z[name])[..., : made.shape[-1]]
            error = np.abs(made - expected).max() / np.abs(expected).max()
            assert error <= tolerances.get(name, TOLERANCE), (name, error)
    expected_norms = json.loads(str(z["meta_json"])).get("gradnorm", {})
    norms = {name: norm for name, norm in expected_norms.items() if norm is not None}
    made_norms = norms_by_source(edm_cases.case(path), results(path)["gradients"])
    for name, norm in norms.items():
        close = pytest.approx(norm, rel=1e-3, abs=1e-6 * max(norms.values()))
        assert made_norms.get(name, 0.0) == close, name


def architectures() -> dict[str, Any]:
    """The published networks: constructor arguments, and names and shapes of all tensors."""
    entries: dict[str, Any] = {}
    for path in golden_cases.files("edm", "names_edm*.json.gz"):
        entries |= json.loads(gzip.decompress(path.read_bytes()))
    return entries


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_published_networks_are_ours_by_names_and_shapes(name: str) -> None:
    """With as many parameters, but for frozen frequencies and for ADM's images of no class."""
    entry = architectures()[name]
    tensors = {
        tensor: np.broadcast_to(np.float32(0), shape)
        for tensor, shape, _ in entry["tensors"]
        if tensor != edm.TABLE
    }
    if entry["config"]["class_name"].endswith("iDDPMPrecond"):
        levels = grids.discrete_noise(sde_lib.CosineVPSDE(1000))
        tensors[edm.TABLE] = np.append(levels[::-1], 0.0).astype(np.float32)
    network = edm_cases.network_of(entry["config"], tensors)
    config = edm_cases.config_of(network)
    module, side = models.from_config(config), config.data.image_size
    params = edm.params(network, module, (side, side, config.data.num_channels), name)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if config.model.embedding_type == "fourier":
        count -= config.model.nf
    if config.model.name == "adm" and config.model.num_labels:
        count -= 4 * config.model.nf
    if config.training.sde == "cosine_vpsde":
        count += 3 * (9 * config.model.nf + 1)  # outputs that predict a variance
    assert count == entry["n_params"]


FITTING = {  # AFHQv2's network is FFHQ's
    "edm-cifar10-32x32-cond-vp.pkl": "edm/cifar10_cond_vp",
    "edm-cifar10-32x32-cond-ve.pkl": "edm/cifar10_cond_ve",
    "edm-cifar10-32x32-uncond-vp.pkl": "edm/cifar10_uncond_vp",
    "edm-cifar10-32x32-uncond-ve.pkl": "edm/cifar10_uncond_ve",
    "edm-ffhq-64x64-uncond-vp.pkl": "edm/ffhq_64_uncond_vp",
    "edm-ffhq-64x64-uncond-ve.pkl": "edm/ffhq_64_uncond_ve",
    "edm-imagenet-64x64-cond-adm.pkl": "edm/imagenet_64_cond_adm",
    "baseline/baseline-cifar10-32x32-uncond-vp.pkl": "vp/cifar10_ddpmpp_continuous",
    "baseline/baseline-cifar10-32x32-uncond-ve.pkl": "ve/cifar10_ncsnpp_continuous",
}


@pytest.mark.golden
@pytest.mark.parametrize("name", architectures())
def test_the_config_of_a_published_file_is_found(name: str) -> None:
    network = edm_cases.network_of(architectures()[name]["config"], {})
    values = edm.config_values(network, name)
    assert convert.described_by(values) == ([FITTING[name]] if name in FITTING else [])


@pytest.mark.golden
@pytest.mark.parametrize("path", by_stem(PICKLES))
def test_weights_of_score_sde_agree_by_both_of_their_names(path: pathlib.Path) -> None:
    names = golden_cases.table("edm/score_sde_names")
    stem = path.stem.removesuffix("_old")
    if stem not in names:
        pytest.skip("a network that score_sde does not have")
    net = edm_cases.case(path)
    state_dict = {
        theirs: transformed(net.network.tensors[ours], how) for ours, theirs, how in names[stem]
    }
    expected = official.params_from_torch(net.module, state_dict, net.image_shape)
    jax.tree.map(np.testing.assert_array_equal, net.params, expected)


def transformed(tensor: np.ndarray, how: str) -> np.ndarray:
    """A tensor as the table of names says: "same", "w[0::3,:,0,0].T", "b[0::3]", ..."""
    if how == "same":
        return tensor
    first = re.fullmatch(r"[wb]\[(\d?)(?:::3|:)(?:,:,0,0)?\](?:\.T)?", how)
    assert first, how
    rows = tensor[int(first[1]) :: 3] if first[1] else tensor
    return rows[:, :, 0, 0].T if how.startswith("w") else rows


@pytest.mark.golden
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem) for p in golden_cases.files("edm/hostile", "*.pkl")]
)
def test_no_code_of_a_file_is_run(
    path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "reduce" in path.stem:
        with pytest.raises(ValueError, match="asks for") as refusal:
            edm_pickle.read(path)
        assert "\n" not in str(refusal.value)
    else:  # what would be run is the text of a module, which nobody looks at
        assert edm_pickle.read(path).tensors
    assert not list(tmp_path.iterdir())
