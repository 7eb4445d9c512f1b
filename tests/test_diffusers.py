"""diffusers folders: their networks give their numbers, ours survive the way there and back."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

import models
from interop import diffusers, diffusers_config, sources
from tests import golden_cases
from tests.test_interop_files import Reduced, Tensor, write_pth

SHAPE = (8, 8, 3)
DDPM = models.DDPM(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), centered=True)
# Attention over 128 channels: fewer have other norms in diffusers.
NCSNPP = models.NCSNpp(
    nf=32,
    ch_mult=(1, 4),
    num_res_blocks=1,
    attn_resolutions=(4,),
    progressive="output_skip",
    progressive_input="input_skip",
)


GOLDEN = golden_cases.folders("diffusers/*", "expected.npz")


@functools.cache
def random_params(module: Any) -> Any:
    init = functools.partial(models.init, module, image_shape=SHAPE)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        jax.eval_shape(init, jax.random.key(0)),
    )


def folder_of(module: Any, path: pathlib.Path) -> pathlib.Path:
    description = diffusers_config.description(module, SHAPE)
    tensors = diffusers.params_to_diffusers(module, random_params(module), SHAPE)
    diffusers.write(path, description, tensors)
    return path


def rewrite(folder: pathlib.Path, **changes: Any) -> None:
    """Changes fields of config.json; None removes one."""
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **changes}))


def assert_equal_trees(a: Any, b: Any) -> None:
    flat_a, flat_b = (flax.traverse_util.flatten_dict(tree) for tree in (a, b))
    assert flat_a.keys() == flat_b.keys()
    for path in flat_a:
        np.testing.assert_array_equal(flat_a[path], flat_b[path], err_msg=str(path))


@pytest.mark.parametrize(
    "module",
    [NCSNPP, pytest.param(DDPM, marks=pytest.mark.slow)],
    ids=lambda module: type(module).__name__,
)
def test_there_and_back(module: Any, tmp_path: pathlib.Path) -> None:
    """To a folder and back nothing is lost; what DDPM gains on the way changes no number."""
    folder = diffusers.read(folder_of(module, tmp_path / "out"))
    values = diffusers_config.architecture(folder.description)
    assert (values["model.nf"], values["model.ch_mult"]) == (module.nf, module.ch_mult)
    assert values["model.attn_resolutions"] == (4,)
    assert values["data.image_size"] == 8
    assert values["data.centered"] == module.centered
    if isinstance(module, models.NCSNpp):
        assert values["model.name"] == "ncsnpp"
        assert values["model.attn_num_groups"] == 0
        back = diffusers.params_from_diffusers(module, folder.tensors, SHAPE)
        assert_equal_trees(back, random_params(module))
    else:
        assert values["model.name"] == "ddpm"
        assert values["model.attn_each_up_block"]
        theirs = module.clone(attn_each_up_block=True)
        back = diffusers.params_from_diffusers(theirs, folder.tensors, SHAPE)
        x = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32)
        labels = np.array([3.0, 700.0], np.float32)
        expected = jax.jit(module.apply)({"params": random_params(module)}, x, labels)
        found = jax.jit(theirs.apply)({"params": back}, x, labels)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_names_are_those_of_diffusers(tmp_path: pathlib.Path) -> None:
    """By the names and shapes of published models, and the layouts of PyTorch."""
    params = random_params(NCSNPP)
    tensors = diffusers.params_to_diffusers(NCSNPP, params, SHAPE)
    block, attention = params["ResnetBlockBigGANpp_0"], params["AttnBlockpp_0"]
    for name, expected in {
        "time_proj.weight": params["GaussianFourierProjection_0"]["W"],
        "time_embedding.linear_2.weight": params["Dense_1"]["kernel"].T,
        "conv_in.weight": params["Conv_0"]["kernel"].transpose(3, 2, 0, 1),
        "down_blocks.0.resnets.0.conv1.weight": block["Conv_0"]["kernel"].transpose(3, 2, 0, 1),
        "down_blocks.0.resnets.0.norm2.weight": block["GroupNorm_1"]["scale"],
        "down_blocks.0.resnets.0.time_emb_proj.weight": block["Dense_0"]["kernel"].T,
        "down_blocks.1.attentions.0.to_k.weight": attention["NIN_1"]["W"].T,
        "down_blocks.1.attentions.0.to_out.0.bias": attention["NIN_3"]["b"],
        "down_blocks.0.skip_conv.bias": params["Combine_0"]["Conv_0"]["bias"],
        "up_blocks.0.skip_norm.weight": params["GroupNorm_0"]["scale"],
        "up_blocks.0.skip_conv.bias": params["Conv_1"]["bias"],
        "conv_out.bias": params["Conv_2"]["bias"],
    }.items():
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)
    assert tensors["down_blocks.0.resnet_down.conv_shortcut.weight"].shape == (32, 32, 1, 1)


@pytest.mark.golden
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_golden_names(folder: pathlib.Path) -> None:
    """The published kind of file has exactly the tensors that our map expects."""
    stored = diffusers.read(folder)
    values = diffusers_config.architecture(stored.description)
    assert values["model.nf"] == stored.tensors["conv_in.weight"].shape[0]


def test_old_names_and_a_pickled_file(tmp_path: pathlib.Path) -> None:
    new = folder_of(NCSNPP, tmp_path / "new")
    expected = diffusers.read(new).tensors
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old: dict[str, Any] = {}
    for name, tensor in expected.items():
        for modern, former in renames.items():
            name = name.replace(f".{modern}.", f".{former}.")
        strides = [s // tensor.itemsize for s in tensor.strides]
        old[name] = Tensor(tensor.ravel(), 0, tensor.shape, tuple(strides))
    w = expected["time_proj.weight"]
    old["time_proj.W"] = Tensor(w, 0, w.shape, (1,))
    assert "mid_block.attentions.0.proj_attn.weight" in old
    (new / diffusers.WEIGHTS).unlink()
    write_pth(new / diffusers.PICKLED, old)
    found = diffusers.read(new)
    assert found.weights.name == diffusers.PICKLED
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)

    old["time_proj.W"] = Tensor(w + 1, 0, w.shape, (1,))
    write_pth(new / diffusers.PICKLED, old)
    with pytest.raises(ValueError, match=r"time_proj\.W contradicts time_proj\.weight"):
        diffusers.read(new)
    victim = tmp_path / "executed"
    old["time_proj.W"] = Reduced("os", "mkdir", str(victim))
    write_pth(new / diffusers.PICKLED, old)
    with pytest.raises(ValueError, match=r"os\.mkdir, which is not allowed"):
        diffusers.read(new)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05, needed is 1e-06"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', needed is 'silu'"),
        ({"attention_head_dim": 8}, "one head"),
        ({"out_channels": 6}, "out_channels is 6"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, "down_block_types"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "not the down blocks reversed"),
        ({"block_out_channels": [32, 40]}, "block_out_channels"),
        ({"block_out_channels": [0, 0]}, "block_out_channels"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"flip_sin_to_cos": True, "freq_shift": 0}, "flip_sin_to_cos is True.*freq_shift is 0"),
        ({"downsample_padding": 1}, "downsample_padding is 1, needed is 0"),
        ({"sample_size": None}, "sample_size is None"),
        ({"time_embedding_dim": 64}, "time_embedding_dim is 64, needed is 4 block_out_channels"),
        ({"attention_legacy_order": True}, "attention_legacy_order is True, needed is False"),
        ({"_class_name": "Transformer2DModel"}, "a Transformer2DModel, not a UNet2DModel"),
    ],
)
def test_other_networks_are_refused_in_one_line(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    folder = folder_of(DDPM, tmp_path / "out")
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        diffusers_config.architecture(diffusers.read(folder).description)
    assert "\n" not in str(error.value)


def test_what_norms_differ_in_below_128_channels() -> None:
    """diffusers norms attention with 32 groups always; a config field says so where it matters."""
    description = diffusers_config.description(NCSNPP, SHAPE)
    assert diffusers_config.architecture(description)["model.attn_num_groups"] == 0
    narrow = {**description, "block_out_channels": [32, 64]}
    assert diffusers_config.architecture(narrow)["model.attn_num_groups"] == 32
    with pytest.raises(ValueError, match="attention over 48 channels needs 32 norm groups"):
        diffusers_config.architecture({**description, "block_out_channels": [16, 48]})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (NCSNPP.clone(progressive="residual"), "progressive is 'residual'"),
        (NCSNPP.clone(fir_kernel=None), "fir_kernel is None"),
        (NCSNPP.clone(embedding_type="positional"), "embedding_type is 'positional'"),
        (NCSNPP.clone(ch_mult=(1, 2)), "attention over 64 channels has 16 norm groups"),
        (DDPM.clone(scale_by_sigma=True), "scale_by_sigma is True"),
        (DDPM.clone(num_labels=10), "num_labels is 10"),
        (DDPM.clone(resamp_with_conv=False, nonlinearity="elu"), "resamp_with_conv.*nonlinearity"),
        (models.NCSNv2(nf=8), "diffusers has no NCSNv2"),
    ],
)
def test_what_the_format_cannot_hold_is_not_exported(module: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        diffusers_config.description(module, SHAPE)
    assert "\n" not in str(error.value)


def test_every_difference_is_named_at_once(tmp_path: pathlib.Path) -> None:
    tensors = dict(diffusers.read(folder_of(NCSNPP, tmp_path / "out")).tensors)
    tensors["conv_last.bias"] = tensors.pop("conv_out.bias")
    tensors["conv_in.bias"] = tensors["conv_in.bias"][1:]
    with pytest.raises(ValueError, match="diffusers folder does not fit") as error:
        diffusers.params_from_diffusers(NCSNPP, tensors, SHAPE)
    text = str(error.value)
    assert "missing: conv_out.bias; unexpected: conv_last.bias" in text
    assert "wrong shape: conv_in.bias (31,), expected (32,)" in text


def test_files_that_are_damaged_or_absent(tmp_path: pathlib.Path) -> None:
    folder = folder_of(NCSNPP, tmp_path / "out")
    weights = folder / diffusers.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        diffusers.read(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="has neither"):
        diffusers.read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a diffusers model"):
        diffusers.read(folder)


def test_variants_of_the_weights(tmp_path: pathlib.Path) -> None:
    """Half precision alone is read; weights in several files, or several variants, are named."""
    folder = folder_of(DDPM, tmp_path / "out")
    whole = diffusers.read(folder)
    assert whole.unused == []
    half = {f"model.{name}": x.astype(np.float16) for name, x in whole.tensors.items()}
    safetensors.numpy.save_file(half, folder / f"{diffusers.STEM}.fp16.safetensors")
    assert diffusers.read(folder).unused == ["diffusion_pytorch_model.fp16.safetensors"]
    (folder / diffusers.WEIGHTS).unlink()
    read = diffusers.read(folder)
    assert read.weights.name == "diffusion_pytorch_model.fp16.safetensors"
    opened = sources.open_source(read.weights)
    assert opened.types == {"float16"}
    theirs = DDPM.clone(attn_each_up_block=True)
    params = opened.weights(theirs, SHAPE).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}

    safetensors.numpy.save_file(half, folder / f"{diffusers.STEM}.bf16.safetensors")
    with pytest.raises(ValueError, match=r"has neither .*, but \S+bf16\S+, \S+fp16\.safetensors;"):
        diffusers.read(folder)
    (folder / f"{diffusers.STEM}.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json: weights in several files are not read"):
        diffusers.read(folder)


def test_weights_in_several_files(tmp_path: pathlib.Path) -> None:
    """As an index lists them; an index that lists something else is refused."""
    folder = folder_of(NCSNPP, tmp_path / "out")
    whole = diffusers.read(folder).tensors
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        path = folder / f"{diffusers.STEM}-{file}"
        safetensors.numpy.save_file({name: whole[name] for name in held}, path)
    places = {n: f"{diffusers.STEM}-{file}" for file, held in parts.items() for n in held}
    (folder / diffusers.WEIGHTS).rename(folder / f"{diffusers.STEM}.fp16.safetensors")
    index = folder / f"{diffusers.STEM}.safetensors.index.json"

    def lists(**others: str) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": {**places, **others}}))

    lists()
    read = diffusers.read(folder)
    assert (read.weights, read.unused) == (index, [f"{diffusers.STEM}.fp16.safetensors"])
    assert read.tensors.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(read.tensors[name], tensor)
    for place in ("../a.safetensors", "/etc/passwd", "config.json", ""):
        lists(**{names[0]: place})
        with pytest.raises(ValueError, match="is no file of weights beside it"):
            diffusers.read(folder)
    lists(more=places[names[0]])
    with pytest.raises(ValueError, match=r"-a.safetensors holds other tensors than .* lists"):
        diffusers.read(folder)
    lists(**{names[0]: "absent.bin"})
    with pytest.raises(FileNotFoundError, match=r"absent\.bin is missing, which"):
        diffusers.read(folder)


def test_unknown_fields_are_named(tmp_path: pathlib.Path) -> None:
    folder = folder_of(DDPM, tmp_path / "out")
    rewrite(folder, decay=0.9, _name="x", shiny=1, num_train_timesteps=1000)
    assert diffusers.read(folder).unused == ["config.json: shiny"]


def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = folder_of(NCSNPP, tmp_path / "kept")
    with pytest.raises(ValueError, match="exists and is not empty"):
        diffusers.write(kept, {}, {})
    assert len(safetensors.numpy.load_file(kept / diffusers.WEIGHTS)) > 100

    def full(*args: Any, **kwargs: Any) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="new could not be written: No space"):
        diffusers.write(tmp_path / "new", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    shutil.rmtree(kept)
