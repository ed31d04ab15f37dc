"""Released checkpoints give the same numbers as their authors' arithmetic."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import released_models
import torch
from pydantic import ValidationError
from scorer_models import SENTENCES, picture
from sightline.errors import InvalidInput, PreconditionFailed
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_scorer import imagereward
from sightline_scorer.aesthetic import AestheticHead
from sightline_scorer.formulas import Scale, default_kind
from sightline_scorer.released import clip_of_transformers, open_clip_directory
from sightline_scorer.settings import ModelSettings, ScorerLimits
from sightline_scorer.texts import finished, plan_request
from sightline_scorer.tokens import Tokenizer
from sightline_scorer.triton import blip, repository
from sightline_scorer.vocabularies import vocabulary

IDS = open_clip.tokenizer.SimpleTokenizer()(SENTENCES)
LONG = "a red square left of a blue circle and "


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(preprocess: Any) -> torch.Tensor:
    found: torch.Tensor = preprocess(picture(90, 70, seed=3)).unsqueeze(0)
    return found


def served(directory: Path) -> tuple[Any, Any]:
    """The converted model as its towers load it, and its transform."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    return model.eval(), preprocess


def features(model: Any, images: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return model.encode_image(images, normalize=True), model.encode_text(ids, normalize=True)


FULL = [False, pytest.param(True, marks=pytest.mark.slow, id="of-the-true-shape")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("full", FULL)
def test_pickscore(tmp_path: Path, cache: Path, full: bool) -> None:
    theirs = released_models.pickscore(tmp_path / "released", full=full)
    directory = open_clip_directory("pickscore", str(tmp_path / "released"))
    assert directory.is_relative_to(cache)
    model, preprocess = served(directory)
    image, texts = features(model, pixels(preprocess), IDS)
    scores = float(model.logit_scale.detach().exp()) * (texts @ image[0])
    expected = released_models.pick_scores(theirs, pixels(preprocess), IDS)
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)
    assert expected.std() > 1e-3
    before = (directory / "open_clip_model.safetensors").stat().st_mtime_ns
    assert open_clip_directory("pickscore", str(tmp_path / "released")) == directory
    assert (directory / "open_clip_model.safetensors").stat().st_mtime_ns == before, "it is made once"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("full", FULL)
def test_hpsv2(tmp_path: Path, full: bool) -> None:
    theirs = released_models.hpsv2(tmp_path / "HPS_v2.1.pt", full=full)
    architecture = None if full else "tiny-hps"
    model, preprocess = served(open_clip_directory("hpsv2", str(tmp_path / "HPS_v2.1.pt"), architecture))
    image, texts = features(model, pixels(preprocess), IDS)
    expected_image, expected_texts = features(theirs, pixels(preprocess), IDS)
    torch.testing.assert_close(texts @ image[0], expected_texts @ expected_image[0], atol=1e-6, rtol=0)
    shown = preprocess(picture(200, 50)) * torch.tensor(preprocess.transforms[-1].std)[:, None, None]
    edge = (shown + torch.tensor(preprocess.transforms[-1].mean)[:, None, None])[:, 0]
    torch.testing.assert_close(edge, torch.zeros_like(edge), atol=1e-6, rtol=0)  # a wide picture is padded in black


@pytest.mark.timeout(900)
@pytest.mark.parametrize("full", FULL)
def test_longclip(tmp_path: Path, full: bool) -> None:
    theirs, tables = released_models.longclip(tmp_path / "longclip.pt", full=full)
    model, _ = served(open_clip_directory("longclip", str(tmp_path / "longclip.pt")))
    assert model.context_length == 248
    ids = open_clip.tokenizer.SimpleTokenizer(context_length=248)([*SENTENCES, LONG * 25])
    assert int((ids[-1] > 0).sum()) > 200
    with torch.inference_mode():
        expected = released_models.long_text_features(theirs, tables, ids)
        torch.testing.assert_close(model.encode_text(ids), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("ending", "size"), [("pth", 64), ("safetensors", 64), ("pth", 768)])
def test_aesthetic(tmp_path: Path, ending: str, size: int) -> None:
    net = released_models.aesthetic_head(tmp_path / f"head.{ending}", size)
    head = AestheticHead.read(tmp_path / f"head.{ending}")
    embedding = torch.nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(1)), dim=0)
    with torch.inference_mode():
        expected = float(net(embedding))
    assert float(head(embedding.numpy())) == pytest.approx(expected, abs=1e-6)
    assert head.size == size


