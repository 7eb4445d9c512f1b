"""The plan, the statistics and the course of the small reproduction."""

import json
import os
import signal
import threading
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tqdm import tqdm

import configs
import sde_lib
from benchmarks.reproduction import __main__ as command
from benchmarks.reproduction import cells, claims, exact, kept, measure, study, tables, why
from benchmarks.reproduction.measure import EXACT, TRAINED, Bench, Unit
from benchmarks.reproduction.sequential import LEVEL, LOOKS, decide, holm
from runtime import experiment
from tests import gaussians, tiny
from tests.test_training import use_devices
from training import metric_log

# --- the plan ---


@pytest.mark.parametrize("dataset", cells.SCALES)
def test_cells_have_names_of_their_own_and_configs_that_stand(dataset):
    scale = cells.SCALES[dataset]
    planned = cells.planned(scale, {})
    planned += [task.trial(scale, snr) for task in cells.searches(scale) for snr in scale.snrs]
    names = [(cell.sde, cell.name) for cell in planned]
    assert len(set(names)) == len(names)
    for cell in planned:
        config = measure.load(dataset, cell.sde)
        config.update_from_flattened_dict(cell.settings)
        configs.check(config)


def test_networks_differ_by_what_their_sde_needs_alone():
    for dataset in cells.SCALES:
        vp, subvp, ve = (measure.load(dataset, sde).to_dict() for sde in ("vp", "subvp", "ve"))
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


@pytest.mark.parametrize("dataset", cells.SCALES)
def test_table_1_spends_what_the_paper_spent_in_proportion(dataset):
    scale = cells.SCALES[dataset]
    for cell in cells.table_1(scale, {}):
        evaluations = cell.settings["sampling.num_steps"] * (
            (cell.settings["sampling.predictor"] != "none")
            + (cell.settings["sampling.corrector"] != "none")
            * cell.settings["sampling.n_steps_each"]
        )
        assert evaluations == scale.levels * (1 if "_P1000" in cell.name else 2)


def test_the_chain_of_vp_ends_where_the_noise_that_is_left_is_that_of_its_last_step():
    """As the paper's 1000 levels do at 1e-3, and a tenth of them at 1e-3 do not."""

    def ratio(levels, eps):
        config = measure.load("digits", "vp")
        config.sampling.num_steps, config.model.num_scales = levels, levels
        sde = experiment.build(config).sde
        assert isinstance(sde, sde_lib.VPSDE)
        return float(sde.discrete_betas[0] / np.square(sde.sigma(jnp.full(1, eps))[0]))

    scale = cells.SCALES["digits"]
    cell = next(cell for cell in cells.table_1(scale, {}) if cell.sde == "vp")
    assert 0.2 < ratio(1000, 1e-3) < 1.1
    assert 0.2 < ratio(scale.levels, cell.settings["sampling.eps"]) < 1.1
    assert ratio(scale.levels, 1e-3) > 8


def test_a_searched_ratio_reaches_its_cell_alone():
    ratios = {("ve", "ancestral_PC1000"): 0.25, ("vp", "C2000"): 0.03}
    planned = {
        (cell.sde, cell.name): cell.settings["sampling.snr"]
        for cell in cells.table_1(cells.SCALES["digits"], ratios)
    }
    assert {key for key, snr in planned.items() if snr == 0.25} == {("ve", "ancestral_PC1000")}
    assert planned["vp", "C2000"] == 0.03
    assert planned["vp", "ancestral_PC1000"] == planned["ve", "C2000"] == cells.SNRS[0]


def test_every_predictor_has_a_search_of_its_own():
    tasks = cells.searches(cells.SCALES["digits"])
    planned = {(cell.sde, cell.name) for cell in cells.table_1(cells.SCALES["digits"], {})}
    corrects = {key for key in planned if "C" in key[1]}
    assert {(task.sde, task.name) for task in tasks} == corrects
    assert len(tasks) == len(corrects) == 8


def test_every_claim_is_published_so_and_measured_on_digits():
    measured = {(cell.sde, cell.name) for cell in cells.planned(cells.SCALES["digits"], {})}
    published = list(claims.claims())
    assert len({claim.text for claim in published}) == len(published) == 27
    for claim in published:
        assert claim.published[0] < claim.published[1]
        assert {claim.better, claim.worse} <= measured


# --- the statistics ---


