"""What is exported others read as it was: diffusers pipelines, safetensors, official files."""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

import configs
import models
import sampling
from configs import schema
from diffusion import few_steps
from diffusion.noise import recorded_noise
from interop import (
    convert,
    diffusers,
    exports,
    flax_parameters,
    official,
    pipelines,
    pth,
    pth_writer,
    schedulers,
    sources,
)
from runtime import experiment
from runtime.workdir import load_weights
from tests import tiny
from tests.test_convert import save, tiny_checkpoint
from tests.test_diffusers import DDPM, NCSNPP, SHAPE, folder_of


def described(**fields: Any) -> ConfigDict:
    """A config with these fields, `section__field=value`."""
    config = schema.base()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


CHAIN = {"training__sde": "vpsde", "training__continuous": False, "data__centered": True}
VE = {"training__sde": "vesde", "training__continuous": True, "data__centered": False}


@pytest.mark.parametrize(
    ("fields", "fourier"),
    [
        (CHAIN, False),
        (
            {**CHAIN, "model__num_scales": 100, "model__beta_min": 0.2, "model__beta_max": 3.3},
            False,
        ),
        ({**CHAIN, "training__sde": "cosine_vpsde"}, False),
        ({**CHAIN, "sampling__method": "ddim"}, False),
        ({**VE, "model__sigma_max": 348.0, "model__num_scales": 2000}, True),
    ],
)
def test_a_scheduler_says_what_the_config_says(fields: dict[str, Any], fourier: bool) -> None:
    """Its import gives the SDE and the prediction of the run back, to the last digit."""
    config = described(**fields)
    scheduler = schedulers.description(config)
    values = schedulers.config_values(json.loads(json.dumps(scheduler)), fourier)
    stored = flax.traverse_util.flatten_dict(config.to_dict(), sep=".")
    assert {name: stored[name] for name in values} == values
    assert scheduler["_class_name"] in pipelines.CLASSES


def test_the_sampler_of_ve_is_in_its_scheduler() -> None:
    more = {"sampling__snr": 0.075, "sampling__corrector": "langevin", "sampling__n_steps_each": 2}
    scheduler = schedulers.description(described(**VE, **more))
    assert (scheduler["snr"], scheduler["correct_steps"], scheduler["sampling_eps"]) == (
        *(0.075, 2, 1e-5),
    )
    assert schedulers.description(described(**VE))["correct_steps"] == 0
    assert schedulers.unread(scheduler) == ["correct_steps", "sampling_eps", "snr"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training__sde": "subvpsde"}, "training.sde is 'subvpsde'; a pipeline holds vpsde"),
        ({"training__sde": "edm"}, "training.sde is 'edm'; a pipeline holds"),
        ({**CHAIN, "training__continuous": True}, "training.continuous is True; .*DDPM, DDIM"),
        ({**CHAIN, "data__centered": False}, "data.centered is False; a pipeline"),
        ({**VE, "training__continuous": False}, "training.continuous is False; .*ScoreSdeVe"),
        ({**VE, "model__prediction": "edm"}, "model.prediction is 'edm'; a pipeline holds"),
        ({**VE, "data__centered": True}, r"data.centered is True; .*\(ScoreSdeVe\)$"),
    ],
)
def test_a_process_that_no_pipeline_holds_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        schedulers.description(described(**fields))
    assert "\n" not in str(error.value)