CARD = {"precision": "fp32", "preprocess": {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27]}}


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(CARD["preprocess"][key]).view(3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    return (pixels / 255 - mean) / std


def joint(state: dict[str, torch.Tensor], side: int, words: int) -> None:
    """Our tower gives the reference's rewards for recurring pictures and texts of several lengths."""
    generator = torch.Generator().manual_seed(7)
    pictures = torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    pixels = pictures[[0, 1, 0, 0]]
    ids = torch.zeros((4, 35), dtype=torch.int32)
    for row, length in enumerate((35, 9, 4, 2)):
        ids[row, :length] = torch.randint(5, words, (length,), generator=generator)
    tower = blip.JointTower(state, CARD, torch.device("cpu"))
    expected = released_models.image_rewards(state, normalised(pixels), ids.long())
    found = tower(pixels, ids)
    assert found.shape == (4, 1)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01
    alone = torch.cat([tower(pixels[row : row + 1], ids[row : row + 1]) for row in range(4)])
    torch.testing.assert_close(alone, found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_imagereward(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"ImageReward.{ending}"
    released_models.imagereward(file)
    joint(blip.read_state(file), 64, 120)
    card = imagereward.describe("m", ModelSettings(kind="imagereward", source=str(tmp_path)))
    assert (card.kind, card.towers, card.context_length, card.image_height) == ("imagereward", ("joint",), 35, 64)
    assert card.tokenizer["source"] == "google-bert/bert-base-uncased"
    released_models.bert_tokenizer(tmp_path)
    assert imagereward.describe("m", ModelSettings(kind="imagereward", source=str(file))).tokenizer["source"] == str(
        tmp_path
    )


@pytest.mark.slow
def test_imagereward_of_the_true_shape(tmp_path: Path) -> None:
    """ViT-L/16 at 224 pixels, BERT-base with attention to it."""
    joint(released_models.imagereward(tmp_path / "ImageReward.pt", full=True), 224, 30524)


def test_a_text_over_imagerewards_window_is_scored_by_sentence(tmp_path: Path) -> None:
    released_models.bert_tokenizer(tmp_path)
    facts = {"kind": "transformers", "source": str(tmp_path), "clean": "", "strip_sep_token": False}
    tokenizer = Tokenizer(vocabulary(facts, "", imagereward.WINDOW), imagereward.WINDOW)
    (row,) = tokenizer.encode(["a red square"], [0])
    assert row.ids[row.length - 1] == 3  # [SEP]
    assert row.ids[row.length :] == [0] * (imagereward.WINDOW - row.length)
    request = pb.ScoreRequest(texts=["a red square. " * 12])
    plan = finished(plan_request(request, tokenizer, ScorerLimits(), lambda keys: list(range(len(keys)))))
    assert plan.text_sizes == [12]
    for text, reason in (("[SEP]", "TEXT_EMPTY"), ("a [SEP] dog", "TEXT_SPECIAL")):
        with pytest.raises(InvalidInput) as caught:
            tokenizer.encode([text], [0])
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "vqa"}, "set tokenizer with kind=vqa"),
        ({"kind": "vqa", "tokenizer": "t", "question": "Is it?"}, r"\{text\} once"),
        ({"kind": "clip", "answer": "Yes"}, "answer works only with kind=vqa"),
        ({"kind": "hpsv2", "tokenizer": "t"}, "tokenizer works only with"),
        ({"kind": "vqa", "tokenizer": "t", "sampler": {"key_file": "k"}}, "go together"),
    ],
)
def test_keys_that_go_with_no_such_kind_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModelSettings(source="127.0.0.1:50052", **settings)


def test_what_is_no_such_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(PreconditionFailed, match="not a checkpoint of kind longclip"):
        open_clip_directory("longclip", str(tmp_path / "other.pt"))
    (tmp_path / "head.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(PreconditionFailed, match=r"layers\.N"):
        AestheticHead.read(tmp_path / "head.safetensors")
    with pytest.raises(FileNotFoundError):
        open_clip_directory("hpsv2", str(tmp_path / "nothing"))
    with pytest.raises(PreconditionFailed, match="not a checkpoint of ImageReward"):
        imagereward.describe("m", ModelSettings(kind="imagereward", source=str(tmp_path / "other.pt")))
    with pytest.raises(FileNotFoundError, match=r"ImageReward\.pt"):
        imagereward.checkpoint(str(tmp_path))
    for wrong in ({"kind": "aesthetic"}, {"head": "x"}, {"architecture": "ViT-H-14"}):
        with pytest.raises(ValidationError):
            ModelSettings(source="ViT-B-32", **wrong)  # type: ignore[arg-type]


def test_keys_and_shapes_of_the_full_size() -> None:
    """PickScore_v1 is a ViT-H-14: every key of open_clip's is produced, in its shape."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    same = {"projection_dim": 1024, "hidden_act": "gelu"}
    vision |= {"patch_size": 14, "image_size": 224}
    config = CLIPConfig(text_config=text | same, vision_config=vision | same, projection_dim=1024)
    with torch.device("meta"):
        theirs = CLIPModel(config).state_dict()
        ours = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14")).state_dict()
    made, state = clip_of_transformers(config.to_dict(), theirs)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in ours.items()}
    full = open_clip.get_model_config("ViT-H-14")
    assert made["model_cfg"]["vision_cfg"]["head_width"] == full["vision_cfg"]["head_width"]
    assert made["model_cfg"]["text_cfg"]["heads"] == full["text_cfg"]["heads"]


def test_the_reward_of_each_kind(tmp_path: Path) -> None:
    released_models.pickscore(tmp_path / "released")
    card = repository.describe("m", ModelSettings(kind="pickscore", source=str(tmp_path / "released")))
    assert (card.kind, default_kind(card)) == ("pickscore", pb.SCORE_KIND_REWARD)
    cosine = np.array([0.25, -0.5], np.float32)
    reward = pb.SCORE_KIND_REWARD
    np.testing.assert_allclose(Scale.of(card, None, "").apply(reward, cosine), card.logit_scale * cosine, rtol=1e-6)
    hps = dataclasses.replace(card, kind="hpsv2")
    np.testing.assert_array_equal(Scale.of(hps, None, "").apply(reward, cosine), cosine)
    plain = Scale.of(dataclasses.replace(card, kind="clip"), None, "")
    assert reward not in plain.kinds
    with pytest.raises(PreconditionFailed, match="no number of their own"):
        plain.check(reward)
