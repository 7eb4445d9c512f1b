"""CLIP for noisy images: captions, its loss, its towers, and guidance by prompts."""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import data
import losses
import models
import sde_lib
from control import run as control_run
from data import captions
from data.emoji import LIST, EmojiNames, read_list
from diffusion import training_draws
from generation import guides
from interop import transformers_clip
from models import guide_losses
from runtime import devices, experiment
from tests import golden_cases, tiny
from tests.test_models import quick_jit, random_params, relative_error
from training.objective import objective_from_config

LENGTH = 24
EMOJI = pathlib.Path(EmojiNames.PLACES[LIST]) / LIST
SMALL = models.CLIP(captions.VOCABULARY, captions.END, 8, 8, 1, 2, LENGTH, fourier_scale=0.5)
SHAPE = (8, 8, 1)
X = np.random.default_rng(1).uniform(size=(3, *SHAPE)).astype(np.float32)
LEVELS = np.array([0.02, 1.0, 40.0], np.float32)


# Captions.


def test_text_is_its_bytes() -> None:
    row = captions.tokens("  A  Café ", 10)
    assert bytes(row[:7].tolist()).decode() == "a café"
    np.testing.assert_array_equal(row[7:], [captions.END, captions.PADDING, captions.PADDING])
    for text in ("", "  ", "a\0b"):
        with pytest.raises(ValueError, match="no text that could be shown"):
            captions.tokens(text, 10)
    assert captions.tokens("a" * 9, 10)[-1] == captions.END
    with pytest.raises(ValueError, match="has 10 bytes; the text tower reads 9 at most"):
        captions.tokens("a" * 10, 10)


def test_every_class_with_a_name_has_captions() -> None:
    builder: Any
    for name, builder in data.DATASETS.items():
        names = getattr(builder, "NAMES", ())
        if names:
            assert len(data.class_names(name.upper())) == builder.NUM_CLASSES
            table = captions.table(names, 48)
            assert table.shape == (len(names), len(captions.TEMPLATES), 48)
            assert len(np.unique(table.reshape(-1, 48), axis=0)) == table[..., 0].size
    with pytest.raises(
        ValueError, match=r"'two_moons' have no names .* those of cifar10, digits, emoji, "
    ):
        data.class_names("two_moons")


@pytest.mark.skipif(not EMOJI.is_file(), reason="needs Debian's unicode-data")
def test_every_emoji_has_a_caption_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names, listed = data.class_names("emoji_names"), read_list(EMOJI)
    assert len(names) == len(set(names)) <= EmojiNames.NUM_CLASSES
    for row in (0, 1000, len(listed) - 1):
        assert names[EmojiNames.label(listed[row], listed)] == listed[row].name
    assert captions.table(names, 104).shape == (len(names), len(captions.TEMPLATES), 104)
    monkeypatch.setattr(EmojiNames, "PLACES", dict.fromkeys(EmojiNames.PLACES, "/nowhere"))
    with pytest.raises(FileNotFoundError, match="emoji_names needs NotoColorEmoji"):
        data.class_names("emoji_names")


def test_of_many_classes_the_accuracy_is_among_the_names_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Towers that know an image's own name are right, and those that see nothing take the first
    name: of all, or, where there are too many, of the batch."""
    config = tiny.config(training__objective="clip", clip__text_length=LENGTH)
    table = captions.table(data.class_names("digits"), LENGTH)
    y, keys, compared = np.array([7, 3, 3, 8]), jax.random.split(jax.random.key(0), 4), []
    mixture = np.random.default_rng(0).normal(size=(LENGTH, 8)).astype(np.float32)

    def text_of(tokens: jax.Array) -> jax.Array:
        vectors = tokens.astype(jnp.float32) @ mixture
        return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)

    for most, count, first in ((64, 10, 0), (9, 4, 7)):
        monkeypatch.setattr(guide_losses, "MOST_NAMES", most)
        loss = losses.from_config(config, sde_lib.VPSDE(), captions=jnp.asarray(table))

        @quick_jit
        def accuracies(keys: Any, y: Any, loss: Any = loss) -> list[Any]:
            """Of towers that know an image's own name, and of those that see nothing."""
            found = []
            for own in (text_of(jnp.asarray(table)[y, 0]), jnp.zeros((4, 8))):

                def towers(x: Any, labels: Any, tokens: Any, own: Any = own) -> Any:
                    compared.append(len(tokens) - len(x))
                    return own, text_of(tokens), jnp.float32(1.0)

                parts = loss(towers, jnp.zeros((4, 8, 8, 1)), keys, jnp.full(4, 0.5), y)[1]
                found.append(parts["accuracy"])
            return found

        known, unseen = accuracies(keys, y)
        np.testing.assert_array_equal(known, np.ones(4))
        np.testing.assert_array_equal(unseen, y == first)
        assert compared[-2:] == [count, count]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a photo of a sneaker", "sneaker"),
        ("A T-Shirt", "T-shirt"),
        ("my shirt", "shirt"),
        ("two dresses", "dress"),
        ("an ankle  boot!", "ankle boot"),
        ("a raincoat", None),
    ],
)
def test_a_prompt_names_a_class(text: str, name: str | None) -> None:
    names = data.class_names("fashion_mnist")
    assert captions.class_named(text, names) == (names.index(name) if name else -1)


