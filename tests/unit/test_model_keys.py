"""Keys of a recipe that set how the model sees prompts and pictures: sampler and update use the same values."""

from pathlib import Path

import families
import pytest
from dpo_models import dpo_recipe
from family_pairs import family_pairs
from PIL import Image
from sightline.errors import InvalidInput
from sightline.sampler.turns import user_turn
from sightline_chassis.settings import SettingsError, load_settings
from sightline_cli.local_services import local_services
from sightline_sampler.engines.local.model import load_base
from sightline_sampler.settings import SamplerSettings
from sightline_trainer.allowed import Allowed
from sightline_trainer.chat_template import ChatTemplate
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.preflight.model import checkpoint, sizes
from sightline_trainer.recipe import load_recipe
from sightline_trainer.run_queue import RunQueue

PLAIN = "name: plain\nmodel: m\nreward: {source: 'local-dir:clip'}\ndata: {train: a, test: b}\n"
TEMPLATE = (
    "{% for m in messages %}Q: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} A:"
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.make(tmp_path_factory.mktemp("qwen") / "model", "qwen2_vl")


def test_a_template_beside_the_recipe_is_carried_in_it(tmp_path: Path) -> None:
    (tmp_path / "ours.jinja").write_text(TEMPLATE)
    file = tmp_path / "plain.yaml"
    file.write_text(PLAIN + "chat_template: ours.jinja\nmin_pixels: 100\nmax_pixels: 4000\n")
    recipe = load_recipe(file)
    assert recipe.chat_template == TEMPLATE
    flags = local_services(recipe, tmp_path / "services")["sampler"]
    given = load_settings(SamplerSettings, service="sampler", overrides=flags).engine
    assert (given.min_pixels, given.max_pixels) == (100, 4000)
    assert given.chat_template is not None
    assert given.chat_template.read_text() == TEMPLATE
    (tmp_path / "ours.jinja").unlink()
    file.write_text(PLAIN)
    assert load_recipe(file, [f"chat_template={TEMPLATE}"]).chat_template == TEMPLATE
    with pytest.raises(SettingsError, match=r"there is no file ours\.jinja beside the recipe or here"):
        load_recipe(file, ["chat_template=ours.jinja"])
    (tmp_path / "ours.jinja").write_text("no template")
    with pytest.raises(SettingsError, match="holds no Jinja template"):
        load_recipe(file, ["chat_template=ours.jinja"])
    with pytest.raises(SettingsError, match="min_pixels 9 is above max_pixels 8"):
        load_recipe(file, ["min_pixels=9", "max_pixels=8"])


@pytest.mark.field
def test_no_caller_has_a_file_read_as_a_template(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{{ }} hidden")
    known = tmp_path / "known.yaml"
    known.write_text(PLAIN)
    queue = RunQueue(tmp_path / "runs", allowed=Allowed(data_roots=[tmp_path]))
    for file, text, overrides in (
        (None, f"{PLAIN}chat_template: {secret}\n", []),
        (None, PLAIN, [f"chat_template={secret}"]),
        (known, "", [f"chat_template={secret}"]),
    ):
        with pytest.raises(InvalidInput, match="give the template's text") as caught:
            queue.submit("one", file, text, overrides)
        assert "hidden" not in str(caught.value)


def test_the_recipes_template_is_the_updates(qwen: Path) -> None:
    ours = ChatTemplate(ModelProcessor(str(qwen), TEMPLATE))
    assert ours.prompt(user_turn("why?", 1)) == "Q: <|vision_start|><|image_pad|><|vision_end|>why? A:"
    assert ours.prompt(user_turn("why?", 1)) != ChatTemplate(ModelProcessor(str(qwen))).prompt(user_turn("why?", 1))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0]['nothing'][7] }}", "can't be rendered"),
        ("{{ messages", "can't be rendered"),
        ("{{ 'Q:' }}", "leaves out the user's text"),
        (TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", ""), "no place for the picture"),
    ],
)
def test_a_template_that_shows_too_little_is_refused(qwen: Path, template: str, words: str) -> None:
    (finding,) = checkpoint(ModelProcessor(str(qwen), template))
    assert finding.code == "CHAT_TEMPLATE_UNUSABLE"
    assert words in finding.message


@pytest.mark.parametrize(("bounds", "size"), [((16 * 256, 25 * 256), (16, 16)), ((256, 4 * 256), (1200, 800))])
def test_bounds_of_pixels_are_the_samplers_and_the_updates(
    qwen: Path, tmp_path: Path, bounds: tuple[int, int], size: tuple[int, int]
) -> None:
    made = ModelProcessor(str(qwen), None, *bounds)
    ours, free = ChatTemplate(made), ChatTemplate(ModelProcessor(str(qwen)))
    sampler = load_base(str(qwen), device="cpu", dtype="float32", chat_template=None, pixels=bounds)
    asked = ours.prompt(user_turn("why?", 1))
    drawn = len(sampler.processing.prompt(asked, [Image.new("RGB", size)]).ids)
    assert ours.length(asked, [size]) == drawn != free.length(asked, [size])
    recipe = dpo_recipe(qwen).model_copy(update={"min_pixels": bounds[0], "max_pixels": bounds[1]})
    trainer = make_trainer(recipe, family_pairs(qwen, "qwen2_vl"), previous=None, work=tmp_path / "work", seed=1)
    assert len(trainer.data_collator.family.process(asked, [Image.new("RGB", size)], ["one"]).ids) == drawn


@pytest.mark.field
def test_a_model_without_such_bounds_says_so(tmp_path: Path) -> None:
    model = families.make(tmp_path / "llava", "llava")
    (finding,) = checkpoint(ModelProcessor(str(model), None, None, 4000))
    assert finding.code == "PROCESSOR_UNUSABLE"
    assert "does not support min_pixels and max_pixels" in finding.message


@pytest.mark.field
def test_a_model_that_brings_no_template_passes_its_checks_by_the_recipes(tmp_path: Path) -> None:
    model = families.make(tmp_path / "paligemma", "paligemma")
    recipe = dpo_recipe(model)
    assert [finding.code for finding in checkpoint(recipe.processor)] == ["NO_CHAT_TEMPLATE"]
    recipe = recipe.model_copy(update={"chat_template": families.FAMILIES["paligemma"].template})
    assert list(checkpoint(recipe.processor)) == []
    assert sizes(recipe)[1] == []
