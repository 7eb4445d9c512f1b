"""guided-diffusion's networks, classifiers and chain: read, and computing what they compute."""

from __future__ import annotations

import functools
import gzip
import json
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import configs
import controllable
import models
import sampling
import sde_lib
from configs import defaults, schema
from diffusion import ancestral, few_steps
from diffusion.noise import recorded_noise
from interop import convert, guided_diffusion, official, sources
from runtime import experiment
from tests import gaussians, golden_cases, tiny
from tests.test_edm import channels_last
from tests.test_interop_files import Tensor, write_pth
from tests.test_models import quick_jit

FOLDER = "guided_diffusion"
TOLERANCE = 2e-5
NORMS = ("in_layers.0", "out_layers.0", "norm", "out.0")
# Parameters of the published networks, counted by guided-diffusion's own code; the paper has them
# in millions: 296, 422, 554, and of classifiers 65, 43 and 54.
COUNTS = {
    "imagenet64": 295_904_454,
    "imagenet128": 421_529_606,
    "imagenet256": 553_838_086,
    "imagenet256_unconditional": 552_814_086,
    "lsun_bedroom": 552_814_086,
    "imagenet64_classifier": 65_438_568,
    "imagenet128_classifier": 42_568_040,
    "imagenet256_classifier": 54_096_360,
}

CHEAP = ("imagenet64", "imagenet64_classifier")