# The loss.

contrastive = quick_jit(losses.contrastive)


def test_contrast_of_towers_that_see_nothing_or_everything() -> None:
    """log n where all captions differ; with repeated classes, what is left of it; 0 at best."""
    same, apart = jnp.ones((4, 1)), jnp.eye(4)
    scale, each, y = jnp.float32(30.0), jnp.arange(4), jnp.array([0, 1, 0, 2])
    np.testing.assert_allclose(contrastive(same, same, scale, each), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(contrastive(same, same, scale, y), np.log([2, 4, 2, 4]), rtol=1e-6)
    for classes in (each, y):
        seen = apart[classes]
        np.testing.assert_allclose(contrastive(seen, seen, scale, classes), 0, atol=1e-6)


def test_the_loss_is_both_cross_entropies_where_every_class_occurs_once() -> None:
    image, text = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    s = 2.0 * image @ text.T
    rows = np.log(np.exp(s).sum(1)) - np.diag(s)
    columns = np.log(np.exp(s).sum(0)) - np.diag(s)
    found = contrastive(*map(jnp.asarray, (image, text)), jnp.float32(2.0), jnp.arange(5))
    np.testing.assert_allclose(found, (rows + columns) / 2, rtol=1e-5)


def test_the_minimum_is_the_mutual_information_of_image_and_class() -> None:
    """A batch in which picture a has class c n(a, c) times: the mean loss is stationary where the
    similarity is log n(a, c) / (n(a) n(c)), and not where a function of a or of c is added."""
    counts = np.array([[6, 1, 2], [1, 4, 3]])
    a, c = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))

    def mean_loss(s: Any) -> jax.Array:
        """Picture a is the vector of its similarities, and class c a unit vector."""
        return jnp.mean(losses.contrastive(s[a], jnp.eye(3)[c], jnp.float32(1.0), jnp.asarray(c)))

    slope = quick_jit(jax.grad(mean_loss))
    best = np.log(counts / counts.sum(1, keepdims=True) / counts.sum(0))
    np.testing.assert_allclose(slope(best), 0, atol=1e-6)
    np.testing.assert_allclose(slope(best + 1.0), 0, atol=1e-6)
    rows, columns = np.array([[0.0], [1.0]]), np.array([0.0, 1.0, 0.0])
    for other in (best + rows, best + columns, 1.2 * best):
        assert np.abs(slope(other)).max() > 1e-2


def test_devices_contrast_all_images_of_the_batch() -> None:
    """Shares of a batch give the losses and the gradient of the whole batch."""
    image, text = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    y, scale = jnp.array([0, 1, 2, 0, 1, 1]), jnp.float32(2.0)

    def losses_of(w: jax.Array, image: Any, text: Any, y: Any, **options: Any) -> jax.Array:
        return losses.contrastive(image @ w, text @ w, scale, y, **options)

    def gradient(w: jax.Array, *rows: jax.Array, **options: Any) -> Any:
        def mean(w: jax.Array) -> Any:
            per_image = losses_of(w, *rows, **options)
            return jnp.mean(per_image), per_image

        return jax.grad(mean, has_aux=True)(w)

    def on_device(w: jax.Array, *share: jax.Array) -> Any:
        gather = functools.partial(jax.lax.all_gather, axis_name="d", tiled=True)
        found, per_image = gradient(w, *share, gather=gather)
        return jax.lax.pmean(found, "d"), per_image

    @quick_jit
    def whole_and_shared(w: jax.Array) -> Any:
        shares = [rows.reshape(2, 3, *rows.shape[1:]) for rows in (image, text, y)]
        shared = jax.vmap(on_device, (None, 0, 0, 0), axis_name="d")(w, *shares)
        return gradient(w, image, text, y), shared

    (whole, per_image), (gradients, parts) = whole_and_shared(jnp.eye(4))
    np.testing.assert_allclose(parts.reshape(-1), per_image, rtol=1e-5)
    for found in gradients:
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)


