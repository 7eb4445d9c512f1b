"""Snapshots of the power-function averages on disk, and averages of other lengths made from them.

`<folder>/<step>.npz` holds every tracked average at that step in float32, "sigma_rel_0.1/Conv_0/
kernel": 4 bytes for each parameter and profile. (Half precision would not do: the phases of the
Fourier embedding are its random frequencies, of size 16, times large numbers.) A file is written
whole or not at all, and never pickled.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from runtime import ema, files, hosts
from runtime.arrays import DAMAGE, flatten, read_arrays, unflatten, write_arrays

LARGEST_ERROR = 0.5  # of a profile that is still taken for the wanted one


class Reconstruction(NamedTuple):
    """An average that was perhaps not tracked itself."""

    params: Any
    sources: int  # stored averages that went into it
    error: float  # of its profile, see `ema.Combination`


class Snapshots:
    """The snapshots of one run. Nothing on disk changes before the first `save`."""

    def __init__(self, folder: files.Path) -> None:
        self.folder = files.as_path(folder)

    def steps(self) -> list[int]:
        """The steps on disk, ascending."""
        if not self.folder.is_dir():
            return []
        names = [path.stem for path in self.folder.iterdir() if path.suffix == ".npz"]
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, averages: Mapping[str, Any]) -> None:
        """Writes the averages of profiles (see `ema.profile_name`) among `averages` at one step.

        Unfinished files of a killed process are removed.

        Raises:
          OSError: it could not be written.
        """
        profiles = {name: tree for name, tree in averages.items() if ema.width_in(name) is not None}
        for unfinished in (*self.folder.glob(".*.npz"), *self.folder.glob("*.partial")):
            unfinished.unlink()
        with files.whole(self._path(step)) as temporary:
            write_arrays(temporary, flatten(profiles))

    def reconstruct(
        self,
        template: Any,
        step: int,
        sigma_rel: float,
        state: Mapping[str, np.ndarray] | None = None,
    ) -> Reconstruction:
        """The average of relative width `sigma_rel` at `step`, from the snapshots up to there.

        Args:
          template: the tree of parameters to return, whose leaves have `shape` and `dtype`.
          state: arrays of the training state at that step by name ("averages/sigma_rel_0.1/..."),
            if there is a checkpoint of it: as good as one more snapshot.

        Raises:
          ValueError: there is no snapshot up to that step; one is damaged or of another network;
            they do not make this average.
        """
        state_averages = _averages(state or {})
        stored = self._stored(step, state_averages)
        combination = self._combination([(at, width) for at, _, width in stored], step, sigma_rel)
        total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), template)
        for (at, name, _), coefficient in zip(stored, combination.coefficients, strict=True):
            from_state = state_averages and at == step
            arrays = state_averages if from_state else self._of_any(at, name)
            try:
                average = unflatten(template, arrays, prefix=name)
            except ValueError as error:
                raise ValueError(f"snapshot {self._path(at)} does not fit: {error}") from error
            total = jax.tree.map(lambda sum, leaf, c=coefficient: sum + c * leaf, total, average)
        params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, template)
        return Reconstruction(params, len(stored), combination.error)

    def _stored(
        self, step: int, state_averages: Mapping[str, np.ndarray]
    ) -> list[tuple[int, str, float]]:
        """Step, name and width of every stored average of a profile up to `step`."""
        names = self._everywhere({at: self._names(at) for at in self.steps() if at <= step})
        if state_averages:
            names[step] = sorted({name.partition("/")[0] for name in state_averages})
        stored = [
            (at, name, width)
            for at, names_then in names.items()
            for name in names_then
            if (width := ema.width_in(name)) is not None
        ]
        if not stored:
            steps = ", ".join(map(str, self.steps())) or "none"
            raise ValueError(
                f"there is no snapshot of a profile up to step {step} in {self.folder} (steps: "
                f"{steps}); a run keeps them if it has training.ema_profiles"
            )
        return stored

    def _everywhere(self, names: dict[int, list[str]]) -> dict[int, list[str]]:
        """The names by step that any process has, ascending."""
        if not hosts.maybe_several_disks():
            return names
        said = [json.loads(text) for text in hosts.texts(json.dumps(names))]
        together = {int(at): there for each in reversed(said) for at, there in each.items()}
        return dict(sorted(together.items()))

    def _of_any(self, step: int, name: str) -> dict[str, np.ndarray]:
        """The arrays of an average in the snapshot of one step, of this disk or another's."""
        if not hosts.maybe_several_disks():
            return self._read(step, name)
        here = self._read(step, name) if self._path(step).is_file() else None
        shared = hosts.from_any(here)
        if shared is None:
            raise ValueError(f"snapshot {self._path(step)} is not there any more")
        return shared[0]

    def _combination(
        self, profiles: list[tuple[int, float]], step: int, sigma_rel: float
    ) -> ema.Combination:
        """The combination of profiles, (step, width) each, that comes nearest to the wanted one."""
        steps, widths = zip(*profiles, strict=True)
        combination = ema.combination(steps, widths, step, sigma_rel)
        if combination.error > LARGEST_ERROR:
            raise ValueError(
                f"an average of width {sigma_rel:g} at step {step} cannot be made of the snapshots "
                f"in {self.folder}: its profile would be off by {100 * combination.error:.0f} %; "
                f"take a wider one, or one at a snapshot's step (the last is {max(steps)})"
            )
        return combination

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / f"{step}.npz"

    def _names(self, step: int) -> list[str]:
        """The names of the averages in one snapshot."""
        try:
            with self._path(step).open("rb") as file, zipfile.ZipFile(file) as archive:
                return sorted({member.partition("/")[0] for member in archive.namelist()})
        except DAMAGE as error:
            raise self._damage(step, error) from error

    def _read(self, step: int, name: str) -> dict[str, np.ndarray]:
        try:
            return read_arrays(self._path(step), prefix=f"{name}/")
        except DAMAGE as error:
            raise self._damage(step, error) from error

    def _damage(self, step: int, error: Exception) -> ValueError:
        return ValueError(
            f"snapshot {self._path(step)} is damaged ({error}); remove it to do without it"
        )


def _averages(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The averages of profiles in a stored training state, named as in a snapshot."""
    prefix = "averages/"
    arrays = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
    return {k: v for k, v in arrays.items() if ema.width_in(k.partition("/")[0]) is not None}
