"""What networks of which objectives are there for: a score, a map along its flow, or a guide."""

from __future__ import annotations

from typing import Any

CLASSIFIER = "classifier"  # the objective of a noisy classifier
CLIP_OBJECTIVE = "clip"  # the objective of noisy images and captions
GUIDES = {CLASSIFIER: "a classifier", CLIP_OBJECTIVE: "a CLIP"}  # their networks have no score
MEAN_FLOW = "mean_flow"  # the objective of a network of two times
FLOW_MAPS = {  # nor have these, which draw in few steps
    "consistency": "a consistency function",
    MEAN_FLOW: "a mean velocity",
}


def has_samples(config: Any) -> bool:
    """True if the run trains the network of `config.model`, which draws samples, False if it trains
    a network that is to guide one."""
    return config.training.objective not in GUIDES


def has_score(config: Any) -> bool:
    """True if the run trains a score, False if it trains a guide of one, or a flow map."""
    return has_samples(config) and config.training.objective not in FLOW_MAPS
