"""CLIP from a folder of Hugging Face's format: config.json, weights, tokenizer.json."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.names import lookup
from interop import transformers_files
from models.clip_vit import ACTIVATIONS, ClipViT, Encoder

# Values that the format leaves out where they apply: of both towers, and of each.
TOWER = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
VISION = {
    **TOWER, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32,
}  # fmt: skip
TEXT = {
    **TOWER, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
    "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue in [0, 1], as published
STD = (0.26862954, 0.26130258, 0.27577711)


class Pretrained(NamedTuple):
    """A network with its weights, and the mean and deviation [3] that normalise its pixels."""

    module: ClipViT
    params: Any
    mean: np.ndarray
    std: np.ndarray


def is_folder(folder: pathlib.Path) -> bool:
    """True if the folder's config.json describes a CLIP in this format."""
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type") == "clip"
    except (OSError, ValueError, AttributeError):
        return False


def read(folder: pathlib.Path) -> Pretrained:
    """The network that the folder holds.

    Raises:
      FileNotFoundError: no weights.
      ValueError: an activation that is not known, or weights that do not fit the description.
    """
    description = json.loads((folder / "config.json").read_text())
    vision = VISION | description.get("vision_config", {})
    text = TEXT | description.get("text_config", {})
    end = text["eos_token_id"]
    module = ClipViT(
        description.get("projection_dim", 512),
        vision["image_size"],
        vision["patch_size"],
        text["vocab_size"],
        text["max_position_embeddings"],
        None if end == 2 else end,  # 2 was written by mistake for years: then it is the highest
        _encoder(folder, vision),
        _encoder(folder, text),
    )
    pixels = jnp.zeros((1, module.image_size, module.image_size, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels, jnp.zeros((1, 1), jnp.int32))
    path = transformers_files.weights_file(folder)
    tensors = transformers_files.read_weights(path)
    params = transformers_files.params_of(shapes["params"], tensors, path, name_of)
    preprocessor = folder / "preprocessor_config.json"
    stored = json.loads(preprocessor.read_text()) if preprocessor.is_file() else {}
    mean, std = (
        np.asarray(stored.get(name, usual), np.float32)
        for name, usual in (("image_mean", MEAN), ("image_std", STD))
    )
    return Pretrained(module, params, mean, std)


def _encoder(folder: pathlib.Path, tower: dict[str, Any]) -> functools.partial[Encoder]:
    lookup(ACTIVATIONS, tower["hidden_act"], f"hidden_act in {folder / 'config.json'}")
    return functools.partial(
        Encoder,
        tower["num_hidden_layers"],
        tower["hidden_size"],
        tower["intermediate_size"],
        tower["num_attention_heads"],
        tower["hidden_act"],
        tower["layer_norm_eps"],
    )


def name_of(parameter: str) -> str:
    """The format's name of a parameter."""
    return parameter.replace("layers_", "layers.")


def tokens(folder: pathlib.Path, module: ClipViT, texts: Sequence[str]) -> np.ndarray:
    """The tokens of texts by the folder's tokenizer.json, int32 [N, L], padded by repeated ends.

    Raises:
      ValueError: no such file, none that can be read, no `tokenizers` to read it with, or a text
        that is too long.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json, which its texts are tokenised by")
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(f"{path} needs the package tokenizers: pip install tokenizers") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library's own is no subclass of anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {reason}") from error
    rows = [tokenizer.encode(text).ids for text in texts]
    length = max(map(len, rows))
    for text, row in zip(texts, rows, strict=True):
        if not 0 < len(row) <= module.length:
            raise ValueError(
                f"the text {text!r} has {len(row)} tokens; the text tower of {folder} reads 1 to "
                f"{module.length}"
            )
    return np.array([row + [row[-1]] * (length - len(row)) for row in rows], np.int32)
