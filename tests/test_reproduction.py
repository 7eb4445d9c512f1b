"""The plan and the verdicts of the small reproduction."""

import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from tqdm import tqdm

import configs
from benchmarks.reproduction import cells, claims, study, tables
from benchmarks.reproduction.claims import verdict
from tests import tiny
from tests.test_training import use_devices
from training import metric_log


@pytest.mark.parametrize("dataset", cells.SCALES)
def test_cells_have_names_of_their_own_and_configs_that_stand(dataset):
    scale = cells.SCALES[dataset]
    planned = [*cells.table_1(scale, {}), *cells.table_2(), *cells.few_steps(scale)]
    trials = [(*key, snr) for key in cells.searches(scale) for snr in scale.snrs]
    planned += [cells.trial(scale, *each) for each in trials]
    names = [(cell.sde, cell.name) for cell in planned]
    assert len(set(names)) == len(names)
    for cell in planned:
        config = study.load(dataset, cell.sde)
        config.update_from_flattened_dict(cell.settings)
        configs.check(config)


def test_networks_differ_by_what_their_sde_needs_alone():
    for dataset in cells.SCALES:
        vp, subvp, ve = (study.load(dataset, sde).to_dict() for sde in ("vp", "subvp", "ve"))
        fields = {
            f"{section}.{name}"
            for section in vp
            if isinstance(vp[section], dict)
            for name in vp[section]
            if not vp[section][name] == subvp[section][name] == ve[section][name]
        }
        assert fields == {
            "training.sde",
            "data.centered",
            "model.sigma_max",
            "model.scale_by_sigma",
            "model.embedding_type",
        }


def test_table_1_spends_what_the_paper_spent_by_a_tenth():
    counts = {
        cell.name: cell.settings["sampling.num_steps"]
        * (
            (cell.settings["sampling.predictor"] != "none")
            + (cell.settings["sampling.corrector"] != "none")
            * cell.settings["sampling.n_steps_each"]
        )
        for cell in cells.table_1(cells.SCALES["digits"], {})
        if cell.sde == "vp"
    }
    assert len(counts) == 10
    for name, evaluations in counts.items():
        assert evaluations == (100 if "_P1000" in name else 200)


def test_a_searched_ratio_reaches_its_column_alone():
    ratios = {("ve", "PC1000"): 0.25, ("vp", "C2000"): 0.03}
    planned = {
        (cell.sde, cell.name): cell.settings["sampling.snr"]
        for cell in cells.table_1(cells.SCALES["digits"], ratios)
    }
    assert planned["ve", "ancestral_PC1000"] == planned["ve", "probability_flow_PC1000"] == 0.25
    assert planned["vp", "C2000"] == 0.03
    assert planned["vp", "ancestral_PC1000"] != 0.25


@pytest.mark.parametrize(("least", "tried"), [(0.1, 0), (0.25, 1), (0.45, 2), (3.0, 3)])
def test_a_search_goes_on_while_its_last_is_its_best(monkeypatch, least, tried):
    def measure(dataset, cell, workdir):
        return {"frechet_distance": abs(cell.settings["sampling.snr"] - least)}

    monkeypatch.setattr(study, "measure", measure)
    with tqdm(total=5, disable=True) as bar:
        distances = study.search("digits", ("ve", "C2000"), pathlib.Path(), bar)
        assert bar.total == len(distances)
    assert list(distances) == [*cells.SNRS, *cells.FURTHER_SNRS[:tried]]


def test_every_claim_is_published_so_and_measured_on_digits():
    scale = cells.SCALES["digits"]
    planned = [*cells.table_1(scale, {}), *cells.table_2(), *cells.few_steps(scale)]
    measured = {(cell.sde, cell.name) for cell in planned}
    published = list(claims.claims())
    assert len({claim.text for claim in published}) == len(published) > 20
    for claim in published:
        assert claim.published[0] < claim.published[1]
        assert {claim.better, claim.worse} <= measured


def test_verdicts():
    claim = next(claims.claims())
    low, high = np.array([1.0, 1.1, 0.9]), np.array([2.0, 2.3, 1.8])
    clear = verdict(claim, low, high)
    assert clear.text == "reproduced"
    np.testing.assert_allclose(clear.difference, 31 / 30)  # of 1, 1.2 and 0.9
    np.testing.assert_allclose(clear.error, np.sqrt(7 / 900))
    np.testing.assert_allclose(clear.p, 7.2e-3, rtol=0.02)  # t = 11.7, 2 degrees of freedom
    assert verdict(claim, high, low).text == "not reproduced"
    assert verdict(claim, low, low + np.array([0.2, -0.1, 0.1])).text == "undecided"
    assert verdict(claim, low, low).text == "undecided"
    # A small difference that all seeds, or images, show is one, however much they differ.
    values = np.linspace(1.0, 5.0, 20)
    assert verdict(claim, values, values + np.linspace(0.01, 0.02, 20)).text == "reproduced"
    assert verdict(claim, values, values[::-1] + 0.01).text == "undecided"


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop_saves_and_ends_the_study(tmp_path, monkeypatch):
    add, handler = metric_log.History.add, signal.getsignal(signal.SIGTERM)

    def interrupted(self, step, metrics):
        os.kill(os.getpid(), signal.SIGTERM)
        add(self, step, metrics)

    use_devices(monkeypatch, 1)
    monkeypatch.setattr(metric_log.History, "add", interrupted)
    monkeypatch.setattr(study, "load", lambda *_: tiny.config())
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # those of other tests
    with pytest.raises(SystemExit, match="stopped at step 2 of 6; the same command goes on"):
        study.train("digits", "vp", tmp_path)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_study_becomes_tables_and_a_picture(tmp_path):
    scale = cells.SCALES["fashion"]
    rng = np.random.default_rng(0)
    planned = [*cells.table_1(scale, {}), *cells.table_2(), *cells.few_steps(scale)]
    results = {
        (cell.sde, cell.name): {
            "over_seeds": {
                "seeds": [0, 1, 2],
                "frechet_distance": {"values": list(3.0 + rng.random(3))},
            },
            "num_samples": 500,
            "num_train": 60000,
            "features": "features of a classifier",
            "frechet_distance_real": 1.25,
            "frechet_samples_real": 500,
            "nfe": 10.0,
            "loss": 0.1,
            "bits_per_dim": 2.5,
            "bits_per_dim_stderr": 0.01,
            "bits_per_dim_images": 200,
            "likelihood_of": "uniformly dequantised",
        }
        for cell in planned
    }
    ratios = {key: {0.1: 5.0, 0.2: 4.0} for key in cells.searches(scale)}
    fashion = study.Study("fashion", scale, ratios, results)
    for sde in ("vp", "subvp"):
        folder = tmp_path / f"fashion_{sde}" / "eval" / "flow"
        folder.mkdir(parents=True)
        np.savez(folder / "bits_per_dim.npz", bits=rng.random(20) + (sde == "vp"))
    verdicts = study.verdicts(fashion, tmp_path)
    assert any("bits/dim" in one.claim.text and one.text == "reproduced" for one in verdicts)
    text = tables.section(fashion, verdicts)
    assert "| VE, reverse diffusion |" in text
    assert "| sub-VP | 2.500 ± 0.010 |" in text
    assert "VE PC100 0.2 of 0.1, 0.2" in text
    assert "P200" in text
    assert "P2000" not in text
    assert all(one.claim.text in text for one in verdicts)
    tables.draw(tmp_path / "pictures" / "fashion.png", fashion)
    assert (tmp_path / "pictures" / "fashion.png").stat().st_size > 10_000
