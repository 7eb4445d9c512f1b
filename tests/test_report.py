"""The report: every number with how it was made, one page that needs nothing else."""

from __future__ import annotations

import html.parser
import importlib
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import jinja2
import markupsafe
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import stored
from evaluation import evaluate
from evaluation.report import content, facts, page, published, quantities
from interop import cards
from runtime import figures
from tests import tiny

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), "")


def load(name: str, **changes: Any) -> ConfigDict:
    config = importlib.import_module("configs." + name.replace("/", ".")).get_config()
    config.update_from_flattened_dict(
        {field.replace("__", "."): value for field, value in changes.items()}
    )
    return config


def results(config: ConfigDict, **changes: Any) -> dict[str, Any]:
    """The results of an evaluation of colour images."""
    stored = {
        "path": "cifar10.npz",
        "sha256": "ab12" * 16,
        "form": "mu, sigma",
        "dataset": "cifar10/train",
        "images": 50000,
    }
    return {
        "step": 950000,
        "weights": "EMA weights",
        "weights_sha256": "9f" * 32,
        "examples": "images",
        "seed": 3,
        "made_by": evaluate.made_by(config),
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "loss": 0.03125,
        "loss_images": 10000,
        "fid": 2.3456,
        "fid_stderr": 0.0321,
        "inception_score": 9.8765,
        "inception_score_std": 0.1234,
        "num_samples": 50000,
        "nfe": 1999.0,
        "features": "features: Inception of 2015, weights 6726825d, tensorflow resize",
        "statistics": stored,
        "likelihood_unit": "bits",
        "likelihood_of": "256 levels, uniform dequantisation",
        "bits_per_dim": 2.9871,
        "bits_per_dim_stderr": 0.0012,
        "bits_per_dim_split": "test",
        "bits_per_dim_images": 10000,
        "bits_per_dim_repeats": 5,
        "bits_per_dim_nfe": 361.0,
    } | changes


