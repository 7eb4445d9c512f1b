"""DINOv2 from a folder of Hugging Face's format: config.json and weights."""

from __future__ import annotations

import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs.names import lookup
from interop import transformers_files
from models.clip_vit import ACTIVATIONS
from models.dinov2 import DINOv2

# Values that the format leaves out where they apply.
USUAL: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4,
    "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 14,
    "use_swiglu_ffn": False,
}  # fmt: skip
# Where the format's names are others than those of the parameters here, in this order.
NAMES = (
    (r"^(patch_embeddings)\.", r"embeddings.\1.projection."),
    (r"^(cls_token|position_embeddings)$", r"embeddings.\1"),
    (r"^layer_(\d+)\.", r"encoder.layer.\1."),
    (r"\.attention\.out_proj\.", ".attention.output.dense."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.(layer_scale[12])$", r".\1.lambda1"),
)


class Pretrained(NamedTuple):
    """A network with its weights."""

    module: DINOv2
    params: Any


def read(folder: pathlib.Path) -> Pretrained:
    """The network that the folder holds.

    Raises:
      FileNotFoundError: no weights.
      ValueError: another network, or weights that do not fit the description.
    """
    description = transformers_files.description(folder)
    if description.get("model_type") != "dinov2":
        raise ValueError(f"{folder} has no config.json of a DINOv2 (model_type)")
    described = USUAL | description
    if described["use_swiglu_ffn"]:
        raise ValueError(f"{folder / 'config.json'}: use_swiglu_ffn is not read, only an MLP")
    lookup(ACTIVATIONS, described["hidden_act"], f"hidden_act in {folder / 'config.json'}")
    width = described["hidden_size"]
    module = DINOv2(
        described["num_hidden_layers"],
        width,
        int(width * described["mlp_ratio"]),
        described["num_attention_heads"],
        described["hidden_act"],
        described["layer_norm_eps"],
        described["image_size"],
        described["patch_size"],
    )
    pixels = jnp.zeros((1, module.image_size, module.image_size, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    path = transformers_files.weights_file(folder)
    tensors = transformers_files.read_weights(path)
    return Pretrained(module, transformers_files.params_of(shapes, tensors, path, name_of))


def name_of(parameter: str) -> str:
    """The format's name of a parameter."""
    for pattern, replacement in NAMES:
        parameter = re.sub(pattern, replacement, parameter)
    return parameter