# The towers.


@functools.cache
def small_params() -> Any:
    return random_params(SMALL, SHAPE)


@quick_jit
def towers_of(params: Any, x: Any, levels: Any, tokens: Any) -> Any:
    return SMALL.apply({"params": params}, x, levels, tokens)


def towers(x: Any, levels: Any, tokens: Any) -> Any:
    return towers_of(small_params(), x, levels, tokens)


def text_rows(*texts: str) -> np.ndarray:
    return np.stack([captions.tokens(text, LENGTH) for text in texts])


def test_a_text_ends_at_its_end_and_an_image_stands_alone() -> None:
    tokens = text_rows("a shirt", "a shirk", "shirt a")
    image, text, _ = towers(X, LEVELS, tokens)
    for rows in (image, text):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert np.abs(text[1:] - text[:1]).max(1).min() > 1e-3  # bytes and their order matter
    behind = tokens.copy()
    behind[:, 10:] = 77  # there is nothing to be read
    x, levels, last = X.copy(), LEVELS.copy(), LEVELS.copy()
    x[:2], levels[:2], last[2] = 0.5, 3.0, 4.0
    again, same_text, _ = towers(x, levels, behind)
    np.testing.assert_allclose(same_text, text, atol=1e-6)
    np.testing.assert_allclose(again[2], image[2], atol=1e-5)
    other_level, *_ = towers(X, last, tokens)
    assert np.abs(other_level[2] - image[2]).max() > 1e-3


def test_the_scale_counts_as_100_at_most() -> None:
    for learnt, scale in ((2.0, np.exp(2.0)), (9.0, 100.0)):
        found: Any = SMALL.apply({"params": {"log_scale": jnp.float32(learnt)}}, method="scale")
        np.testing.assert_allclose(found, scale, rtol=1e-5)


def test_the_image_tower_is_the_classifier_but_for_its_last_layer() -> None:
    classifier = models.NoisyClassifier(3, 1, 1, fourier_scale=0.5)
    init = functools.partial(models.init, key=jax.random.key(0), image_shape=SHAPE)
    known = jax.eval_shape(functools.partial(init, classifier))
    own = jax.eval_shape(functools.partial(init, SMALL))["image_tower"]
    blocks = [f"ResnetBlockBigGANpp_{i}" for i in range(3)]
    layers = ["Conv_0", "Dense_0", "Dense_1", "Dense_2", "GroupNorm_0", *blocks]
    assert sorted(known) == sorted(["GaussianFourierProjection_0", *layers])
    assert own.pop("Dense_2") != known.pop("Dense_2")
    assert own == known


# The objective, from a config.


def clip_config(**changes: Any) -> ConfigDict:
    small = {
        "training__objective": "clip",
        "clip__embedding_dim": 8,
        "clip__text_width": 8,
        "clip__text_layers": 1,
        "clip__text_heads": 2,
        "clip__text_length": LENGTH,
    }
    return tiny.config(**(small | changes))


def test_an_objective_of_noisy_images_and_captions() -> None:
    """With towers that know the class: no loss, and all images known. Captions are the classes'."""
    config = clip_config()
    parts = experiment.build(config)
    table = captions.table(data.class_names("digits"), LENGTH)
    seen = []

    def apply(variables: Any, x: Any, labels: Any, tokens: Any) -> Any:
        seen.append((x, labels, tokens))
        told = (tokens[:, None, None] == table).all(-1).any(-1).astype(jnp.float32)
        return told[: len(x)], told, jnp.float32(50.0)

    objective = dataclasses.replace(objective_from_config(config, parts), apply=apply)
    images, classes = map(jnp.asarray, data.load("digits", "train").take(np.arange(12)))

    @quick_jit
    def run() -> Any:
        found = objective(
            {}, images, classes, jax.random.key(0), jnp.arange(12), 12, train=False, flip=False
        )
        return *found, seen[-1], parts.sde.marginal_prob(jnp.ones_like(images), found[1]["t"])

    per_image, named, (x, labels, tokens), (alpha, sigma) = run()
    np.testing.assert_allclose(per_image, 0, atol=1e-6)
    np.testing.assert_array_equal(named["accuracy"], 1)
    np.testing.assert_allclose(labels, 999 * named["t"], rtol=1e-5)
    np.testing.assert_array_equal(tokens[12:], table[:, 0])
    templates = {tuple(row) for row in np.asarray(tokens[:12])}
    assert len(templates) > len(np.unique(classes))
    x0 = 2 * (np.asarray(images) + 0.5) / 17 - 1
    noise = (x - alpha * x0) / sigma[:, None, None, None]
    assert 0.9 < np.std(noise) < 1.1  # dequantisation is small beside it
    with pytest.raises(ValueError, match="this run trained a CLIP of noisy images"):
        tiny.generator(config, parts)


