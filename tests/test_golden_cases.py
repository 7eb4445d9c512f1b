"""Golden files are found by kind: one more under a new name is one more case."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from tests import golden_cases

CARRIED = golden_cases.ROOTS[0]
# A file of each kind, and what asks for its kind.
KINDS = {
    "networks/a1b_ncsnpp_ve_cont_smallfourier.npz": lambda: golden_cases.networks("sd"),
    "networks/cj_ncsnv2_64.npz": lambda: golden_cases.networks("jp"),
    "math/d_score_fn.npz": lambda: golden_cases.about("math", "score_fn"),
    "math/e_sde.npz": lambda: golden_cases.about("math", "sde"),
    "math/f_losses.npz": lambda: golden_cases.about("math", "losses"),
    "math/g_samplers.npz": lambda: golden_cases.about("math", "samplers"),
    "math/h_likelihood.npz": lambda: golden_cases.about("math", "likelihood"),
    "math/i_controllable.npz": lambda: golden_cases.about("math", "controllable"),
    "math/j_ema_optim.npz": lambda: golden_cases.about("math", "ema_optim"),
    "math/j_train_ve.npz": lambda: golden_cases.about("math", "train"),
    "metrics/inception_features.npz": lambda: golden_cases.about("metrics", "inception_features"),
    "metrics/metrics.npz": lambda: golden_cases.about("metrics", "metrics"),
    "pytorch/ncsn.npz": lambda: golden_cases.files("pytorch"),
}


@pytest.fixture
def added(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A `$GOLDEN_DIR` that is still empty."""
    monkeypatch.setattr(golden_cases, "ROOTS", [CARRIED, tmp_path])
    return tmp_path


def copy(source: str, target: pathlib.Path) -> pathlib.Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(CARRIED / source, target)
    return target


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pattern", ["{}_h", "h_{}", "{}_2"])
def test_a_file_of_the_kind_is_one_more_case(name: str, pattern: str, added: pathlib.Path) -> None:
    before = KINDS[name]()
    assert CARRIED / name in before
    path = copy(name, (added / name).with_stem(pattern.format(pathlib.Path(name).stem)))
    assert set(KINDS[name]()) == {*before, path}
    replacement = copy(name, added / name)
    assert set(KINDS[name]()) == {*before, path, replacement} - {CARRIED / name}


def test_the_two_kinds_of_networks_are_told_apart_by_content(added: pathlib.Path) -> None:
    path = copy("networks/cj_ncsnv2_64.npz", added / "networks" / "z.npz")
    assert path in golden_cases.networks("jp")
    assert path not in golden_cases.networks("sd")


def test_a_checkpoint_has_the_files_of_its_whole_stem(added: pathlib.Path) -> None:
    """`ncsnpp_ve_h` is no twin of `ncsnpp_ve`, nor of a stem that it ends or begins with."""
    (carried,) = [case for case in golden_cases.checkpoints() if case.stem == "ncsnpp_ve"]
    folder = added / "checkpoints"
    stored = "checkpoints/ncsnpp_ve"
    expected = copy(f"{stored}_expected.npz", folder / "ncsnpp_ve_h_expected.npz")
    names = ("ncsnpp_ve_h.pth", "ncsnpp_ve_h_checkpoint_2")
    pth, twin = (copy(f"{stored}.pth", folder / name) for name in names)
    orphan = copy(f"{stored}.pth", folder / "ncsnpp_ve_i.pth")
    cases = {case.stem: case for case in golden_cases.checkpoints()}
    assert cases["ncsnpp_ve"] == carried
    assert cases["ncsnpp_ve_h"] == golden_cases.Checkpoint("ncsnpp_ve_h", (pth, twin), expected)
    assert (carried.pth, cases["ncsnpp_ve_h"].pth) == (CARRIED / f"{stored}.pth", pth)
    assert all(orphan not in case.files for case in cases.values())


def test_any_folder_with_its_outputs_is_a_case(added: pathlib.Path) -> None:
    before = golden_cases.folders("diffusers/*", "expected.npz")
    (added / "diffusers" / "without_outputs").mkdir(parents=True)
    copy("checkpoints/ncsnpp_ve_expected.npz", added / "diffusers" / "church" / "expected.npz")
    found = golden_cases.folders("diffusers/*", "expected.npz")
    assert {*found} == {*before, added / "diffusers" / "church"}
    copy("clip/outputs.npz", added / "clip_h" / "outputs.npz")
    clips = golden_cases.folders("clip*", "outputs.npz")
    assert clips == [CARRIED / "clip", added / "clip_h"]


def test_tables_of_several_files_are_one_and_agree(added: pathlib.Path) -> None:
    before = golden_cases.table("parameter_counts")
    (added / "parameter_counts_h.json").write_text('{"new": {"parameters": 3}}')
    assert golden_cases.table("parameter_counts") == {**before, "new": {"parameters": 3}}
    (added / "parameter_counts_i.json").write_text('{"new": {"parameters": 4}}')
    with pytest.raises(AssertionError, match="contradicts new"):
        golden_cases.table("parameter_counts")


def test_tests_name_their_cases_by_stem() -> None:
    """The stem of every file is part of the id of the tests that it makes."""
    from tests import test_metrics, test_score

    for case in [*test_score.golden_tags(), *test_metrics.stored_results("_fid_")]:
        assert str(case.id).startswith(case.values[0].stem)