def numbers(config: ConfigDict, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    made = content.content({"": config}, {"": found})
    return {one["name"]: one for one in made["evaluations"][""]["numbers"]}


def test_every_config_is_known_by_its_values():
    for name, config in stored.shipped().items():
        known = published.identify(config)
        assert known is not None
        assert known.changed == [], name
        assert known.sampler_changed == [] or published.of_config(known.name), name
    for name in {card.config for card in cards.cards().values() if card.evaluations}:
        assert published.identify(load(name)) == published.NearestConfig(name, [], [])
    free = {"seed": 7, "training__log_freq": 9, "eval__num_samples": 9, "sampling__batch_size": 9}
    assert published.identify(load("vp/cifar10_ddpmpp", **free)).changed == []  # type: ignore


def test_changed_fields_are_named():
    changes = {"model__nf": 64, "model__ch_mult": (1, 2), "sampling__snr": 0.2}
    known = published.identify(load("ve/cifar10_ncsnpp_continuous", **changes))
    assert known is not None
    assert known.label == (
        "ve/cifar10_ncsnpp_continuous with changed fields: "
        "model.ch_mult: [1, 2], not [1, 2, 2, 2]; model.nf: 64, not 128"
    )
    assert known.sampler_changed == ["sampling.snr: 0.2, not 0.16"]
    assert published.identify(load("ve/cifar10_ncsnpp", data__dataset="stl10")) is None


def test_published_numbers_stand_beside_those_made_alike():
    """VE has no published bits/dim; DDPM's FID is that of ancestral sampling, or by the ODE."""
    official = load("ve/cifar10_ncsnpp_continuous", sampling__corrector_norm="batch")
    found = numbers(official, results(official))
    assert found["fid"]["published"]["value"] == 2.38
    assert found["inception_score"]["published"]["value"] == 9.83
    assert found["inception_score"]["published"]["source"].endswith("(ICLR), Table 3")
    assert found["fid"]["published"]["differences"] == []
    assert not {"published"} & (found["bits_per_dim"].keys() | found["loss"].keys())

    ddpm = load("vp/ddpm/cifar10")
    assert numbers(ddpm, results(ddpm))["fid"]["published"]["source"].endswith("Table 1")
    by_ode = load("subvp/cifar10_ddpmpp_deep_continuous", sampling__method="ode")
    found = numbers(by_ode, results(by_ode))
    assert found["fid"]["published"]["value"] == 2.92
    assert found["bits_per_dim"]["published"]["value"] == 2.99
    assert found["fid"]["published"]["differences"] == []
    assert "published" not in found["inception_score"]
    digits = tiny.config()
    assert not any("published" in one for one in numbers(digits, results(digits)).values())


def test_what_was_made_otherwise_says_so_beside_the_published_number():
    changes = {
        "model__nf": 64,
        "sampling__num_steps": 10,
        "eval__resize": "pytorch",
        "eval__ema": "raw",
        "eval__stats_images": 100,
        "eval__bpd_num_images": 50,
        "eval__bpd_dataset": "train",
        "eval__bpd_rtol": 1e-3,
    }
    config = load("vp/cifar10_ddpmpp_continuous", **changes)
    found = numbers(config, results(config, num_samples=2000))
    assert found["fid"]["published"]["differences"] == [
        "model.nf: 64, not 128",
        "sampling.num_steps: 10, not 0",
        "2,000 samples, not 50,000",
        "eval.resize: pytorch, not tensorflow",
        "eval.ema: raw, not the average of training",
        "statistics of 100 training images, not of all",
    ]
    assert found["bits_per_dim"]["published"]["differences"] == [
        "model.nf: 64, not 128",
        "eval.bpd_dataset: train, not test",
        "50 images, not all",
        "eval.ema: raw, not the average of training",
        "eval.bpd_rtol: 0.001, not 1e-05",
    ]
    loose = load("vp/cifar10_ddpmpp_continuous", sampling__method="ode", sampling__rtol=1e-3)
    by_ode = numbers(loose, results(loose))["fid"]["published"]
    assert by_ode["differences"] == ["sampling.rtol: 0.001, not 1e-05"]
    image_norm = load("ve/cifar10_ncsnpp")
    norm = numbers(image_norm, results(image_norm))["fid"]["published"]["differences"]
    assert norm == ["sampling.corrector_norm: image, not batch"]


def test_every_number_says_how_it_was_made():
    config = load("vp/cifar10_ddpmpp_continuous")
    found = numbers(config, results(config))
    always = {
        "step": "950,000",
        "weights": "EMA weights (SHA-256 9f9f9f9f9f9f)",
        "versions": "jax 0.10.2, flax 0.12.8",
    }
    assert found["fid"]["made_from"] == {
        "samples": "50,000",
        "NFE": "1,999 per sample",
        "sampler": "euler_maruyama, 1000 steps",
        "seed": "3",
        "dequantisation": "none in training",
        "features": "Inception of 2015, weights 6726825d, tensorflow resize",
        "statistics": "SHA-256 ab12ab12ab12ab12 (mu, sigma, 50,000 images of cifar10/train)",
        **always,
    }
    assert found["bits_per_dim"]["made_from"] == {
        "samples": "10,000 test images",
        "NFE": "361 per image",
        "solver": "Dopri5, rtol 1e-05, atol 1e-05, 1 rademacher probe(s)",
        "seed": "0",
        "dequantisation": "256 levels, uniform dequantisation, 5 draw(s) per image",
        **always,
    }
    assert found["loss"]["made_from"].items() >= {"samples": "10,000 test images"}.items()
    assert (found["fid"]["error"], found["fid"]["error_of"]) == (0.0321, "bootstrap over samples")
    assert found["fid"]["better"] == "lower"
    assert found["inception_score"]["better"] == "higher"
    one_image = numbers(config, results(config, bits_per_dim_stderr=float("nan")))
    assert "error" not in one_image["bits_per_dim"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "pc", "predictor": "reverse_diffusion", "corrector": "langevin"},
         "reverse_diffusion + langevin, 1000 steps"),
        ({"method": "pc", "predictor": "ancestral_sampling", "num_steps": 9},
         "ancestral_sampling, 9 steps"),
        ({"method": "ode"}, "ode, Dopri5, rtol 1e-05, atol 1e-05"),
        ({"method": "sde", "solver": "Heun", "num_steps": 5}, "sde, Heun, 5 steps"),
        ({"method": "ddim", "num_steps": 20}, "ddim, 20 steps"),
    ],
)  # fmt: skip
def test_samplers_in_words(changes, words):
    options = tiny.quickstart.get_config().sampling.to_dict() | {"num_steps": 0} | changes
    assert facts.sampler(options, 1000) == words