def test_a_decision_is_the_first_that_the_looks_allow():
    clear = np.array([1.0, 1.2, 0.9, 1.1, -9.0, -9.0])
    decision = decide(clear)
    assert decision.decided
    assert decision.looked_at == LOOKS[0] == 4  # what comes later is not looked at
    np.testing.assert_allclose(decision.difference, 1.05)
    np.testing.assert_allclose(decision.error, np.sqrt(0.05 / 3 / 4))
    t = 1.05 / decision.error
    np.testing.assert_allclose(decision.p, 4 * 2 * stats.t.sf(t, 3))
    assert decide(-clear).difference < 0
    later = decide(np.array([1.0, -0.5, 2.0, 0.5, 1.2, 0.8, 1.1, 1.0, 0.9]))
    assert later.decided
    assert later.looked_at == 9
    assert not decide(np.array([1.0, -1.0, 2.0, 0.5])).decided
    assert decide(np.ones(4)).p == 1.0
    with pytest.raises(ValueError, match="needs 4 differences; there are 3"):
        decide(np.ones(3))


def test_where_there_is_no_difference_few_sequences_are_decided():
    """The error of the whole sequence, early looks included, is at most its level."""
    rng = np.random.default_rng(0)
    wrong = np.mean([decide(rng.standard_normal(LOOKS[-1])).decided for _ in range(4000)])
    assert 0.4 * LEVEL < wrong < LEVEL
    single = stats.ttest_1samp(rng.standard_normal((4000, LOOKS[0])), 0.0, axis=1).pvalue
    assert np.mean(single < LEVEL / len(LOOKS)) < wrong  # several looks see more than one


def test_holm_on_the_example_of_a_textbook():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    rng = np.random.default_rng(0)
    wrong = [holm([*rng.random(20)]).min() < LEVEL for _ in range(2000)]
    assert 0.6 * LEVEL < np.mean(wrong) < 1.4 * LEVEL


def test_the_exact_score_is_that_of_a_mixture_of_points():
    rng = np.random.default_rng(0)
    examples = rng.standard_normal((5, *gaussians.SHAPE)).astype(np.float32)
    mixture = gaussians.Mixture(jnp.full(5, 0.2), jnp.asarray(examples), jnp.zeros(()))
    for sde in gaussians.SDES.values():
        x, t = gaussians.places(sde, 16, 0, 0.05)
        found = exact.score(sde, jnp.asarray(examples), x, t)
        np.testing.assert_allclose(found, mixture.score_fn(sde)(x, t), rtol=2e-3, atol=2e-3)


def test_the_flow_of_the_exact_score_ends_at_the_examples(tmp_path, monkeypatch):
    use_devices(monkeypatch, 1)
    scale = cells.SCALES["digits"]._replace(images=8, examples=3)
    monkeypatch.setitem(cells.SCALES, "digits", scale)
    bench, unit = Bench("digits", tmp_path), Unit(measure.EXACT, 1)
    cell = cells.Cell("vp", "x", {"sampling.method": "ddim", "sampling.num_steps": 20}, 8)
    params = bench.params(cell, unit)
    images, nfe = bench.sampler(cell, exact.ExactParts.of(bench.parts(cell)))(params, unit.number)
    known = {image.tobytes() for image in bench.data[0].take(np.arange(3))[0]}
    assert {image.tobytes() for image in images} <= known
    assert nfe == 21


# --- the course ---


class Simulated(Bench):
    """A bench whose numbers are drawn, without networks: each cell has a true distance."""

    true: ClassVar[dict[str, float]] = {}
    noise = 0.1

    def train(self, sde, unit):
        self.trained = {*getattr(self, "trained", ()), (sde, unit)}

    def measure(self, cell, units):
        for unit in units:
            if self.numbers(cell, unit):
                continue
            assert unit.kind == measure.EXACT or (cell.sde, unit) in self.trained
            rng = np.random.default_rng([unit.number, *cell.name.encode()])
            distance = self.true.get(cell.name, 5.0) + self.noise * rng.standard_normal()
            numbers = dict.fromkeys(("distance", "kernel_distance"), distance)
            numbers |= {"distance_of_n": distance + 1.0, "bits_per_dim": distance, "nfe": 10.0}
            folder = self.folder(cell.sde, unit)
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(numbers | {"made_by": self.made_by(cell, unit)})
            (folder / "new").write_text(text)
            (folder / "new").rename(folder / f"{cell.name}.json")
            self.measured = [*getattr(self, "measured", ()), (cell.sde, cell.name, unit)]


@pytest.fixture
def simulated(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "KEPT", tmp_path / "kept" / "numbers.json")
    monkeypatch.setattr(study, "POLL", 0.01)
    monkeypatch.setattr(Simulated, "true", {"PC1000": 5.0})
    known: dict = {}
    load = measure.load  # configs are made again and again
    monkeypatch.setattr(
        measure,
        "load",
        lambda *key: known.setdefault(key, load(*key)).copy_and_resolve_references(),
    )