def by_rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of the golden networks."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    z = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    layer, _, leaf = name.rpartition(".")
    if leaf == "weight" and layer.endswith(NORMS) and len(shape) == 1:
        return 1 + np.float32(0.1) * z
    if leaf == "bias":
        return np.float32(0.1) * z
    return (z / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def cases(pattern: str) -> list[Any]:
    return [pytest.param(p, id=p.stem) for p in golden_cases.files(FOLDER, pattern)]


def config_of(network: dict[str, Any]) -> ConfigDict:
    """The config of a network by the arguments that guided-diffusion's code made it of."""
    config, size = schema.base(), network["image_size"]
    attended = tuple(size // factor for factor in network["attention_resolutions"])
    if network["class_name"] == "EncoderUNetModel":
        defaults.adm_classifier(config, 64)
        section = config.classifier
        section.num_classes = network["out_channels"]
        section.widen_factor = network["model_channels"] // 16
        section.blocks_per_group = network["num_res_blocks"]
        section.head_channels = network["num_head_channels"]
    else:
        defaults.adm(config, 64)
        section = config.model
        section.nf = network["model_channels"]
        section.num_res_blocks = network["num_res_blocks"]
        section.num_labels = network["num_classes"] or 0
        section.learned_variance = network["out_channels"] == 6
        section.attention_order = "new" if network["use_new_attention_order"] else "legacy"
        section.head_channels = max(network["num_head_channels"], 1)
        section.num_heads = network["num_heads"] if network["num_head_channels"] < 0 else 0
        config.training.sde = "cosine_vpsde" if network["schedule"] == "cosine" else "vpsde"
    section.ch_mult = tuple(network["channel_mult"])
    section.attn_resolutions = attended
    config.data.image_size = size
    return config


def save(
    path: pathlib.Path, tensors: dict[str, np.ndarray], kind: str = "FloatStorage"
) -> pathlib.Path:
    """A `.pt` file as `torch.save(model.state_dict())` writes it."""
    content = {}
    for name, array in tensors.items():
        stride = tuple(step // array.itemsize for step in array.strides)
        content[name] = Tensor(array.reshape(-1), 0, array.shape, stride, kind)
    return write_pth(path, content)


def tensors_of(z: Any) -> dict[str, np.ndarray]:
    """The tensors of a golden network, which must be those that its outputs are of."""
    tensors = {}
    for entry in z["tensors_json"]:
        array = by_rule(entry["name"], tuple(entry["shape"]))
        assert zlib.crc32(array.tobytes()) == entry["crc32"]
        tensors[entry["name"]] = array
    return tensors


@functools.cache
def read(path: pathlib.Path) -> tuple[ConfigDict, Any, Any]:
    """The config of a golden network, its module and our parameters."""
    z = golden_cases.load(path)
    config = config_of(z["config_json"])
    opened = guided_diffusion.GuidedDiffusionFile(path, tensors_of(z))
    module, shape = experiment.network(config), experiment.image_shape(config)
    assert opened.fits(module, shape)
    return config, module, opened.weights(module, shape).params


def assert_close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    assert np.shape(found) == np.shape(expected)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def network_of(path: pathlib.Path) -> tuple[Any, Any]:
    """A golden network as a function of its weights and of images, at its own labels and classes,
    and these weights."""
    z = golden_cases.load(path)
    config, module, params = read(path)
    options: dict[str, Any] = {"y": np.asarray(z["y"])} if config.model.num_labels else {}
    if config.model.learned_variance and models.has_score(config):
        options["variance"] = True
    labels = np.asarray(z["labels"], np.int32)
    return lambda params, x: module.apply({"params": params}, x, labels, **options), params


@pytest.mark.golden
@pytest.mark.parametrize("path", [c for c in cases("rule_*.npz") if "classifier" not in c.id])
def test_outputs_are_those_of_the_original(path: pathlib.Path) -> None:
    z = golden_cases.load(path)
    network, params = network_of(path)
    assert_close(quick_jit(network)(params, channels_last(z["x"])), channels_last(z["out"]))


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("path", [c for c in cases("rule_*.npz") if "classifier" not in c.id])
def test_gradients_are_those_of_the_original(path: pathlib.Path) -> None:
    z = golden_cases.load(path)
    (network, params), v = network_of(path), channels_last(z["v"])
    gradient = quick_jit(jax.grad(lambda x, params: jnp.sum(network(params, x)[..., :3] * v)))
    assert_close(gradient(channels_last(z["x"]), params), channels_last(z["gradx"]))


@pytest.mark.golden
@pytest.mark.parametrize("path", cases("rule_*classifier*.npz"))
def test_logits_and_their_gradients_are_those_of_the_original(path: pathlib.Path) -> None:
    """The gradient of the logarithm of a class's probability is what guidance adds."""
    z = golden_cases.load(path)
    (network, params), y = network_of(path), np.asarray(z["y"])

    @quick_jit
    def both(params: Any, x: jax.Array) -> Any:
        def chosen(x: jax.Array) -> Any:
            logits = network(params, x)
            return jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]), logits

        return jax.grad(chosen, has_aux=True)(x)

    gradient, logits = both(params, channels_last(z["x"]))
    assert_close(logits, z["out"])
    assert_close(gradient, channels_last(z["gradx"]))


@pytest.mark.golden
@pytest.mark.parametrize("path", cases("schedule_*.npz"))
def test_the_chain_is_that_of_the_original(path: pathlib.Path) -> None:
    """Its levels, and the variances between which a learned one lies."""
    z = golden_cases.load(path)
    kind = sde_lib.CosineVPSDE if "cosine" in path.stem else sde_lib.VPSDE
    numbers = ancestral.levels(1000, len(z["timestep_map"]))
    steps = ancestral.steps(kind(N=1000), numbers, discrete=True)
    assert (np.rint(steps.t[::-1] * 999) == z["timestep_map"]).all()
    np.testing.assert_allclose(steps.alpha[::-1] ** 2, z["alphas_cumprod"], rtol=1e-9)
    np.testing.assert_allclose(steps.log_large[::-1], np.log(z["betas"]), rtol=1e-9)
    small = z["posterior_log_variance_clipped"]
    np.testing.assert_allclose(steps.log_small[::-1], small, rtol=1e-9, atol=1e-12)


def drawn(path: pathlib.Path, name: str, run: dict[str, Any]) -> jax.Array:
    """A run of the chain, drawn by the config's own sampler with the recorded noise."""
    z = golden_cases.load(path)
    beside = {p.stem: p for p in golden_cases.files(FOLDER)}
    config, _, params = read(beside[str(z["model_stem"])])
    config = config.copy_and_resolve_references()
    config.training.sde = "cosine_vpsde" if run["schedule"] == "cosine" else "vpsde"
    config.sampling.num_steps = run["steps"]
    config.sampling.clip = run.get("clip", True)
    if run.get("ddim"):
        config.sampling.variance = "none"
    elif not run.get("learn", True):
        config.sampling.variance = "small" if run.get("small") else "large"
    sde, y = sde_lib.from_config(config), np.asarray(z["y"])
    parts = experiment.build(config)
    guided, (_, classifier, weights) = run.get("guided"), read(beside[str(z["classifier_stem"])])

    @quick_jit
    def sample(params: Any, weights: Any, draws: jax.Array) -> Any:
        score = parts.score(params, jnp.asarray(y))
        if guided:
            network = functools.partial(classifier.apply, {"params": weights})
            likelihood = controllable.of_class(models.class_log_prob(sde, network), jnp.asarray(y))
            score = controllable.guided(score, likelihood, float(z["guidance_scale"]))
        return sampling.from_config(config)(sde, score, recorded_noise(draws))

    samples = sample(params, weights, np.moveaxis(z["noise"], 2, -1))
    assert samples.ok.all(), name
    assert samples.nfe == run["steps"]
    return samples.x


@pytest.mark.golden
@pytest.mark.parametrize("path", cases("rule_gd_cond*.npz"))
def test_an_import_is_a_run_with_these_weights(
    path: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prefix and half precision are no matter."""
    z = golden_cases.load(path)
    config, _, expected = read(path)
    half = {f"module.{name}": x.astype(np.float16) for name, x in tensors_of(z).items()}
    source = save(tmp_path / "model.pt", half, "HalfStorage")
    state = convert.import_weights(config, source, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "float16, to float32" in printed
    assert "cosine_vpsde, 1000 levels" in printed
    structures: list[Any] = [jax.tree.structure(tree) for tree in (state.params, expected)]
    assert structures[0] == structures[1]
    for ours, theirs in zip(*map(jax.tree.leaves, (state.ema_params, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def runs() -> list[Any]:
    """The runs of the chain by each kind of variance, clipped or not, guided or not; and DDIM."""
    return [
        pytest.param(
            path,
            name,
            id=f"{path.stem}-{name}",
            marks=[] if name == "learned_guided" else pytest.mark.slow,
        )
        for path in golden_cases.files(FOLDER, "chain_*.npz")
        for name in golden_cases.load(path)["runs_json"]
    ]


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name"), runs())
def test_samples_are_those_of_the_original(path: pathlib.Path, name: str) -> None:
    z = golden_cases.load(path)
    found = drawn(path, name, z["runs_json"][name])
    assert_close(found, channels_last(z[f"{name}/out"]), 2e-4)


@pytest.mark.parametrize(
    "name",
    [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in COUNTS],
)
def test_published_networks_have_their_parameters(name: str) -> None:
    """All but the row of our class embedding that stands for no class."""
    config = configs.load(f"{FOLDER}/{name}")
    module, shape = experiment.network(config), experiment.image_shape(config)
    count = sum(np.prod(s) for s in official.parameter_shapes(module, shape).values())
    null = 4 * config.model.nf if models.has_score(config) and config.model.num_labels else 0
    assert count - null == COUNTS[name]


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.name.partition(".")[0])
        for p in golden_cases.files(FOLDER, "names*.json.gz")
    ],
)
def test_published_names_fit_their_config_alone(path: pathlib.Path) -> None:
    for name, entry in json.loads(gzip.decompress(path.read_bytes())).items():
        blank = {n: np.broadcast_to(np.float32(0), shape) for n, shape in entry["tensors"]}
        if name.startswith(("upsampler", "imagenet512")):
            with pytest.raises(ValueError, match="not served: "):
                guided_diffusion.GuidedDiffusionFile(path, blank)
            continue
        assert entry["parameters"] == COUNTS[name]
        opened = guided_diffusion.GuidedDiffusionFile(path, blank)
        config = configs.load(f"{FOLDER}/{name}")
        assert opened.fits(experiment.network(config), experiment.image_shape(config))


# What is refused, in one line.


def small(**changes: Any) -> dict[str, np.ndarray]:
    """The tensors that tell guided-diffusion's networks apart, of a network that is served."""
    shapes: dict[str, tuple[int, ...]] = {
        "time_embed.0.weight": (128, 32),
        "input_blocks.0.0.weight": (32, 3, 3, 3),
        "input_blocks.1.0.in_layers.2.bias": (32,),
        "input_blocks.1.0.emb_layers.1.bias": (64,),
        "output_blocks.0.0.in_layers.2.bias": (32,),
        "out.2.bias": (6,),
        **changes,
    }
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if shape}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_blocks.0.0.weight": (32, 6, 3, 3)}, "it is an upsampler"),
        ({"input_blocks.0.0.weight": (16, 3, 3, 3)}, "as those of 512 x 512"),
        ({"input_blocks.3.0.op.weight": (32, 32, 3, 3)}, "resblock_updown=False"),
        ({"input_blocks.1.0.emb_layers.1.bias": (32,)}, "use_scale_shift_norm=False"),
        ({"output_blocks.0.0.in_layers.2.bias": ()}, "pools without attention"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_networks_of_theirs_are_refused(
    changes: dict[str, Any], words: str, tmp_path: pathlib.Path
) -> None:
    path = save(tmp_path / "model.pt", small(**changes))
    with pytest.raises(ValueError, match=f"not served: .*{words}") as refusal:
        sources.open_source(path)
    assert "\n" not in str(refusal.value)


def test_a_classifier_is_no_score_and_another_width_is_named(tmp_path: pathlib.Path) -> None:
    tensors = small(**{"output_blocks.0.0.in_layers.2.bias": (), "out.2.bias": ()})
    tensors[guided_diffusion.POOL] = np.zeros((32, 5), np.float32)
    classifier = save(tmp_path / "classifier.pt", tensors)
    network = save(tmp_path / "model.pt", small())
    score, guide = (configs.load(f"{FOLDER}/imagenet64{end}") for end in ("", "_classifier"))
    score.model.ch_mult, score.model.num_res_blocks = (1,), 1
    narrow, edm = score.copy_and_resolve_references(), score.copy_and_resolve_references()
    narrow.model.nf, narrow.model.num_groups = 32, 0
    edm.model.embedding_type = "log_positional"
    for config, source, words in (
        (narrow, network, r"norms have 32 groups, and the config's have 8; it needs model\.num_gr"),
        (edm, network, r"told times alone, .* model\.embedding_type='log_positional'"),
        (score, classifier, r"is a noisy classifier .* needs? .*classifier\.name='adm'"),
        (guide, network, r"is a U-Net .* needs? model\.name='adm'"),
        (tiny.config(), network, r"the config's network is a NCSNpp; it needs model\.name='adm'"),
        (score, network, r"wrong shape: .*; the file is a U-Net .*\(width 32, 1 blocks, no cla"),
    ):
        with pytest.raises(ValueError, match=words) as refusal:
            convert.import_weights(config, source, tmp_path / "run")
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_gradients_of_guidance_add_up_in_the_score_and_leave_the_variance() -> None:
    x, t = jnp.array([[1.0, 2.0]]), jnp.array([0.5])
    told = ancestral.ScoreAndVariance(lambda x, t: (3.0 * x, 7.0 * x))
    np.testing.assert_array_equal(told(x, t), 3.0 * x)
    once = told.guided(lambda x, t: 0.5 * x)
    np.testing.assert_array_equal(once(x, t), 3.5 * x)
    twice = once.guided(lambda x, t: 0.25 * x)
    np.testing.assert_array_equal(twice(x, t), 3.75 * x)
    np.testing.assert_array_equal(twice.both(x, t)[1], 7.0 * x)


def test_without_noise_the_chain_is_ddim_and_guidance_is_a_part_of_its_score() -> None:
    """On the levels of a process, with images of more pixels than there are images."""
    sde = sde_lib.VPSDE(N=20)
    score_fn = gaussians.two_modes((5,)).score_fn(sde)
    z = np.random.default_rng(0).standard_normal((1, 3, 5)).astype(np.float32)

    def gradient(x: jax.Array, t: jax.Array) -> jax.Array:
        return 0.3 * jnp.sin(x) + 0.1 * t[:, None]

    def told(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return score_fn(x, t), 0.5 * x

    @quick_jit
    def drawn() -> list[jax.Array]:
        run = functools.partial(
            ancestral.ancestral, sde, noise=recorded_noise(z), num_steps=5, variance="none"
        )
        numbers = ancestral.levels(20, 5, strided=True)
        times = np.asarray(ancestral.steps(sde, numbers, discrete=False).t)
        guided = ancestral.ScoreAndVariance(told).guided(gradient)
        return [
            run(score_fn).x,
            few_steps.ddim(sde, score_fn, recorded_noise(z), times).x,
            run(score_fn, denoise=False).x,
            few_steps.ddim(sde, score_fn, recorded_noise(z), times, denoise=False).x,
            run(guided).x,
            run(lambda x, t: score_fn(x, t) + gradient(x, t)).x,
        ]

    plain, ddim, noisy, noisy_ddim, guided, added = drawn()
    np.testing.assert_allclose(plain, ddim, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(noisy, noisy_ddim, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(guided, added, rtol=1e-3, atol=1e-4)
    assert np.abs(guided - plain).max() > 0.01
    np.testing.assert_array_equal(ancestral.levels(10, 5, strided=True), [0, 2, 4, 6, 8])


def test_a_variance_that_no_score_tells_is_refused() -> None:
    sde = sde_lib.VPSDE(N=9)
    noise = recorded_noise(np.zeros((10, 1, 2)))
    with pytest.raises(ValueError, match=r"'learned', but this score tells no variance"):
        ancestral.ancestral(sde, lambda x, t: x, noise, num_steps=3, variance="learned")
    for steps in (1, 10):
        with pytest.raises(ValueError, match=r"num_steps is 1?[01]; ancestral takes 2 or more"):
            ancestral.ancestral(sde, lambda x, t: x, noise, num_steps=steps)
    config = tiny.config(sampling__method="ancestral", sampling__clip=True, data__centered=False)
    with pytest.raises(ValueError, match=r"sampling\.clip=True is for pixels in \[-1, 1\]"):
        sampling.from_config(config)