class Resources(html.parser.HTMLParser):
    """All that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        names = ("src", "href", "srcset", "action", "poster", "data")
        self.found += [value for name, value in attrs if name in names]


def written(folder: pathlib.Path, config: ConfigDict, found: dict[str, Any]) -> str:
    figures.plot_curves(folder / "loss.png", {"loss": ([1, 2, 3], [3, 2, 1])})
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 8, 8, 3), np.uint8)
    figures.save_grid(folder / "eval" / "samples.png", frames[0])
    figures.save_gif(folder / "eval" / "reverse_process.gif", frames)
    figures.plot_curves(folder / "eval" / "loss_by_time.png", {"loss": ([1, 2, 3], [1, 2, 4])})
    content.write(folder / "eval", folder, {"": config}, {"": found})
    return (folder / "eval" / "report.html").read_text()


def test_the_page_holds_all_and_asks_for_nothing(tmp_path):
    config = load("vp/cifar10_ddpmpp_continuous", model__nf=64)
    hostile = results(config, features="features: <script>alert(1)</script> & more")
    text = written(tmp_path, config, hostile)
    refers = Resources()
    refers.feed(text)
    assert len(refers.found) == 4
    assert all(re.match(r"data:image/(png|gif);base64,", link) for link in refers.found)
    assert not refers.tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(|https?:", text.replace("http-equiv", ""))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    for word in ("2.346", "± 0.032", "2.55", "Table 3", "made otherwise: model.nf: 64, not 128"):
        assert word in text
    stored = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert stored["config"] == {
        "name": "vp/cifar10_ddpmpp_continuous",
        "changed": ["model.nf: 64, not 128"],
    }
    for one in stored["evaluations"][""]["numbers"]:
        for fact in one["made_from"].values():
            assert str(markupsafe.escape(fact)) in text
    assert stored["evaluations"][""]["settings"]["model"]["nf"] == 64

    (tmp_path / "eval" / "results.json").unlink(missing_ok=True)
    no_samples = {name: value for name, value in hostile.items() if name in ALWAYS}
    content.write(tmp_path / "eval", tmp_path, {"": config}, {"": no_samples})
    assert (tmp_path / "eval" / "report.html").read_text().count("data:image") == 2, "stale ones"


HOSTILE = "</style></pre><script>alert(1)</script>\" onload='x' {{ 7 * 7 }} &amp;"


def hostile(value: Any, shown: set[str], where: str = "") -> Any:
    """A report whose every string is `HOSTILE`, with its place; `shown` gathers those of a page."""
    if isinstance(value, list):
        as_python = " settings " in where  # quoted once more
        kept = set() if as_python else shown
        return [hostile(each, kept, f"{where} {i}") for i, each in enumerate(value)]
    if isinstance(value, str) and where.endswith(" better"):
        return value
    if isinstance(value, str):
        text = f"{HOSTILE}{where}"
        if not where.endswith(" name") or where == " config name":
            shown.add(text)
        return text
    if not isinstance(value, dict):
        return value
    changed = {}
    for name, each in value.items():
        free = where == " evaluations" or where.endswith((" made_from", " settings"))
        changed[f"{HOSTILE}{where} key {name}" if free else name] = hostile(
            each, shown, f"{where} {name}"
        )
    return changed


@pytest.mark.parametrize("count", [1, 2])
def test_every_string_on_the_page_is_escaped(count):
    names = ["a", "b"][:count]
    configs = {name: load("vp/cifar10_ddpmpp_continuous", model__nf=64) for name in names}
    spread = {"seeds": [3, 4], "fid": {"values": [1.0, 2.0], "mean": 1.5, "std": 0.5}}
    runs = {name: results(config, over_seeds=spread) for name, config in configs.items()}
    shown: set[str] = set()
    report = hostile(content.content(configs, runs), shown)
    pictures = [page.Picture(f"{HOSTILE} picture", f'image/"{HOSTILE}', b"data")]
    text = page.render(report, pictures, pictures)
    refers = Resources()
    refers.feed(text)
    assert not refers.tags & {"script", "link", "iframe", "object", "base"}
    assert refers.tags <= {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "p", "h1", "h2", "b"),
        *("div", "span", "table", "thead", "tbody", "tr", "th", "td", "br", "figure", "img"),
        *("figcaption", "details", "summary", "pre"),
    }
    assert text.count("</style>") == 1
    assert HOSTILE not in text
    for each in (*shown, f"{HOSTILE} picture"):
        escaped = str(markupsafe.escape(each))
        assert escaped in text or escaped.replace("_", " ") in text, each
    for number in next(iter(report["evaluations"].values()))["numbers"]:
        assert all(str(markupsafe.escape(name)) in text for name in number["made_from"])


def test_a_name_that_the_template_does_not_know_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="sampler"):
        page.environment().from_string("{{ run.sampler }}").render(run={})
    assert page.environment().autoescape is True


def test_samples_in_the_course_of_training_are_shown_among_the_curves(tmp_path):
    config = load("vp/cifar10_ddpmpp_continuous")
    title = "Samples in the course of training"
    assert title not in written(tmp_path, config, results(config))
    strip = np.zeros((3, 8, 8), np.uint8)
    figures.save_grid(tmp_path / "training_samples.png", strip)
    text = written(tmp_path, config, results(config))
    curves = text.partition("<h2>Curves</h2>")[2].partition("<h2>")[0]
    shown = re.findall(r'<figure( class="plot")?><img alt="([^"]*)"', curves)
    assert shown == [
        (' class="plot"', "Loss in training"),
        (' class="plot"', "Loss by noise level"),
        ("", title),
    ], "the dark page inverts plots, not pictures"
    assert text.count("data:image") == 5


def test_a_published_number_is_one_line(monkeypatch):
    config = load("vp/cifar10_ddpmpp_continuous")
    kid = cards.Evaluation({"kid": 0.0012}, {}, "", "a paper")
    monkeypatch.setattr(published, "of_config", lambda name: {"samples": kid})
    stored = results(config, kid=0.0034, kid_std=0.0001, real_features=50000)
    assert numbers(config, stored)["kid"]["published"]["value"] == 0.0012


def test_published_numbers_are_of_numbers_that_can_be_made():
    rows = [each.numbers for card in cards.cards().values() for each in card.evaluations.values()]
    assert {name for row in rows for name in row} <= quantities.QUANTITIES.keys()
    assert {entry.source for entry in quantities.QUANTITIES.values()} == facts.FACTS.keys()


ALWAYS = (
    *("step", "weights", "weights_sha256", "examples", "seed", "made_by", "versions"),
    *("loss", "loss_images"),
)


def test_several_evaluations_are_compared(tmp_path):
    runs, configs = {}, {}
    for step in (100, 200):
        for method, nfe, fid in (("ddim", 20, 9.0), ("ode", 260, 5.0)):
            config = load("vp/cifar10_ddpmpp_continuous", sampling__method=method)
            spread = {"values": [fid, fid + 1], "mean": fid + 0.5, "std": 0.25}
            runs[f"step_{step}_{method}"] = results(
                config,
                step=step,
                nfe=nfe,
                fid=fid - step / 100,
                inception_score=9 + step / 1000,
                over_seeds={"seeds": [3, 4], "fid": spread},
            )
            configs[f"step_{step}_{method}"] = config
    figures.save_grid(tmp_path / "step_200_ode" / "samples.png", np.zeros((4, 9, 9), np.uint8))
    content.write(tmp_path, tmp_path, configs, runs)
    text = (tmp_path / "report.html").read_text()
    assert "FID over step" in text
    assert "FID over NFE per sample" in text
    others = ("Inception Score", "Bits/dim", "Test loss")
    assert all(f"{title} over step" in text for title in others)
    assert text.count("data:image") == 3 + len(others)
    best = re.findall(r'<td class="n best">([\d.]+) <span class="error">± ([\d.]+)', text)
    fids, scores = [("5.500", "0.250")] * 2, [("9.200", "0.123")] * 2
    assert sorted(best) == fids + scores, "of FIDs the mean and deviation over seeds"
    assert "Mean and standard deviation over 2 seeds" in text
    made = json.loads((tmp_path / "report.json").read_text())["evaluations"]
    assert list(made) == list(runs)
    assert made["step_200_ode"]["nfe"] == 260
    beside = [one["numbers"][0].get("published", {}).get("value") for one in made.values()]
    assert beside == [2.55, 3.93] * 2, "the ODE has a published FID of its own"
    only = {"step_200_ode": runs["step_200_ode"]}
    content.write(tmp_path, tmp_path, configs, only)
    assert (tmp_path / "report.html").read_text().count("data:image") == 1


@pytest.mark.parametrize(
    ("value", "shown"), [(2.34567, "2.346"), (0.00123, "0.0012"), (0, "0.000")]
)
def test_small_numbers_keep_two_digits(value, shown):
    assert quantities.text(value, 3) == shown


@pytest.mark.skipif(not BROWSER, reason="no browser")
def test_a_browser_shows_it(tmp_path):
    config = load("vp/cifar10_ddpmpp_continuous")
    written(tmp_path, config, results(config))
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--hide-scrollbars", "--window-size=900,1400"),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'page.png'}",
        "--dump-dom",
        (tmp_path / "eval" / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    shown = re.sub(r"<[^>]*>", "", done.stdout)
    for one in numbers(config, results(config)).values():
        assert f"{one['value']:.{one['digits']}f}" in shown
        assert all(fact in shown for fact in one["made_from"].values())
    assert "Refused to" not in done.stderr, "by the page's own policy"
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape == (1400, 900, 3)
    assert pixels.std() > 20
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000, "pictures among the text"


HTML = "<script>\"'&"


def with_html(value: Any) -> Any:
    """Results whose every string, and every name that is free, holds HTML."""
    if isinstance(value, dict):
        return {name: with_html(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_html(each) for each in value]
    return f"{HTML}{value}" if isinstance(value, str) else value


@pytest.mark.parametrize("count", [1, 2])
def test_results_full_of_html_make_a_page_that_shows_it(count, tmp_path):
    config = load("vp/cifar10_ddpmpp_continuous", data__dataset=f"{HTML}cifar10")
    found = with_html(results(config)) | {"likelihood_unit": "bits"}
    found["versions"] = {f"{HTML}{name}": each for name, each in found["versions"].items()}
    names = ["", f"{HTML}second"][:count] if count == 1 else ["first", HTML.replace("/", "")]
    for name in names:
        figures.save_grid(tmp_path / name / "samples.png", np.zeros((1, 8, 8, 3), np.uint8))
    content.write(tmp_path, tmp_path, dict.fromkeys(names, config), dict.fromkeys(names, found))
    text = (tmp_path / "report.html").read_text()
    refers = Resources()
    refers.feed(text)
    assert "script" not in refers.tags
    assert HTML not in text
    assert "<script" not in text
    shown = ("cifar10", "EMA weights", "jax ", "256 levels", "mu, sigma", "pc", "test")
    for word in shown:
        assert f"{markupsafe.escape(HTML)}{word}" in text.replace(f"{HTML}_", HTML), word