@pytest.mark.parametrize(("least", "tried"), [(0.1, 0), (0.4, 1), (0.65, 2), (3.0, 2)])
def test_a_search_goes_on_while_its_last_is_its_best(
    simulated, monkeypatch, tmp_path, least, tried
):
    monkeypatch.setattr(Simulated, "noise", 0.0)
    task = cells.Search("ve", "ancestral", "C2000")
    true = {
        task.trial(cells.SCALES["digits"], snr).name: abs(snr - least)
        for snr in (*cells.SNRS, *cells.FURTHER_SNRS)
    }
    monkeypatch.setattr(Simulated, "true", true)
    with tqdm(disable=True) as bar:
        distances = study.search(Simulated("digits", tmp_path), task, True, bar)
    assert list(distances) == [*cells.SNRS, *cells.FURTHER_SNRS[:tried]]


def test_two_shards_share_the_work_and_come_to_the_same_end(simulated, monkeypatch, tmp_path):
    """A clear difference is decided at the first look, and only what is not is measured on."""
    true = {"reverse_diffusion_P2000": 4.0, "reverse_diffusion_PC1000": 3.0, "ddim_10": 9.0}
    monkeypatch.setattr(Simulated, "true", true)
    benches = [Simulated("fashion", tmp_path) for _ in range(2)]
    found = {}

    def one(index):
        found[index] = study.study(benches[index], study.Shard(index, 2))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    first, second = (set(bench.measured) for bench in benches)
    assert first
    assert second
    assert not first & second
    assert found[0].verdicts == found[1].verdicts
    by_text = {verdict.claim.text: verdict for verdict in found[0].verdicts}
    assert len(by_text) == 6
    clear = by_text["VE, reverse diffusion: a corrector helps more than twice the steps"]
    assert clear.text == "reproduced"
    assert clear.decision.looked_at == LOOKS[0]
    vague = by_text["VP, 10 evaluations: unipc_3 is better than dpmpp_3m"]
    assert vague.decision.looked_at == LOOKS[-1] or vague.decision.decided
    late = {name for _, name, unit in first | second if unit.number > LOOKS[0]}
    assert not late & {"reverse_diffusion_P2000", "reverse_diffusion_PC1000", "ddim_10"}
    # What is there is not measured again, but for a cell of other settings.
    again = Simulated("fashion", tmp_path)
    assert study.study(again).verdicts == found[0].verdicts
    assert not hasattr(again, "measured")
    cell = cells.planned(again.scale, {})[0]
    other = cell._replace(settings={**cell.settings, "sampling.num_steps": 7})
    assert again.numbers(cells.planned(again.scale, {})[-1], Unit(TRAINED, 1))
    assert not again.numbers(other, Unit(TRAINED, 1))


def test_a_study_ends_at_the_look_that_its_budget_allows_and_goes_on(simulated, tmp_path):
    """All cells are alike but for noise; what an early look decides stays decided."""
    early = study.study(Simulated("fashion", tmp_path), budget=LOOKS[1])
    late = study.study(Simulated("fashion", tmp_path))
    for before, after in zip(early.verdicts, late.verdicts, strict=True):
        assert before.decision.looked_at <= LOOKS[1]
        assert before.decision == after.decision or not before.decision.decided
    assert any(verdict.decision.looked_at > LOOKS[1] for verdict in late.verdicts)


def test_a_study_goes_on_from_the_numbers_that_come_with_the_project(simulated, tmp_path):
    first = study.study(Simulated("fashion", tmp_path / "one"), budget=LOOKS[0])
    assert any(not verdict.decision.decided for verdict in first.verdicts)
    kept.keep(tmp_path / "one")
    other = Simulated("fashion", tmp_path / "other")
    assert study.study(other, budget=LOOKS[0]).verdicts == first.verdicts
    assert not hasattr(other, "measured")
    on = study.study(other, budget=LOOKS[1])
    assert {unit for _, _, unit in other.measured} == {Unit(TRAINED, n) for n in (5, 6)}
    kept.keep(tmp_path / "other")  # beside those of before
    last = Simulated("fashion", tmp_path / "last")
    assert study.study(last, budget=LOOKS[1]).verdicts == on.verdicts
    assert not hasattr(last, "measured")
    cell = cells.planned(last.scale, {})[-1]
    assert last.numbers(cell, Unit(TRAINED, 1))
    assert not last.numbers(cell._replace(images=7), Unit(TRAINED, 1))


