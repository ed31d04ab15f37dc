"""A recipe's values are what runs: layers of values, and refusals before any work."""

import subprocess
import sys
from pathlib import Path

import pytest
from sightline_chassis.settings import SettingsError, load_settings
from sightline_cli.local_services import local_services
from sightline_sampler.settings import SamplerSettings
from sightline_scorer.settings import ScorerSettings
from sightline_trainer.binding import bound_by
from sightline_trainer.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PLAIN = "name: plain\nmodel: m\ndata: {train: a, test: b}\n"

pytestmark = pytest.mark.field


def plain(tmp_path: Path, *overrides: str, more: str = "") -> Recipe:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN + more)
    return load_recipe(path, overrides)


def refused(tmp_path: Path, *overrides: str, more: str = "") -> str:
    with pytest.raises(SettingsError) as caught:
        plain(tmp_path, *overrides, more=more)
    return str(caught.value)


def test_a_mapping_replaces_the_losses_and_a_dotted_key_edits_them(tmp_path: Path) -> None:
    clip_dpo = RECIPES / "clip_dpo.yaml"  # it has sigmoid and sft
    assert load_recipe(clip_dpo, ["dpo.loss={ipo: 1}"]).dpo.loss == {"ipo": 1.0}
    assert load_recipe(clip_dpo, ["dpo={loss: {ipo: 1}}"]).dpo.loss == {"ipo": 1.0}
    assert load_recipe(clip_dpo, ["dpo.loss.ipo=1"]).dpo.loss == {"sigmoid": 1.0, "sft": 0.1, "ipo": 1.0}
    assert plain(tmp_path, "dpo.loss.sft=0.5").dpo.loss == {"sigmoid": 1.0, "sft": 0.5}  # its default stands
    changed = load_recipe(clip_dpo, ["dpo={beta: 0.3}"]).dpo
    assert (changed.beta, changed.batch_size, changed.schedule) == (0.3, 16, "linear")  # a section merges


@pytest.mark.parametrize("more", ["", "filters:\n", "filters: null\n"])
def test_one_filters_setting_leaves_the_others_on(tmp_path: Path, more: str) -> None:
    filters = plain(tmp_path, "filters.gap.min=3", more=more).filters.chosen()
    assert set(filters) == {"finished", "length", "gap"}
    assert filters["gap"].min == 3.0
    assert set(plain(tmp_path, "filters={gap: {min: 3}}", more=more).filters.chosen()) == {"gap"}


def test_an_empty_table_of_a_file_means_its_defaults_and_an_empty_mapping_none(tmp_path: Path) -> None:
    assert set(plain(tmp_path, more="filters:\n").filters.chosen()) == {"finished", "length", "gap"}
    assert plain(tmp_path, more="filters: {}\n").filters.chosen() == {}
    assert set(plain(tmp_path, more="dpo: {loss: }\n").dpo.loss) == {"sigmoid"}


def test_one_more_term_leaves_clip_in_the_reward(tmp_path: Path) -> None:
    terms = plain(tmp_path, "reward.terms.length.weight=-0.1").reward.terms.chosen()
    assert {name: term.weight for name, term in terms.items()} == {"clip": 1.0, "length": -0.1}
    assert set(plain(tmp_path, "reward.terms={length: {weight: -0.1}}").reward.terms.chosen()) == {"length"}


def test_every_table_of_named_entries_is_edited_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = plain(tmp_path, "candidates.reference={}")
    assert set(recipe.candidates.chosen()) == {"policy", "reference"}
    assert set(plain(tmp_path, "pairing.all_pairs.max_pairs=2").pairing.chosen()) == {"best_worst", "all_pairs"}
    rule = "reference_against_rejected"
    one = plain(tmp_path, "candidates.injected={}", "candidates.reference={}", f"pairing.{rule}.rejected.injected=2")
    assert one.pairing.chosen()[rule].rejected == {"injected": 2.0, "noised_image": 1.0, "wrong_answer": 1.0}
    two = plain(
        tmp_path, "candidates.injected={}", "candidates.reference={}", f"pairing.{rule}.rejected={{injected: 2}}"
    )
    assert two.pairing.chosen()[rule].rejected == {"injected": 2.0}
    monkeypatch.setenv("SIGHTLINE_RECIPE__FILTERS__GAP__MIN", "4")
    assert set(plain(tmp_path).filters.chosen()) == {"finished", "length", "gap"}


def test_a_part_that_was_switched_on_or_off_is_edited_too(tmp_path: Path) -> None:
    assert plain(tmp_path, "filters.gap.min=3", more="filters: {gap: true}\n").filters.chosen()["gap"].min == 3.0
    assert plain(tmp_path, "filters.gap.min=3", more="filters: {gap: false}\n").filters.chosen()["gap"].min == 3.0
    text = "candidates: {policy: {paraphrases: [a, b], per_image: 2}}\n"
    policy = plain(tmp_path, "candidates.policy={per_image: 1}", more=text).candidates.chosen()["policy"]
    assert (policy.paraphrases, policy.per_image) == (["a", "b"], 1)


def test_a_section_keeps_the_defaults_of_the_field_that_holds_it(tmp_path: Path) -> None:
    """The sampler admits more than the chassis; setting one key used to reset the others to the chassis' values."""
    whole = load_settings(SamplerSettings, service="sampler", overrides=["engine.model=m"]).admission
    one = load_settings(SamplerSettings, service="sampler", overrides=["engine.model=m", "admission.max_queue=9"])
    assert one.admission == whole.model_copy(update={"max_queue": 9})
    config = tmp_path / "sampler.yaml"
    config.write_text("engine: {model: m}\nadmission: {max_queue: 9}\n")
    assert load_settings(SamplerSettings, service="sampler", config=config).admission == one.admission


