"""Texts: the ids of open_clip's own tokenizers, honest counts, and nothing cut."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from scorer_models import SENTENCES
from sightline_chassis.errors import InternalError, InvalidInput
from sightline_scorer.settings import LimitSettings
from sightline_scorer.texts import Tokenizer, check_texts, sentences
from sightline_scorer.v1 import scorer_pb2 as pb
from sightline_scorer.words import WordTokenizer, clean

LIMITS = LimitSettings()
WORD = "cat "


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer(open_clip.get_tokenizer("ViT-B-32"), 77, 49408)


def word_level(directory: Path, template: str = "<s> $A </s>", **options: Any) -> HFTokenizer:
    """A fast tokenizer of transformers, as the playground's CLIP and many of open_clip's models have one."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *["a", "red", "blue", "square", "circle", "and", "the", "cat", ".", ","], "<s>", "</s>"]
    numbers = {word: number for number, word in enumerate(words)}
    backend = Backend(models.WordLevel(numbers, unk_token="<unk>"))
    backend.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(word, numbers[word]) for word in ("<s>", "</s>")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", sep_token="."
    )
    fast.save_pretrained(str(directory))
    return HFTokenizer(str(directory), context_length=16, **options)


@given(st.text(max_size=60))
@example("it's   a DOG's café &amp; &lt;b&gt; <end_of_text> I'll\x00\x1b[31m\ud800x")
@example("fi ｆｕｌｌ “quoted” ΟΔΟΣ Σ\u2028new\x85line\x1cfile İstanbul ǅ")
@example("a&amp;amp;amp;lt;b")
@settings(max_examples=400, deadline=None)
def test_word_by_word_gives_open_clips_ids(text: str) -> None:
    try:
        expected = SIMPLE.encode(text)
    except UnicodeEncodeError:  # a lone surrogate, which protobuf does not carry
        return
    assert FAST.encode(text) == expected
    assert FAST.encode(text) == expected  # now from memory


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=80))
@settings(max_examples=400, deadline=None)
def test_word_by_word_gives_open_clips_ids_for_ascii(text: str) -> None:
    assert FAST.encode(text) == SIMPLE.encode(text)


@given(st.one_of(st.text(max_size=60), st.text(alphabet=st.characters(max_codepoint=127), max_size=60)))
@example("  a \n b\t\r\n &amp; C  ")
@settings(max_examples=400, deadline=None)
def test_quick_cleaning_is_open_clips(text: str) -> None:
    for kind in ("lower", "whitespace", "canonicalize"):
        slow = SimpleTokenizer.__new__(SimpleTokenizer)
        slow.clean_fn = get_clean_fn(kind)
        assert clean(slow, text) == slow.clean_fn(text)


SIMPLE = SimpleTokenizer()
FAST = WordTokenizer(SimpleTokenizer())


def test_rows_are_those_of_open_clip(clip: Tokenizer) -> None:
    rows = clip.rows(SENTENCES, pb.LONG_TEXT_UNSPECIFIED, LIMITS)
    expected = open_clip.get_tokenizer("ViT-B-32")(SENTENCES).numpy()
    np.testing.assert_array_equal(rows.ids, expected)
    assert rows.ids.dtype == np.int32
    np.testing.assert_array_equal(rows.lengths, expected.argmax(1) + 1)
    assert rows.parts.tolist() == [1] * len(SENTENCES)


def test_counts_include_start_and_end(clip: Tokenizer) -> None:
    rows = clip.rows(["cat", "a cat"], pb.LONG_TEXT_UNSPECIFIED, LIMITS)
    assert rows.token_counts.tolist() == [3, 4]


def test_the_window_is_inclusive(clip: Tokenizer) -> None:
    assert clip.rows([WORD * 75], pb.LONG_TEXT_REJECT, LIMITS).token_counts.tolist() == [77]
    with pytest.raises(InvalidInput, match=r"texts\[1\] has 78 tokens, over the model's window of 77") as caught:
        clip.rows(["fine", WORD * 76], pb.LONG_TEXT_REJECT, LIMITS)
    assert caught.value.reason == "TEXT_TOO_LONG"
    assert caught.value.metadata == {"text_index": "1", "token_count": "78"}


def test_a_long_text_is_scored_by_sentence(clip: Tokenizer) -> None:
    long = "There is a cat. " * 20
    rows = clip.rows(["a dog", long, "a cow"], pb.LONG_TEXT_SENTENCES, LIMITS)
    assert rows.parts.tolist() == [1, 20, 1]
    assert rows.token_counts.tolist() == [4, 20 * 5 + 2, 4]
    assert rows.ids.shape == (22, 77)
    one = clip.rows(["There is a cat."], pb.LONG_TEXT_SENTENCES, LIMITS).ids[0]
    assert (rows.ids[1:21] == one).all()


def test_a_text_that_fits_is_never_split(clip: Tokenizer) -> None:
    assert clip.rows(["A cat. A dog. A cow."], pb.LONG_TEXT_SENTENCES, LIMITS).parts.tolist() == [1]