def test_a_study_becomes_tables_and_a_picture(simulated, monkeypatch, tmp_path):
    true = {"reverse_diffusion_PC1000": 3.0, "ddim_10": 4.0}
    monkeypatch.setattr(Simulated, "true", true)
    monkeypatch.setattr(Bench, "real", type("Moments", (), {"count": 60000})())
    monkeypatch.setattr(Bench, "extractor", type("Extractor", (), {"label": "some features"})())
    one = study.study(Simulated("fashion", tmp_path / "small"))
    reasons = why.explained(one, study.Shard())
    doubted = [v.claim for v in one.verdicts if v.text == "not reproduced"]
    assert [reason.claim for reason in reasons] == doubted
    pictures = tmp_path / "pictures"
    text = command.report([one], [reasons], pictures, pictures)
    for line in (
        "| VE, reverse diffusion |",
        "compared with 60000 training images; some features",
        "The bias that is taken off is 1.00",
        f"P{2 * one.bench.scale.levels}",
        "| **reproduced** |",
        "| **not reproduced** |",
        "not reproduced |",
        "| exact score, 30 levels | exact score, 1000 levels | hence |",
    ):
        assert line in text
    assert "P2000" not in text
    assert all(verdict.claim.text in text for verdict in one.verdicts)
    counts = [[v.text for v in one.verdicts].count(word) for word in tables.WORDS]
    assert f"| fashion | {' | '.join(map(str, counts))} |" in text
    assert sum(counts) == 6
    assert (tmp_path / "pictures" / "reproduction_fashion.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("exact_score", "all_levels", "words"),
    [
        (1.0, 1.0, "the networks' errors: with the exact score it is as published"),
        (0.0, -1.0, "the networks' errors: the exact score makes no such difference"),
        (-1.0, 1.0, "the levels: with 1000 the exact score has the published order"),
        (-1.0, 0.0, "the sampler with these images: the exact score does the same"),
        (-1.0, -1.0, "the exact score does the same, with 1000 levels, too"),
    ],
)
def test_what_is_not_reproduced_is_explained_by_experiments(
    simulated, monkeypatch, tmp_path, exact_score, all_levels, words
):
    """Networks draw the opposite order; what the exact score and all levels do is given."""
    name, other = "reverse_diffusion_PC1000", "reverse_diffusion_P2000"
    better = {(TRAINED, 30): 6.0, (EXACT, 30): 5 - exact_score, (EXACT, 1000): 5 - all_levels}

    class Networks(Simulated):
        noise = 0.0

        def measure(self, cell, units):
            levels = 1000 if cell.name.endswith("_of_1000_levels") else self.scale.levels
            for unit in units:
                distance = 5.0
                if cell.sde == "ve" and cell.name.startswith(name):
                    distance = better.get((unit.kind, levels), 5.0) + 0.01 * (-1) ** unit.number
                if cell.sde == "vp" and other in cell.name:  # as published, by far
                    distance = 14.0 + 0.01 * unit.number
                monkeypatch.setattr(Simulated, "true", {cell.name: distance})
                super().measure(cell, [unit])

    found = study.study(Networks("fashion", tmp_path))
    reasons = {one.claim.text: one for one in why.explained(found, study.Shard())}
    reason = reasons["VE, reverse diffusion: a corrector helps more than twice the steps"]
    assert reason.text.endswith(words)
    assert len(reasons) == 1


def test_a_command_line_that_names_no_shard_is_refused(monkeypatch, capsys):
    for options, words in [
        (["--shard=3/2"], "--shard=3/2 is not the number of one of several, such as 1/2"),
        (["--shard=0/2"], "--shard=0/2 is not"),
        (["--trainings=5"], "--trainings=5 is not a number of a look: one of (4, 6, 9, 12)"),
        (["--datasets=cifar"], "unknown ['cifar']; known: digits, fashion, emoji"),
        (["--page=docs/reproduction.md"], "--page and --pictures need each other"),
    ]:
        monkeypatch.setattr("sys.argv", ["reproduction", *options])
        with pytest.raises(SystemExit):
            command.run()
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop_saves_and_ends_the_study(tmp_path, monkeypatch):
    add, handler = metric_log.History.add, signal.getsignal(signal.SIGTERM)

    def interrupted(self, step, metrics):
        os.kill(os.getpid(), signal.SIGTERM)
        add(self, step, metrics)

    use_devices(monkeypatch, 1)
    monkeypatch.setattr(metric_log.History, "add", interrupted)
    monkeypatch.setattr(measure, "load", lambda *_: tiny.config())
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # those of other tests
    with pytest.raises(SystemExit, match="stopped at step 2 of 6; the same command goes on"):
        Bench("digits", tmp_path).train("vp", Unit(TRAINED, 1))
    assert signal.getsignal(signal.SIGTERM) is handler