def test_an_image_has_noise_and_a_caption_of_its_own_key() -> None:
    """x_t = alpha x_0 + sigma z, beside one of all captions of the class."""
    table = jnp.asarray(captions.table(data.class_names("digits"), LENGTH))[:, :3]
    y, keys = jnp.arange(4) % 3, jax.random.split(jax.random.key(0), 4)
    seen: list[Any] = []
    x0 = jnp.full((4, 6, 5, 2), 0.5)

    def towers(x: Any, labels: Any, tokens: Any) -> Any:
        seen.extend((x, tokens))
        return jnp.ones((4, 8)), jnp.ones((len(tokens), 8)), jnp.float32(1.0)

    sde = sde_lib.VPSDE()
    loss = losses.from_config(clip_config(), sde, captions=table)
    _, parts = loss(towers, x0, keys, jnp.full(4, 0.5), y)
    mean, std = sde.marginal_prob(x0, parts["t"])
    z = (seen[0] - mean) / std[:, None, None, None]
    np.testing.assert_allclose(z, training_draws.noise(keys, (6, 5, 2)), atol=1e-4)
    choices = training_draws.integers(keys, training_draws.FURTHER, table.shape[1])
    np.testing.assert_array_equal(seen[1][:4], table[y, choices])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__likelihood_weighting": True}, "likelihood_weighting is True, which weighs"),
        ({"training__accumulation": 2}, "contrasts all images of a batch; it must be 1"),
        ({"clip__text_heads": 3}, "clip.text_width is 8; it must be a multiple of clip.text_heads"),
        ({"clip__text_length": 10}, "has 17 bytes; the text tower reads 9 at most"),
        ({"clip__embedding_dim": 0}, "config.clip.embedding_dim is 0; it must be positive"),
        ({"data__dataset": "cifar100"}, "'cifar100' have no names to make captions of"),
    ],
)
def test_what_a_clip_cannot_be_trained_with(changes: Any, message: str) -> None:
    config = clip_config(**changes)
    with pytest.raises(ValueError, match=message):
        objective_from_config(config, experiment.build(config))


# Prompts.