def test_a_key_given_twice_in_a_flag_is_refused(tmp_path: Path) -> None:
    assert "ipo is given twice" in refused(tmp_path, "dpo.loss={ipo: 1, ipo: 2}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dpo.loss={ipoo: 1}"], "ipoo; known are sigmoid"),
        (["dpo.loss={}"], "nothing"),
        (["dpo.loss={sigmoid: 0}"], "train nothing"),
        (["dpo.loss={sigmoid: -1}"], "sigmoid: -1"),
        (["dpo.loss={sigmoid: .nan}"], "finite"),
        (["filters.gap.min=.nan"], "finite"),
        (["dpo.loss={exo_pair: 1}"], "label_smoothing"),
        (["dpo.label_smoothing=0.1"], "only with the loss robust or aot or aot_unpaired or exo_pair"),
        (["dpo.povid_betas=[0.1, 0.2]"], "only with the loss povid_paper"),
        (["dpo.loss={bco_pair: 1}", "dpo.f_divergence=js_divergence"], "not with bco_pair"),
        (["dpo.loss.sft=1", "dpo.wpo=true"], "no value for each"),
        (["dpo.train_vision=true"], "set dpo.train to full"),
        (["dpo.lora.target_modules='(q'"], "not a regular expression"),
        (["dpo.loss={povid_code: 1}"], "two rejected sides"),
        (["candidates={}"], "no source is on"),
        (["pairing={}"], "can't make a pair"),
        (["pairing.best_worst.among=[polcy]"], "polcy, which no part writes"),
        (["pairing={reference_against_rejected: {}}"], "can't make a pair"),
        (["filters.gap.of=truth"], "filters.gap.of is truth"),
        (["reward.terms={}"], "reward.terms has no term"),
        (["reward.terms={}", "filters={}"], "can't make a pair"),
        (["dpo.loss={aot: 1}", "pairing.best_worst.weight=2"], "sort the batch"),
    ],
)
def test_what_no_run_could_do_is_refused_at_load(tmp_path: Path, overrides: list[str], words: str) -> None:
    assert words in refused(tmp_path, *overrides)


def test_services_that_run_starts_get_what_the_recipe_needs(tmp_path: Path) -> None:
    source = "reward.source=local-dir:clip"
    assert local_services(plain(tmp_path, source), tmp_path)["sampler"] == ["engine.model=m", "engine.threads=1"]
    wide = plain(tmp_path, source, "sampling.candidates=100", "sampling.max_tokens=2000")
    assert local_services(wide, tmp_path)["sampler"][2:] == ["limits.max_candidates=100", "limits.max_tokens=2000"]
    texts = "candidates={policy: {paraphrases: [a, b, c, d, e, f, g], per_image: 7}}"
    many = local_services(plain(tmp_path, source, "sampling.candidates=200", texts), tmp_path)
    assert many["scorer"][-1] == "limits.max_texts=1400"
    load_settings(SamplerSettings, service="sampler", overrides=local_services(wide, tmp_path)["sampler"])


def test_services_that_run_starts_get_the_recipes_own_settings(tmp_path: Path) -> None:
    text = (
        "reward: {source: 'local-dir:clip'}\n"
        "services:\n  sampler: {engine: {device: 'cuda:1', dtype: bfloat16, cache_mib: 512, threads: 3}}\n"
        "  scorer: {triton: {device: cpu}, models: {clip: {precision: bf16}}}\n"
    )
    recipe = plain(tmp_path, "services.sampler.engine.cache_mib=64", "sampling.max_tokens=2000", more=text)
    flags = local_services(recipe, tmp_path)
    engine = load_settings(SamplerSettings, service="sampler", overrides=flags["sampler"]).engine
    assert (engine.device, engine.dtype, engine.cache_mib, engine.threads) == ("cuda:1", "bfloat16", 64, 3)
    scorer = load_settings(ScorerSettings, service="scorer", overrides=flags["scorer"])
    assert (scorer.triton.device, scorer.triton.threads, scorer.models["clip"].precision) == ("cpu", 1, "bf16")
    assert bound_by("services.sampler.engine.device") == "free"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("services.sampler.engine.devise=cpu", "services.sampler: .*devise is unknown .did you mean engine.device"),
        ("services.sampler.engine.cache_mib=much", "services.sampler: .*engine.cache_mib"),
        ("services.sampler.engine.model=m", "services.sampler.engine.model can't be set there: it is the recipe's"),
        ("services.scorer.server.port=7", "listen on loopback"),
        ("services={scorer: {models: {clip: {source: x}}}}", "it is the recipe's reward.source"),
    ],
)
def test_a_service_refuses_settings_that_it_does_not_know(tmp_path: Path, override: str, words: str) -> None:
    recipe = plain(tmp_path, "reward.source=local-dir:clip", override)
    with pytest.raises(SettingsError, match=words):
        local_services(recipe, tmp_path)
    assert "trainer is unknown" in refused(tmp_path, "services.trainer.runs=x")


def test_a_loss_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(PLAIN)
    code = (
        "import sys\nfrom pathlib import Path\nfrom sightline_trainer.recipe import load_recipe\n"
        "try:\n    load_recipe(Path(sys.argv[1]), ['dpo.loss={ipoo: 1}'])\n"
        "except ValueError as error:\n    print('ipoo' in str(error), 'torch' in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "plain.yaml")], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["True", "False"]
