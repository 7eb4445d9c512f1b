"""Pixels in: data sets, batches in a deterministic order, and their form on the device."""

from data.batches import Batches, eval_batches
from data.datasets import (
    DATASETS,
    Dataset,
    check_points,
    check_shape,
    class_names,
    default_folder,
    fitting,
    from_config,
    grey_levels,
    is_users_own,
    load,
)
from data.standardisation import Standard, standard

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "Standard",
    "check_points",
    "check_shape",
    "class_names",
    "default_folder",
    "eval_batches",
    "fitting",
    "from_config",
    "grey_levels",
    "is_users_own",
    "load",
    "standard",
]