def test_a_pytorch_file_is_written_without_pytorch(tmp_path: pathlib.Path) -> None:
    """Every kind of value and of number is read back, by the reader that runs nothing."""
    arrays = {
        "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        "double": np.array([0.1, -3e200]),
        "half": np.array([[1.5]], np.float16),
        "long": np.array([-(2**40)]),
        "flag": np.array([True, False]),
        "number": np.array(7, np.int32),
        "empty": np.zeros((0, 3), np.float32),
        "brain": jnp.array([1.5], jnp.bfloat16),
    }
    content: dict[Any, Any] = {
        "model": collections.OrderedDict({n: np.asarray(x) for n, x in arrays.items()}),
        "list": [1, -1, 2**40, True, None, 0.25, "à", (1, 2), (), {}],
        "step": np.float64(0.5),
        3: {"params": [0, 1]},
    }
    path = tmp_path / "a.pth"
    pth_writer.write(path, content)
    found: dict[Any, Any] = pth.read_pth(path)
    assert list(found) == list(content)
    assert (found["list"], found["step"], found[3]) == (content["list"], 0.5, content[3])
    assert isinstance(found["model"], collections.OrderedDict)
    assert list(found["model"]) == list(arrays)
    for name, array in content["model"].items():
        assert found["model"][name].dtype == array.dtype
        np.testing.assert_array_equal(found["model"][name], array)
    pth_writer.write(tmp_path / "b.pth", content)
    assert (tmp_path / "b.pth").read_bytes() == path.read_bytes()
    for strange in (b"", {1, 2}, np.array(["text"]), np.zeros(2, np.complex64)):
        with pytest.raises(TypeError, match="is not written to a PyTorch file"):
            pth_writer.write(tmp_path / "c.pth", [strange])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that was imported from an official file, all of whose parts differ."""
    folder = tmp_path_factory.mktemp("run")
    source = save(folder / "official.pth", tiny_checkpoint(tiny.config()))
    convert.import_weights(tiny.config(), source, folder / "run")
    return folder / "run"


def weights_in(path: pathlib.Path) -> Any:
    config = tiny.config()
    opened = sources.open_source(path)
    return opened.weights(models.from_config(config), experiment.image_shape(config))


def test_an_official_file_is_what_was_imported(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Raw and averaged weights, moments and step, to the bit; and each export may be repeated."""
    target = tmp_path / "out.pth"
    exports.export_weights(tiny.config(), run, target)
    expected, found = weights_in(run.parent / "official.pth"), weights_in(target)
    assert found.ema_rate == tiny.config().model.ema_rate
    assert (found.step, found.updates) == (7, 7)
    jax.tree.map(np.testing.assert_array_equal, found._replace(ema_rate=0.999), expected)
    text = " ".join(capsys.readouterr().out.split())
    assert "optimiser moments of 7 updates" in text
    assert f"an official PyTorch checkpoint is in {target}" in text
    written = target.stat().st_mtime_ns
    exports.export_weights(tiny.config(), run, target)
    assert target.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="exists and holds something else; name another --target"):
        exports.export_weights(tiny.config(eval__ema="raw"), run, target)


def test_safetensors_hold_the_network_alone(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "net.safetensors"
    exports.export_weights(tiny.config(), run, target)
    found = weights_in(target)
    expected = weights_in(run.parent / "official.pth")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.ema)
    assert found.ema is None
    assert "not in the file the process (vpsde" in " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(ValueError, match="exists and holds something else"):
        exports.export_weights(tiny.config(), run, folder)


def test_networks_without_official_names(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("net.pth", "net.pt"):
        with pytest.raises(
            ValueError, match=r"has no network with model\.augment_dim; .*alone, un"
        ):
            exports.export_weights(tiny.config(model__augment_dim=9), run, tmp_path / name)
        with pytest.raises(ValueError, match="class-conditional networks do not exist"):
            exports.export_weights(tiny.config(model__num_labels=10), run, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("vp/ddpm/cifar10_continuous", True),  # the process is in the way
        ("vp/cifar10_ddpmpp", True),  # the network is
        ("edm/cifar10_uncond_vp", False),
        ("guided_diffusion/imagenet64", False),
    ],
)
def test_a_refusal_names_the_forms_that_hold_the_network(
    name: str, official: bool, tmp_path: pathlib.Path
) -> None:
    """What it advises is not refused: each form is asked, before there are any weights."""
    config = configs.load(name)
    module, shape = experiment.network(config), experiment.image_shape(config)
    with pytest.raises(ValueError, match=r"--target=<name>\.safetensors .*holds the net") as error:
        exports.export_weights(config, tmp_path, tmp_path / "folder")
    assert ("<name>.pth" in str(error.value)) == official
    exports.FORMS[".safetensors"](config, module, shape, tmp_path)
    if official:
        exports.FORMS[".pth"](config, module, shape, tmp_path)
    else:
        with pytest.raises(ValueError, match=r"; --target=<name>\.safetensors holds the network"):
            exports.export_weights(config, tmp_path, tmp_path / "net.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["x.saftensors", "x.onnx", "x.pkl", "x.PTH", "v1.2.h5", "a/x.ckpt"]
)
def test_an_ending_of_no_form_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        ValueError, match=r"valid are \.safetensors, \.pth, \.pt, a folder"
    ) as error:
        exports.export_weights(tiny.config(), tmp_path, tmp_path / name)
    assert f"no file that ends in {pathlib.Path(name).suffix} is" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["net", "net-v1.2", "net.v2", "net.2026-01", "net.onnx/", "..", "a.b c"]
)
def test_names_of_folders_are_not_refused(name: str) -> None:
    exports.refuse_ending(name)


