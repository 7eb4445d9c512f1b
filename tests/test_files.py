"""Files are written whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from runtime import files


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "eval" / "results.json"
    value = {"frechet_distance": np.float32(1.5), "steps": np.arange(2), "seed": 0}
    files.write_json(path, value)
    assert json.loads(path.read_text()) == {"frechet_distance": 1.5, "steps": [0, 1], "seed": 0}
    value["self"] = value
    with pytest.raises(ValueError, match="Circular"):
        files.write_json(path, value)
    assert json.loads(path.read_text())["seed"] == 0
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
