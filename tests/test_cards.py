"""Cards of published weights: each names a config, and completes a command line."""

from __future__ import annotations

import pathlib
import re

import pytest

import configs
import main
import sde_lib
from configs import command_line, stored
from interop import cards

ROOT = pathlib.Path(cards.FILE).parent.parent


def completed(argv: list[str]) -> list[str]:
    return cards.completed(argv, ROOT, main.MODES)


@pytest.mark.parametrize("name", cards.cards())
def test_a_card_is_of_a_config_whose_settings_are_valid(name: str) -> None:
    card = cards.cards()[name]
    assert re.fullmatch(r"https://[^/]+/.+|hf:[\w.-]+/[\w.-]+|shipped:[\w.-]+", card.address)
    assert card.licence
    for evaluation in card.evaluations.values():
        config = configs.load(card.config)
        with config.unlocked():
            config.update_from_flattened_dict(dict(evaluation.settings))
        configs.check(config)


def test_a_card_that_guides_is_a_classifier_of_the_same_noisy_images() -> None:
    guided = [
        (card, cards.cards()[evaluation.guide])
        for card in cards.cards().values()
        for evaluation in card.evaluations.values()
        if evaluation.guide
    ]
    assert {card.name for card, _ in guided} == {
        f"guided_diffusion/imagenet-{size}-cond" for size in (128, 256)
    }
    for card, guide in guided:
        config, other = configs.load(card.config), configs.load(guide.config)
        assert other.training.objective == "classifier"
        assert other.classifier.num_classes == config.model.num_labels == 1000
        assert other.data.image_size == config.data.image_size
        assert other.data.centered == config.data.centered
        assert sde_lib.from_config(other) == sde_lib.from_config(config)


def test_every_published_number_of_the_paper_has_a_card() -> None:
    deep = cards.cards()["score_sde/ve-cifar10-deep-continuous"]
    assert deep.evaluations["samples"].numbers["fid"] == 2.20
    last = cards.cards()["score_sde/subvp-cifar10-deep-continuous-last"]
    assert last.evaluations["likelihood"].numbers == {"bits_per_dim": 2.99}
    assert last.evaluations["flow"].numbers == {"fid": 2.92}


def test_a_command_line_gets_the_config_and_the_settings_ahead_of_the_users() -> None:
    source = "--source=score_sde/ve-cifar10-continuous"
    user = "--config.eval.num_samples=5000"
    argv = completed(["main.py", "--mode=reproduce", source, user])
    assert argv[1].endswith("configs/ve/cifar10_ncsnpp_continuous.py")
    assert "--config.sampling.corrector_norm=batch" in argv
    assert argv.index(user) > argv.index("--config.eval.num_samples=50000")
    imports = completed(["main.py", "--mode", "import", "--source", source[9:]])
    assert imports[1] == argv[1]
    assert len(imports) == 6
    for untouched in (
        ["main.py", "--mode=eval", source, "--config=mine.py", "--workdir=w"],
        ["main.py", "--mode=train", source],
        ["main.py", "--mode=import", "--source=x.pth"],
    ):
        assert completed(untouched) == untouched


def test_a_reproduction_draws_samples_and_measures_likelihoods_where_they_are_asked_for() -> None:
    """Whatever the config says: without a card, with one, and with one beside another config."""
    likelihood = "--source=score_sde/subvp-cifar10-continuous-last:likelihood"
    config, user = "--config=quickstart", "--config.eval.enable_bpd=True"
    cases = {
        ("--source=x.pth", config): ["True", "False"],
        ("--source=digits",): ["True", "False"],
        ("--source=digits", config): ["True", "False"],
        (likelihood,): ["False", "True"],
        (likelihood, config): ["False", "True"],
        ("--source=x.pth", config, user): ["True", "True"],
    }
    for arguments, expected in cases.items():
        argv = command_line.ordered(completed(["main.py", "--mode=reproduce", *arguments]))
        settings = dict(argument.split("=", 1) for argument in argv[1:])
        names = ("--config.eval.enable_sampling", "--config.eval.enable_bpd")
        assert [settings[name] for name in names] == expected
        assert settings["--config"] == "quickstart" or config not in arguments
    guided = "--source=guided_diffusion/imagenet-128-cond:guided"
    argv = completed(["main.py", "--mode=reproduce", guided, config])
    assert "--config.sampling.guide_scale=0.5" in argv
    assert "--config.eval.num_samples=50000" in argv
    assert completed(["main.py", "--mode=eval", *argv[-2:]])[-2:] == argv[-2:]


def test_a_card_is_enough_for_samples() -> None:
    """Its config, the settings of its sampler and a folder are those of the card."""
    source = "--source=score_sde/ve-cifar10-continuous"
    argv = completed(["main.py", "--mode=sample", source])
    assert argv[1].endswith("configs/ve/cifar10_ncsnpp_continuous.py")
    assert argv[2] == "--config.sampling.corrector_norm=batch"
    assert argv[3] == "--workdir=runs/score_sde/ve-cifar10-continuous"
    own = completed(["main.py", "--mode=eval", source, "--workdir=w"])
    assert not any(argument.startswith("--workdir=runs") for argument in own)
    exported = completed(["main.py", "--mode=export", source])
    assert [argument.partition("=")[0] for argument in exported[1:3]] == ["--config", "--workdir"]
    assert exported[3:] == ["--mode=export", source]


def test_a_source_without_a_card_needs_a_config() -> None:
    with pytest.raises(
        ValueError, match=r"no card \(the nearest: edm/cifar10-cond-.*need --config"
    ):
        completed(["main.py", "--mode=reproduce", "--source=edm/cifar10-cond"])


def test_other_numbers_of_a_card_are_named_after_a_colon() -> None:
    source = "score_sde/subvp-cifar10-continuous-last"
    argv = completed(["main.py", "--mode=reproduce", f"--source={source}:likelihood"])
    assert "--config.eval.enable_bpd=True" in argv
    with pytest.raises(ValueError, match="has no numbers 'ode'; it has flow, likelihood"):
        completed(["main.py", "--mode=reproduce", f"--source={source}:ode"])


def test_a_repository_of_the_hub_is_its_card() -> None:
    card = cards.find("hf:google/ncsnpp-church-256")
    assert card is not None
    assert card.config == "ve/church_ncsnpp_continuous"
    assert cards.find("hf:google/nobody") is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a: 3", "card a is int"),
        ("a: {address: https://x/y}", "lacks config"),
        ("a: {address: https://x/y, config: quickstart, licens: MIT}", "unknown licens"),
        ("a: {address: https://x/y, config: quickstart, sha256: 12}", "64 hexadecimal"),
    ],
)
def test_what_is_no_card_is_refused(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cards.read(entry)


def test_the_page_has_the_cards() -> None:
    page = (ROOT / "docs" / "weights.md").read_text()
    assert cards.updated(page) == page, "python -m interop.cards docs/weights.md"
    assert all(f"`{name}`" in page for name in cards.cards())


def test_configs_of_cards_are_shipped() -> None:
    assert {card.config for card in cards.cards().values()} <= stored.shipped().keys()