@pytest.mark.parametrize("name", ["digits/classes", "toy/two_moons_edm"])
def test_safetensors_of_other_networks_have_our_names(name: str, tmp_path: pathlib.Path) -> None:
    """What the official code does not have is read and written under our names."""
    config = configs.load(name)
    module, shape = experiment.network(config), experiment.image_shape(config)
    rng = np.random.default_rng(0)
    tensors = {
        "/".join(place): rng.standard_normal(sides, np.float32)
        for place, sides in official.parameter_shapes(module, shape).items()
    }
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    safetensors.numpy.save_file(tensors, source)
    convert.import_weights(config, source, tmp_path / "run")
    exports.export_weights(config, tmp_path / "run", target)
    written = safetensors.numpy.load_file(target)
    assert written.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, written, tensors)
    opened = sources.open_source(target)
    assert isinstance(opened, flax_parameters.FlaxParameters)
    assert opened.fits(module, shape)
    assert not opened.fits(models.from_config(tiny.config()), experiment.image_shape(tiny.config()))


# --- Pipelines ---


def scheduled(folder: pathlib.Path, module: Any, scheduler: dict[str, Any]) -> pathlib.Path:
    """A pipeline's folder with a network of small random weights."""
    tensors = {
        name: tensor if "norm" in name or "time_proj" in name else 0.03 * tensor
        for name, tensor in diffusers.read(folder_of(module, folder / "unet")).tensors.items()
    }
    description = diffusers.read(folder / "unet").description
    pipelines.write(folder / "pipeline", description, scheduler, tensors)
    return folder / "pipeline"


def imported(folder: pathlib.Path, **fields: Any) -> ConfigDict:
    """The config of the run into which a pipeline was imported, with these fields of sampling."""
    convert.import_weights(None, folder, folder.parent / "run")
    config = configs.from_file(folder.parent / "run" / "config.py")
    config.sampling.update(fields)
    return config


