"""The networks that guide a score, from configs: classifiers of noisy images, and CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from configs.names import lookup
from configs.shapes import example_shape
from models.adm_classifier import ADMClassifier
from models.build import DTYPES
from models.classifier import BASE_WIDTH, NoisyClassifier
from models.clip import CLIP
from models.mlp import MLP
from models.wide_resnet import WideResNet

Classifier = NoisyClassifier | ADMClassifier | WideResNet | MLP


def classifier_from_config(config: Any) -> Classifier:
    """The classifier of noisy images that `config.classifier` describes; of points, an `MLP`.

    Raises:
      ValueError: an unknown choice, fewer than two classes, or points for a network of images.
    """
    kind = lookup(CLASSIFIERS, config.classifier.name, "classifier.name")
    if _has_points(config) and kind is not _noisy_classifier:
        raise ValueError(
            f"classifier.name is {config.classifier.name!r}, which takes images, and "
            f"data.dataset={config.data.dataset!r} has points; wrn is served"
        )
    return kind(config)


def _has_points(config: Any) -> bool:
    """True of examples that no network of images takes: points, vectors, series."""
    shape = example_shape(config.data)
    return len(shape) != 3 or shape[0] == 1


def _adm_classifier(config: Any) -> ADMClassifier:
    classifier = config.classifier
    return ADMClassifier(
        num_classes=classifier.num_classes,
        nf=BASE_WIDTH * classifier.widen_factor,
        ch_mult=tuple(classifier.ch_mult),
        num_res_blocks=classifier.blocks_per_group,
        attn_resolutions=tuple(classifier.attn_resolutions),
        dropout=classifier.dropout,
        head_channels=classifier.head_channels,
        centered=config.data.centered,
        dtype=lookup(DTYPES, classifier.dtype, "classifier.dtype"),
    )


def _wide_resnet(config: Any) -> WideResNet:
    classifier = config.classifier
    return WideResNet(
        num_classes=classifier.num_classes,
        widen_factor=classifier.widen_factor,
        blocks_per_group=classifier.blocks_per_group,
        centered=config.data.centered,
        dtype=lookup(DTYPES, classifier.dtype, "classifier.dtype"),
    )


def _noisy_classifier(config: Any) -> NoisyClassifier | MLP:
    classifier, shared = config.classifier, _of_noisy_images(config)
    if _has_points(config):
        return MLP(
            nf=BASE_WIDTH * classifier.widen_factor,
            num_res_blocks=classifier.blocks_per_group,
            num_outputs=classifier.num_classes,
            **shared,
        )
    return NoisyClassifier(
        num_classes=classifier.num_classes,
        widen_factor=classifier.widen_factor,
        blocks_per_group=classifier.blocks_per_group,
        **shared,
    )


CLASSIFIERS: dict[str, Callable[[Any], Classifier]] = {
    "adm": _adm_classifier,
    "wrn": _noisy_classifier,
    "wrn_score_sde": _wide_resnet,
}


def clip_from_config(config: Any, vocabulary: int, end: int) -> CLIP:
    """CLIP, whose image tower `config.classifier` describes, and the rest `config.clip`.

    Args:
      vocabulary, end: of the tokens: how many there are, and which one ends a text.

    Raises:
      ValueError: an unknown choice, a text width that its heads do not share, or points.
    """
    if _has_points(config):
        raise ValueError(
            f"training.objective='clip' needs images; data.dataset={config.data.dataset!r} has "
            "points"
        )
    if config.classifier.name != "wrn":
        raise ValueError(
            f"classifier.name is {config.classifier.name!r}; the image tower of a CLIP is 'wrn'"
        )
    return CLIP(
        vocabulary,
        end,
        **config.clip.to_dict(),
        widen_factor=config.classifier.widen_factor,
        blocks_per_group=config.classifier.blocks_per_group,
        **_of_noisy_images(config),
    )


def _of_noisy_images(config: Any) -> dict[str, Any]:
    """Arguments that every network of `config.classifier` takes from it."""
    classifier = config.classifier
    return {
        "dropout": classifier.dropout,
        "nonlinearity": classifier.nonlinearity.lower(),
        "embedding_type": classifier.embedding_type.lower(),
        "fourier_scale": classifier.fourier_scale,
        "dtype": lookup(DTYPES, classifier.dtype, "classifier.dtype"),
    }