@pytest.fixture
def posed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From settings of `control` to the problem, with a CLIP of random weights as its guide."""
    own = clip_config()
    parts = experiment.build(own)
    params = random_params(parts.module, parts.image_shape)
    guide = guides.Guide(own, parts, devices.replicate(params), 7, "raw")

    def restore(config: Any, parts: Any, objective: str) -> guides.Guide:
        assert objective == "clip"
        return guide

    monkeypatch.setattr(guides, "load_guide", restore)

    def pose(**settings: Any) -> Any:
        config = tiny.config(**{f"control__{name}": value for name, value in settings.items()})
        config.control.task = "prompt"
        return control_run.pose(config, experiment.build(config))[0], parts.module, params

    return pose


@pytest.mark.slow
def test_a_prompt_adds_the_gradient_of_its_energy(posed: Any) -> None:
    """Times the scale, by finite differences of the share among rivals, which is written out."""
    texts = ["a photo of a six", "hm"]
    problem, clip, params = posed(prompt="; ".join(texts), method="contrast", scale=2.5)
    assert problem.titles == texts
    np.testing.assert_array_equal(problem.target_classes[:, 0], [6, -1])
    table = captions.table(data.class_names("digits"), LENGTH)[:, 0]
    x, v = jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 1))
    t, h = jnp.array([0.4]), 2e-2

    @quick_jit
    def run(x: Any, v: Any) -> Any:
        def along(condition: Any) -> jax.Array:
            condition = jax.tree.map(lambda leaf: leaf[None], condition)
            score = problem.guidance.score(params, condition, lambda x, t: -x)
            return jnp.sum((score(x, t) + x) * v)

        points = jnp.concatenate([x + h * v, x - h * v])
        tokens = np.concatenate([text_rows(*texts), table])
        image, text, scale = clip.apply({"params": params}, points, 999 * t.repeat(2), tokens)
        return jax.vmap(along)(problem.conditions), scale * image @ text.T

    found, similarity = run(x, v)
    rivals = [y for y in range(10) if y != 6], list(range(10))
    for row in range(2):
        against = np.concatenate([similarity[:, row, None], similarity[:, 2:][:, rivals[row]]], 1)
        up, down = similarity[:, row] - jax.nn.logsumexp(against, axis=1)
        np.testing.assert_allclose(found[row], 2.5 * (up - down) / (2 * h), rtol=3e-2)
    assert np.abs(found).min() > 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "control.task='prompt' needs a text in control.prompt"),
        ({"prompt": " ; "}, "needs a text in control.prompt"),
        ({"prompt": "a" * LENGTH}, f"has {LENGTH} bytes; the text tower reads {LENGTH - 1}"),
        ({"prompt": "six", "method": "ddim"}, "unknown control.method 'ddim'; known: contrast, si"),
    ],
)
def test_prompts_that_cannot_be_served(posed: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posed(**settings)


def test_text_is_for_a_network_that_reads() -> None:
    config = tiny.config(control__task="prompt", control__prompt="six", control__guide="nowhere")
    with pytest.raises(ValueError, match=r"control.guide='nowhere' holds no run"):
        control_run.pose(config, experiment.build(config))
    config = tiny.config(control__task="sdedit", control__prompt="six")
    with pytest.raises(ValueError, match=r"control.task='sdedit' reads no text"):
        control_run.pose(config, experiment.build(config))


@pytest.mark.slow
def test_prompts_from_the_command_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trainings and a prompt; the same images on their own; then what such a run refuses."""
    score, clip = tmp_path / "score", tmp_path / "clip"
    small = [f"--config.clip.{name}=8" for name in ("embedding_dim", "text_width")]
    objective = ["--config.training.objective=clip", *small]
    assert tiny.run(capsys, *tiny.arguments(score, "train"))[0] == 0
    assert tiny.run(capsys, *tiny.arguments(clip, "train", *objective))[0] == 0
    asked = [
        "--config.control.task=prompt",
        f"--config.control.guide={clip}",
        "--config.control.num_variants=2",
    ]
    drawn = {}
    for prompt in ("a six; a duck", "a six"):
        more = (*asked, f"--config.control.prompt={prompt}")
        assert tiny.run(capsys, *tiny.arguments(score, "control", *more))[0] == 0
        drawn[prompt] = np.load(score / "control" / "prompt" / "results.npz")["x"]
    assert drawn["a six; a duck"].shape == (4, 8, 8, 1)
    np.testing.assert_allclose(drawn["a six; a duck"][:2], drawn["a six"], atol=1e-4)
    assert relative_error(drawn["a six; a duck"][2:], drawn["a six"]) > 1e-3
    for mode in ("sample", "control"):
        code, lines = tiny.run(capsys, *tiny.arguments(clip, mode, *objective))
        assert code == 1
        assert "this run trained a CLIP of noisy images" in lines[-1]


# A published CLIP, from a folder.

FOLDER = golden_cases.ROOTS[0] / "clip"


@pytest.mark.golden
@pytest.mark.parametrize(
    "folder", golden_cases.folders("clip*", "outputs.npz"), ids=lambda path: path.name
)
def test_a_folder_of_weights_computes_what_transformers_does(folder: pathlib.Path) -> None:
    """Golden numbers of `CLIPModel` in PyTorch: vectors, similarities, and the gradient in x."""
    stored = np.load(folder / "outputs.npz")
    clip, params, mean, _ = transformers_clip.read(folder)
    np.testing.assert_allclose(mean, transformers_clip.MEAN, rtol=1e-6)

    @quick_jit
    def run(params: Any, pixels: Any) -> Any:
        def pairs(pixels: Any) -> Any:
            found: Any = clip.apply({"params": params}, pixels, stored["tokens"])
            return found[2] * jnp.sum(found[0] * found[1]), found

        gradient, (image, text, scale) = jax.grad(pairs, has_aux=True)(pixels)
        return {"image": image, "text": text, "similarity": scale * image @ text.T} | {
            "gradient": gradient
        }

    for name, found in run(params, stored["pixels"]).items():
        np.testing.assert_allclose(found, stored[name], rtol=2e-4, atol=2e-5, err_msg=name)
    legacy = clip.clone(end=None)  # reads the highest token, which here is the end
    embed = quick_jit(lambda tokens: legacy.apply({"params": params}, tokens, method="embed_text"))
    text: Any = embed(stored["tokens"])
    np.testing.assert_allclose(text, stored["text"], rtol=2e-4, atol=2e-5)