CHAIN_OF_50 = {
    **{"_class_name": "DDPMScheduler", "num_train_timesteps": 50, "beta_schedule": "linear"},
    # so little noise that samples of a network that was not trained stay among the pixels
    **{"beta_start": 0.002, "beta_end": 0.02, "prediction_type": "epsilon"},
}
SONG_VE = {
    **{"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 20, "sigma_min": 0.01},
    "sigma_max": 0.5,
}
CORRECTED = {"predictor": "reverse_diffusion", "corrector": "langevin", "corrector_norm": "batch"}


def test_a_pipeline_is_whole(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its files, no field that diffusers does not know, and the way back to the run."""
    config = imported(scheduled(tmp_path, NCSNPP, SONG_VE), **CORRECTED)
    target = tmp_path / "out"
    exports.export_weights(config, tmp_path / "run", target)
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {
        *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
        f"unet/{diffusers.WEIGHTS}",
    }
    index = json.loads((target / "model_index.json").read_text())
    assert index == {
        "_class_name": "ScoreSdeVePipeline",
        "scheduler": ["diffusers", "ScoreSdeVeScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    assert "attention_legacy_order" not in (target / "unet" / "config.json").read_text()
    assert f"a diffusers ScoreSdeVePipeline is in {target}" in capsys.readouterr().out
    opened = sources.open_source(target)
    assert opened.unused == ["of scheduler_config.json correct_steps sampling_eps snr"]
    trained = load_weights(config, NCSNPP, SHAPE, tmp_path / "run")
    params = opened.weights(NCSNPP, SHAPE).params
    jax.tree.map(np.testing.assert_array_equal, params, trained.params)
    assert isinstance(opened, sources.DiffusersFolder)
    assert convert.differences(config, opened.config_values(None)) == []


def test_parts_of_a_pipeline_that_see_no_pixels_are_refused(tmp_path: pathlib.Path) -> None:
    folder = scheduled(tmp_path, NCSNPP, SONG_VE)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"a LDMPipeline has vqvae \(VQModel\); served are pipe"):
        sources.open_source(folder)
    index["vqvae"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    fields = json.loads(scheduler.read_text())
    del fields["_class_name"]
    scheduler.write_text(json.dumps(fields))
    opened = sources.open_source(folder)
    assert isinstance(opened, sources.DiffusersFolder)
    assert opened.config_values(None)["model.sigma_max"] == 0.5


def test_averages_alone_are_a_network(tmp_path: pathlib.Path) -> None:
    folder = scheduled(tmp_path, NCSNPP, SONG_VE)
    (folder / "unet").rename(folder / "unet_ema")
    opened = sources.open_source(folder)
    assert opened.path == folder / "unet_ema" / diffusers.WEIGHTS


def their_pipeline(config: ConfigDict, folder: pathlib.Path) -> Any:
    """The exported pipeline of a run as diffusers opens it, without a warning."""
    theirs = pytest.importorskip("diffusers")
    exports.export_weights(config, folder / "run", folder / "out")
    warnings: list[str] = []
    logger = theirs.utils.logging.get_logger("diffusers.configuration_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "warning", lambda *text, **more: warnings.append(str(text)))
        pipeline = theirs.DiffusionPipeline.from_pretrained(folder / "out")
    assert warnings == []
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draws(count: int, batch: int = 2) -> tuple[Any, np.ndarray]:
    """A generator of PyTorch, and the draws that it will give to a pipeline, NHWC."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(3)
    shape = (batch, SHAPE[2], *SHAPE[:2])
    z = np.stack([torch.randn(shape, generator=generator).numpy() for _ in range(count)])
    return torch.Generator().manual_seed(3), z.transpose(0, 1, 3, 4, 2)


def our_score(config: ConfigDict, folder: pathlib.Path) -> tuple[experiment.Parts, Any]:
    parts = experiment.build(config)
    trained = load_weights(config, parts.module, parts.image_shape, folder / "run")
    return parts, parts.score(trained.params)


def assert_same_images(ours: Any, theirs: np.ndarray, limit: float = 1e-4) -> None:
    ours = np.clip(np.asarray(ours), 0.0, 1.0)
    inside = (theirs > 0.0) & (theirs < 1.0)
    assert inside.mean() > 0.2, "images that say something"
    assert np.abs(ours - theirs).max() <= limit, np.abs(ours - theirs).max()


@pytest.mark.slow
def test_ddpm_pipeline_gives_our_samples(tmp_path: pathlib.Path) -> None:
    config = imported(
        scheduled(tmp_path, DDPM, CHAIN_OF_50), method="pc", predictor="ancestral_sampling"
    )
    pipeline = their_pipeline(config, tmp_path)
    generator, z = draws(51)
    theirs = pipeline(2, generator, num_inference_steps=50, output_type="np").images
    parts, score = our_score(config, tmp_path)
    sample = jax.jit(lambda z: sampling.from_config(config)(parts.sde, score, recorded_noise(z)).x)
    assert_same_images(sample(z) / 2 + 0.5, theirs)


@pytest.mark.slow
def test_ddim_pipeline_gives_our_samples(tmp_path: pathlib.Path) -> None:
    """Along the chain's table, as `sampling.from_config` steps, at their choice of its levels."""
    config = imported(scheduled(tmp_path, DDPM, CHAIN_OF_50), method="ddim")
    pipeline = their_pipeline(config, tmp_path)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    generator, z = draws(1)
    theirs = pipeline(2, generator, num_inference_steps=10, output_type="np").images
    parts, score = our_score(config, tmp_path)
    chain, times = parts.sde.chain, np.arange(49, 0, -5) / 49
    sample = jax.jit(lambda z: few_steps.ddim(chain, score, recorded_noise(z), times).x)
    assert_same_images(sample(z) / 2 + 0.5, theirs)


@pytest.mark.slow
def test_score_sde_ve_pipeline_gives_our_samples(tmp_path: pathlib.Path) -> None:
    config = imported(
        scheduled(tmp_path, NCSNPP, SONG_VE), method="pc", snr=0.02, n_steps_each=2, **CORRECTED
    )
    pipeline = their_pipeline(config, tmp_path)
    generator, z = draws(61)
    theirs = pipeline(2, 20, generator, output_type="np").images
    parts, score = our_score(config, tmp_path)
    sample = jax.jit(lambda z: sampling.from_config(config)(parts.sde, score, recorded_noise(z)).x)
    assert_same_images(sample(z), theirs)


@pytest.mark.slow
def test_pytorch_restores_an_official_file(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As the official code does: the optimiser's state, weights by name, averages by order."""
    torch = pytest.importorskip("torch")
    exports.export_weights(tiny.config(), run, tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    module, shape = models.from_config(tiny.config()), experiment.image_shape(tiny.config())
    entries = official.correspondence(module, shape)
    weights = {n: x for n, x in state["model"].items() if n != "module.sigmas"}
    assert list(weights) == [f"module.{entry.torch_name}" for entry in entries]
    parameters = [torch.nn.Parameter(torch.zeros_like(x)) for x in weights.values()]
    for parameter, entry in zip(parameters, entries, strict=True):
        parameter.requires_grad_(entry.trainable)
    optimizer = torch.optim.Adam(parameters, lr=1.0)
    optimizer.load_state_dict(state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == tiny.config().optim.lr
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    assert len(state["ema"]["shadow_params"]) == len(trained)
    for parameter, average in zip(trained, state["ema"]["shadow_params"], strict=True):
        assert parameter.shape == average.shape
        parameter.grad = torch.ones_like(parameter)
        assert int(optimizer.state[parameter]["step"]) == 7
    optimizer.step()
    assert state["step"] == 7
