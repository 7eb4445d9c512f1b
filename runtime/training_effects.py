"""Where fields act that say what is trained, and how: beside one value of another field."""

from __future__ import annotations

from typing import Any

import models

# Fields, and the other field with the values beside which they act.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "training.num_directions training.directions": ("training.objective", "ssm", "ssm_vr"),
    "training.kde_*": ("training.objective", "esm"),
    "training.log_sigma_*": ("training.time", "log_normal"),
    "training.logit_*": ("training.time", "logit_normal"),
    "training.mode_scale": ("training.time", "mode"),
    "training.sigma": ("training.time", "fixed"),
    "training.teacher_steps": ("training.coupling", "reflow"),
    "training.tangent_*": ("training.objective", "consistency"),
    "training.mean_flow_*": ("training.objective", "mean_flow"),
    "classifier.*": ("training.objective", "classifier", "clip"),
    "classifier.num_classes classifier.name": ("training.objective", "classifier"),
    "classifier.nonlinearity classifier.embedding_type classifier.fourier_scale": (
        *("classifier.name", "wrn"),
    ),
    "classifier.ch_mult classifier.attn_resolutions classifier.head_channels": (
        *("classifier.name", "adm"),
    ),
    "classifier.dropout": ("classifier.name", "wrn", "adm"),
    "clip.*": ("training.objective", "clip"),
    "optim.decay_steps": ("optim.schedule", "cosine", "linear", "inverse_sqrt"),
    "optim.decay_to": ("optim.schedule", "cosine", "linear"),
    "optim.eps": ("optim.optimizer", "Adam", "AdamW", "NAdam", "RAdam"),
}

WITH_TEACHER = f"training.coupling is reflow, or training.objective {' or '.join(models.FLOW_MAPS)}"


def has_teacher(config: Any, mode: str) -> bool:
    """The condition that a run can learn of another one."""
    del mode
    return config.training.coupling == "reflow" or config.training.objective in models.FLOW_MAPS