def test_folders_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    assert transformers_clip.is_folder(FOLDER)
    assert not transformers_clip.is_folder(tmp_path)
    clip, _, _, _ = transformers_clip.read(FOLDER)
    with pytest.raises(ValueError, match=r"has no tokenizer.json, which its texts"):
        transformers_clip.tokens(FOLDER, clip, ["six"])
    described = json.loads((FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(
        FileNotFoundError, match=r"has no model.safetensors and no pytorch_model.bin"
    ):
        transformers_clip.read(tmp_path)
    shutil.copy(FOLDER / "model.safetensors", tmp_path)
    for tower, field, value, message in (
        (
            "vision_config",
            "hidden_act",
            "relu",
            "unknown hidden_act in .*config.json 'relu'; known: gelu, qu",
        ),
        ("vision_config", "num_hidden_layers", 3, "lacks vision_model.encoder.layers.2.layer_norm"),
        ("text_config", "vocab_size", 41, r"is \(40, 16\), config.json says \(41, 16\)"),
    ):
        changed = {**described, tower: {**described[tower], field: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            transformers_clip.read(tmp_path)


@pytest.mark.parametrize("method", ["similarity", pytest.param("contrast", marks=pytest.mark.slow)])
def test_a_clip_of_clean_images_looks_at_the_denoised_image(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the score -x of standard-normal data, x0 = alpha x: the guidance is that of the energy
    there, written out here, by finite differences; the prompt's own class is no rival."""

    def tokens(folder: Any, clip: Any, given: Any) -> np.ndarray:
        return np.array([[38, 1 + i, 5, 39] for i in range(len(given))])

    monkeypatch.setattr(transformers_clip, "tokens", tokens)
    config = tiny.config(control__guide=str(FOLDER), control__prompt="six; a photo of a seven")
    config.control.task, config.control.method = "prompt", method
    parts = experiment.build(config)
    problem: Any = control_run.pose(config, parts)[0]
    np.testing.assert_array_equal(problem.target_classes[:, 0], [6, 7])
    clip, params, mean, std = transformers_clip.read(FOLDER)
    x, v = np.random.default_rng(0).standard_normal((2, 1, 8, 8, 1)).astype(np.float32)
    t, h = jnp.array([0.4]), 1e-2

    @quick_jit
    def run(params: Any, x: Any, v: Any) -> Any:
        condition = {name: jnp.asarray(a)[:1] for name, a in problem.conditions.items()}
        score = problem.guidance.score(params, condition, lambda x, t: -x)
        points = parts.sde.alpha(t) * jnp.concatenate([x + h * v, x - h * v])
        seen = ((points + 1) / 2 - mean) / std
        found: Any = clip.apply({"params": params}, seen, tokens(None, None, range(12)))
        image, text, scale = found
        return jnp.sum((score(x, t) + x) * v), scale * image @ text.T

    along, similarity = run(params, x, v)
    energy = similarity[:, 0]  # behind it the other prompt, then the ten classes
    if method == "contrast":
        rivals = [0, *(2 + y for y in range(10) if y != 6)]
        energy = energy - jax.nn.logsumexp(similarity[:, np.array(rivals)], axis=1)
    assert abs(along) > 1e-3
    np.testing.assert_allclose(along, (energy[0] - energy[1]) / (2 * h), rtol=2e-2)


def test_texts_are_tokenised_by_the_folders_own_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one length, the end repeated; without the package, a line that says so."""
    clip, *_ = transformers_clip.read(FOLDER)
    (tmp_path / "tokenizer.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(ValueError, match="needs the package tokenizers: pip install"):
            transformers_clip.tokens(tmp_path, clip, ["six"])
    tokenizers = pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        transformers_clip.tokens(tmp_path, clip, ["six"])
    words = {"a": 1, "six": 2, "[START]": 38, "[END]": 39}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[START] $0 [END]", special_tokens=[("[START]", 38), ("[END]", 39)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = transformers_clip.tokens(tmp_path, clip, ["a six", "six"])
    np.testing.assert_array_equal(found, [[38, 1, 2, 39], [38, 2, 39, 39]])
    with pytest.raises(ValueError, match=r"has 10 tokens; the text tower of .* reads 1 to 9"):
        transformers_clip.tokens(tmp_path, clip, ["a " * 8])
