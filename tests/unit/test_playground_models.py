"""The shipped tiny CLIP and tiny LVLM load through the libraries' own calls and match the model card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sightline_playground import clip_model, llava_model, weights_dir
from sightline_playground.bands import BANDS, outside
from sightline_playground.captions import PROMPTS, trained_caption, with_companion
from sightline_playground.clip_training import encode_by_length
from sightline_playground.contrast import contrast
from sightline_playground.drawing import draw
from sightline_playground.llava_training import Batches, answer_loss, chat, features
from sightline_playground.metrics import caption_metrics
from sightline_playground.sampling import answers
from sightline_playground.scenes import scenes
from sightline_playground.truth import companions_absent
from sightline_playground.world import stream

WEIGHTS = weights_dir()
TEST = scenes("test", 300, seed=77)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


@pytest.fixture(scope="module")
def clip() -> tuple[Any, Any, Any]:
    import open_clip

    name = f"local-dir:{WEIGHTS / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.fixture(scope="module")
def llava() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "llava")
    return model.eval(), AutoProcessor.from_pretrained(WEIGHTS / "llava")


def test_the_weights_are_small_and_the_card_stands_within_its_tolerance() -> None:
    files = [file for part in ("clip", "llava") for file in (WEIGHTS / part).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    card = json.loads((WEIGHTS / "metrics.json").read_text())
    assert outside(card["numbers"]) == []
    assert {name: (band.low, band.high) for name, band in BANDS.items()} == {
        name: (band["low"], band["high"]) for name, band in card["tolerance"].items()
    }
    text = (WEIGHTS / "MODEL_CARD.md").read_text()
    assert all(f"| `{name}` | {value:.3f} |" in text for name, value in card["numbers"].items())


def test_clip_prefers_the_truth_but_not_always(clip: tuple[Any, Any, Any]) -> None:
    model, preprocess, tokenizer = clip
    rng = stream("test")
    chosen = [scene for scene in TEST if companions_absent(scene)]
    images = torch.stack([preprocess(draw(scene)) for scene in chosen])
    pairs = [with_companion(scene, rng) for scene in chosen]
    scores = clip_model.clip_scores(model, tokenizer, images, pairs)
    right = sum(true > false for true, false in scores) / len(scores)
    assert 0.95 <= right < 1
    gaps = sorted(true - false for true, false in scores)
    assert 1 < gaps[len(gaps) // 2] < 10


def test_clip_preprocess_is_the_training_preprocess(clip: tuple[Any, Any, Any]) -> None:
    pictures = [draw(scene) for scene in TEST[:16]]
    ours, theirs = clip_model.pixels(pictures), torch.stack([clip[1](picture) for picture in pictures])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_clip_tokenizer_knows_every_caption_and_ends_with_the_largest_id(clip: tuple[Any, Any, Any]) -> None:
    model, _, tokenizer = clip
    rng = stream("test")
    texts = [text for scene in TEST[:100] for text in [*contrast(scene, rng), trained_caption(scene, rng)]]
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), 77)
    assert not (ids == tokenizer.tokenizer.unk_token_id).any()
    assert (ids.max(dim=1).values == tokenizer.tokenizer.eos_token_id).all()
    assert tokenizer.tokenizer.eos_token_id == len(tokenizer.tokenizer) - 1
    assert torch.equal(tokenizer("a red star."), tokenizer("A red  star ."))
    with torch.inference_mode():
        padded, short = model.encode_text(ids), encode_by_length(model, ids)
    torch.testing.assert_close(short, padded, rtol=1e-4, atol=1e-5)


def test_the_lvlm_sees_with_the_scorers_own_tower(clip: tuple[Any, Any, Any], llava: tuple[Any, Any]) -> None:
    images = clip_model.pixels([draw(scene) for scene in TEST[:16]])
    with torch.inference_mode():
        seen = llava[0].model.vision_tower(images, output_hidden_states=True)
        theirs = clip[0].visual.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        pooled = seen.pooler_output @ clip[0].visual.proj
        expected = clip[0].encode_image(images)
    for layer, states in enumerate(theirs["image_intermediates"], start=1):
        torch.testing.assert_close(seen.hidden_states[layer][:, 1:], states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


def test_the_processor_writes_the_training_format_and_expands_the_image(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    prompt = "what do you see ?"
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "there is a red star ."}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    assert text == chat(prompt) == "USER: <image>\nwhat do you see ? ASSISTANT:"
    assert processor.apply_chat_template([turn, reply]) == f"{text} there is a red star .</s>"
    inputs = processor(images=draw(TEST[0]), text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 9
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    ids, labels = Batches().encode([(prompt, "there is a red star .")])
    length = inputs["input_ids"].shape[1]
    assert ids[0, :length].tolist() == inputs["input_ids"][0].tolist()
    assert (labels[0, :length] == -100).all()
    assert processor.decode(labels[0, length:]) == "there is a red star . </s>"
    torch.testing.assert_close(inputs["pixel_values"], clip_model.pixels([draw(TEST[0])]), rtol=0, atol=1e-6)


def test_the_training_loss_is_transformers_own(llava: tuple[Any, Any]) -> None:
    model = llava[0]
    ids, labels = Batches().encode([("what do you see ?", "there is a red star ."), (PROMPTS[0], "yes .")])
    with torch.inference_mode():
        ours = answer_loss(model, features(model, TEST[:2]), ids, labels)
        theirs = model(
            input_ids=ids,
            attention_mask=(ids != model.config.pad_token_id).long(),
            pixel_values=clip_model.pixels([draw(scene) for scene in TEST[:2]]),
            labels=labels,
        ).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_generation_suppresses_what_must_not_be_said(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    tokenizer = processor.tokenizer
    forbidden = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, model.config.image_token_id}
    assert set(model.generation_config.suppress_tokens) == forbidden
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.max_new_tokens == llava_model.MAX_NEW_TOKENS


def test_the_lvlm_hallucinates_when_sampled_and_knows_better_when_greedy(llava: tuple[Any, Any]) -> None:
    rng = stream("test")
    chosen = TEST[:200]
    prompts = [rng.choice(PROMPTS) for _ in chosen]
    texts = answers(*llava, chosen, prompts, temperature=1.0)
    assert answers(*llava, chosen, prompts, temperature=1.0) == texts
    found = caption_metrics(chosen, texts)
    assert BANDS["sampled_chair_s"].holds(found.chair_s)
    assert BANDS["sampled_cover"].holds(found.cover)
    assert all(text.endswith(" .") for text in texts)
    greedy = caption_metrics(chosen, answers(*llava, chosen, prompts, temperature=0.0))
    assert BANDS["greedy_cover"].holds(greedy.cover)
    assert greedy.chair_s < found.chair_s