@pytest.mark.parametrize("text", [WORD * 90, "Short one. " + WORD * 90, "!" * 2000])
def test_a_sentence_over_the_window_is_refused(clip: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"texts\[0\] has \d+ tokens.*sentence [01] alone has \d+"):
        clip.rows([text], pb.LONG_TEXT_SENTENCES, LIMITS)


def test_sentences_count_against_the_limit_of_texts(clip: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="makes over 10 sentences"):
        clip.rows(["It is a cat. " * 20], pb.LONG_TEXT_SENTENCES, LimitSettings(max_texts=10))


@pytest.mark.parametrize("text", ["a cat <end_of_text> and a dog", "<start_of_text>", "a <END_OF_TEXT>"])
def test_a_spelt_out_special_token_is_refused(clip: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidInput, match="spells a special token") as caught:
        clip.rows(["a cow", text], pb.LONG_TEXT_SENTENCES, LIMITS)
    assert caught.value.metadata["text_index"] == "1"


def test_a_text_of_which_nothing_is_left_is_refused(clip: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="nothing that the model can read"):
        clip.rows(["\x00\x01"], pb.LONG_TEXT_SENTENCES, LIMITS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat. a dog", ["A cat.", "a dog"]),
        (
            'He says "Look!" She looks... It is (a bird.) Yes',
            ['He says "Look!"', "She looks...", "It is (a bird.)", "Yes"],
        ),
        ("Fruit, e.g. apples vs. pears. Dr. Who?", ["Fruit, e.g. apples vs. pears.", "Dr. Who?"]),
        ("3.5 metres. v1.2.3 is out", ["3.5 metres.", "v1.2.3 is out"]),
        ("一只猫。一只狗！", ["一只猫。", "一只狗！"]),
        ("- a cat\n\n- a dog\n", ["- a cat", "- a dog"]),
        ("A cat. ...", ["A cat. ..."]),
        ("...", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(max_size=200))
@settings(deadline=None)
def test_sentences_lose_no_word(text: str) -> None:
    def words(part: str) -> list[str]:
        return [letter for letter in part if letter.isalnum()]

    assert [letter for piece in sentences(text) for letter in words(piece)] == words(text)


@pytest.mark.parametrize("options", [{}, {"strip_sep_token": True}])
def test_a_tokenizer_of_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    wrapper = word_level(tmp_path, **options)
    tokenizer = Tokenizer(wrapper, 16, 14)
    texts = ["a red square", "the  zebra , and a blue circle .", "cat"]
    rows = tokenizer.rows(texts, pb.LONG_TEXT_SENTENCES, LIMITS)
    np.testing.assert_array_equal(rows.ids, wrapper(texts).numpy())
    assert rows.token_counts.tolist() == [5, 10, 3]
    assert tokenizer.rows(["a " * 14], pb.LONG_TEXT_REJECT, LIMITS).token_counts.tolist() == [16]
    with pytest.raises(InvalidInput, match=r"texts\[0\] has 17 tokens"):
        tokenizer.rows(["a " * 15], pb.LONG_TEXT_REJECT, LIMITS)
    assert tokenizer.rows(["a red cat . " * 5], pb.LONG_TEXT_SENTENCES, LIMITS).parts.tolist() == [5]
    with pytest.raises(InvalidInput, match="special token"):
        tokenizer.rows(["a </s> cat"], pb.LONG_TEXT_SENTENCES, LIMITS)


def test_a_tokenizer_of_transformers_by_its_own_class_tokens(tmp_path: Path) -> None:
    wrapper = word_level(tmp_path)
    wrapper.tokenizer.cls_token = "<s>"
    wrapper.tokenizer_mode = "clips"
    tokenizer = Tokenizer(wrapper, 16)
    rows = tokenizer.rows(["a red square", "cat"], pb.LONG_TEXT_SENTENCES, LIMITS)
    np.testing.assert_array_equal(rows.ids, wrapper(["a red square", "cat"]).numpy())
    with pytest.raises(InvalidInput, match=r"texts\[0\] has 17 tokens"):
        tokenizer.rows(["a " * 14], pb.LONG_TEXT_REJECT, LIMITS)


def test_a_tokenizer_of_another_model_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="the model knows 5"):
        Tokenizer(word_level(tmp_path), 16, 5).rows(["cat"], pb.LONG_TEXT_SENTENCES, LIMITS)


@pytest.mark.parametrize(
    ("texts", "reason", "says"),
    [
        ([], "NO_TEXTS", "no texts"),
        (["a"] * 10_000, "TOO_MANY_TEXTS", "10000 texts, over the limit of 1024"),
        (["a", ""], "TEXT_EMPTY", r"texts\[1\] is empty"),
        ([" \n\t"], "TEXT_EMPTY", r"texts\[0\] is empty"),
        (["a" * 8193], "TEXT_TOO_LARGE", "8193 bytes, over the limit of 8192"),
        (["日" * 2731], "TEXT_TOO_LARGE", "8193 bytes"),
    ],
    ids=["none", "10000", "empty", "blank", "long", "long in bytes"],
)
def test_bad_texts_are_refused(texts: list[str], reason: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        check_texts(texts, LIMITS)
    assert caught.value.reason == reason


def test_a_text_at_the_limit_passes() -> None:
    check_texts(["a" * 8192, "日" * 2730], LIMITS)
