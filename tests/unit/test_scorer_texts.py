"""Texts: the ids of open_clip's own tokenizers, true counts, and no truncation."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from scorer_models import SENTENCES
from sightline.errors import InternalError, InvalidInput
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_scorer.bpe import merge
from sightline_scorer.cleaning import CLEANING
from sightline_scorer.sentences import fitting, sentences
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.texts import Plan, check_request, check_texts, finished, key_of, plan_request, plan_texts
from sightline_scorer.tokens import Tokenizer
from sightline_scorer.vocabularies import ClipVocabulary, tokenizer_facts, vocabulary
from sightline_scorer.words import WordTokenizer

LIMITS = ScorerLimits()
WORD = "cat "


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer(ClipVocabulary(77), 77, 49408)


class Rows:
    """The rows of a plan for texts that are not cached."""

    def __init__(
        self, tokenizer: Tokenizer, texts: list[str], long_text: Any = pb.LONG_TEXT_SENTENCES, limits: Any = LIMITS
    ) -> None:
        self.plan = finished(plan_texts(texts, tokenizer, limits, everything, reject=long_text == pb.LONG_TEXT_REJECT))
        tokens = [self.plan.tokens[number] for number in range(len(self.plan.rows))]
        self.ids = np.array([row.ids for row in tokens], np.int32)
        self.lengths = np.array([row.length for row in tokens], np.int32)
        self.parts = self.plan.text_sizes
        self.token_counts = self.plan.counts(self.lengths)


def everything(keys: Any) -> list[int]:
    """Report everything as not cached."""
    return list(range(len(keys)))


def word_level(directory: Path, template: str = "<s> $A </s>", **options: Any) -> HFTokenizer:
    """A fast tokenizer of transformers, as in the playground's CLIP and many open_clip models."""
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
        assert CLEANING[kind](text) == get_clean_fn(kind)(text)


@given(st.text(alphabet="abcdefghinorst", min_size=1, max_size=150), st.integers(1, 30))
@example("a", 400)
@example("ab", 300)
@example("hello", 60)
@settings(max_examples=150, deadline=None)
def test_long_words_have_open_clips_tokens(word: str, times: int) -> None:
    letters = (word * times)[:600]
    assert " ".join(merge(letters, SIMPLE.bpe_ranks)) == (SIMPLE.bpe(letters) if len(letters) > 1 else letters + "</w>")


SIMPLE = SimpleTokenizer()
FAST = WordTokenizer(ClipVocabulary(77))


def test_the_vocabulary_is_open_clips() -> None:
    ours = ClipVocabulary(77)
    assert (ours.encoder, ours.bpe_ranks, ours.byte_encoder) == (SIMPLE.encoder, SIMPLE.bpe_ranks, SIMPLE.byte_encoder)
    assert (ours.sot_token_id, ours.eot_token_id) == (SIMPLE.sot_token_id, SIMPLE.eot_token_id)


def test_which_tokenizer_a_model_has_is_told_by_its_card(tmp_path: Path) -> None:
    assert tokenizer_facts(open_clip.get_tokenizer("ViT-B-32"), "ViT-B-32") == {"kind": "clip", "clean": "lower"}
    words = word_level(tmp_path / "words", clean="canonicalize")
    facts = tokenizer_facts(words, f"local-dir:{tmp_path / 'words'}")
    assert (facts["kind"], facts["clean"], facts["strip_sep_token"]) == ("file", "canonicalize", False)
    by_hub = tokenizer_facts(words, "hf-hub:org/words")
    assert by_hub["kind"] == "transformers", "there is no file to read at hand"
    assert by_hub["source"] == words.tokenizer.name_or_path
    words.tokenizer_mode = "clips"
    assert tokenizer_facts(words, "x") == {"kind": "open_clip"}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("strip", [False, True])
def test_a_tokenizers_file_gives_the_ids_of_transformers(tmp_path: Path, side: str, strip: bool) -> None:
    words = word_level(tmp_path, clean="canonicalize", strip_sep_token=strip)
    words.tokenizer.padding_side = side
    facts = tokenizer_facts(words, f"local-dir:{tmp_path}")
    ours, theirs = Tokenizer(vocabulary(facts, f"local-dir:{tmp_path}", 16), 16, 14), Tokenizer(words, 16, 14)
    texts = ["A red square, and the BLUE circle!", "cat", "zebra 漢字 . .", "a " * 14]
    places = list(range(len(texts)))
    assert ours.encode(texts, places) == theirs.encode(texts, places)
    assert ours.count([*texts, "a " * 40]) == theirs.count([*texts, "a " * 40])
    for wrong in ("", "?!"):  # nothing is left of the second
        with pytest.raises(InvalidInput) as mine:
            ours.encode([wrong], [0])
        with pytest.raises(InvalidInput) as reference:
            theirs.encode([wrong], [0])
        assert (mine.value.reason, mine.value.message) == (reference.value.reason, reference.value.message)


def test_a_tokenizer_that_is_more_than_its_file_is_left_to_transformers(tmp_path: Path) -> None:
    words = word_level(tmp_path)
    words.tokenizer.add_tokens(["zebra"])  # not in the file
    assert tokenizer_facts(words, f"local-dir:{tmp_path}")["kind"] == "transformers"


def test_a_tokenizers_file_that_changed_is_refused(tmp_path: Path) -> None:
    facts = tokenizer_facts(word_level(tmp_path), f"local-dir:{tmp_path}")
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match="not the tokenizer that the model was described with"):
        vocabulary(facts, f"local-dir:{tmp_path}", 16)


def test_a_special_mode_is_open_clips(tmp_path: Path) -> None:
    words = word_level(tmp_path)
    words.tokenizer_mode = "clips"
    assert tokenizer_facts(words, "x") == {"kind": "open_clip"}


def test_rows_are_those_of_open_clip(clip: Tokenizer) -> None:
    rows = Rows(clip, SENTENCES, pb.LONG_TEXT_UNSPECIFIED, LIMITS)
    expected = open_clip.get_tokenizer("ViT-B-32")(SENTENCES).numpy()
    np.testing.assert_array_equal(rows.ids, expected)
    assert rows.ids.dtype == np.int32
    np.testing.assert_array_equal(rows.lengths, expected.argmax(1) + 1)
    assert rows.parts == [1] * len(SENTENCES)


def test_counts_include_start_and_end(clip: Tokenizer) -> None:
    rows = Rows(clip, ["cat", "a cat"], pb.LONG_TEXT_UNSPECIFIED, LIMITS)
    assert rows.token_counts == [3, 4]


def test_the_window_is_inclusive(clip: Tokenizer) -> None:
    assert Rows(clip, [WORD * 75], pb.LONG_TEXT_REJECT, LIMITS).token_counts == [77]
    with pytest.raises(InvalidInput, match=r"texts\[1\] has 78 tokens, over the model's window of 77") as caught:
        Rows(clip, ["fine", WORD * 76], pb.LONG_TEXT_REJECT, LIMITS)
    assert caught.value.reason == "TEXT_TOO_LONG"
    assert caught.value.metadata == {"text_index": "1", "token_count": "78"}


def test_a_long_text_is_scored_by_sentence(clip: Tokenizer) -> None:
    long = "There is a cat. " * 20
    rows = Rows(clip, ["a dog", long, "a cow"], pb.LONG_TEXT_SENTENCES, LIMITS)
    assert rows.parts == [1, 20, 1]
    assert rows.token_counts == [4, 20 * 5 + 2, 4]
    assert rows.ids.shape == (22, 77)
    one = Rows(clip, ["There is a cat."], pb.LONG_TEXT_SENTENCES, LIMITS).ids[0]
    assert (rows.ids[1:21] == one).all()


def test_a_text_that_fits_is_never_split(clip: Tokenizer) -> None:
    assert Rows(clip, ["A cat. A dog. A cow."], pb.LONG_TEXT_SENTENCES, LIMITS).parts == [1]


def words(text: str) -> list[str]:
    """Letters and digits; no division may lose any."""
    return [letter for letter in text if letter.isalnum()]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (WORD * 90, 2),
        ("Short one. " + WORD * 90, 3),
        ("a cat, " * 30, 2),
        ("x1" * 200, 4),
        ("cat " * 40 + ", " + "dog " * 40, 2),
    ],
)
def test_a_sentence_over_the_window_is_split_inside_and_flagged(clip: Tokenizer, text: str, pieces: int) -> None:
    rows = Rows(clip, ["a cow", text, "a dog"])
    assert (rows.lengths <= 77).all()
    assert words("".join(rows.plan.rows[1:-1])) == words(text)
    assert rows.parts[1] >= pieces
    flagged = [split for part, split in zip(rows.plan.groups, rows.plan.split, strict=True) if part != "Short one."]
    assert flagged == [False] + [True] * (len(flagged) - 2) + [False]
    assert rows.token_counts[1] == clip.count([text])[0] > 77


def test_clauses_are_kept_whole(clip: Tokenizer) -> None:
    clauses = [
        "there is a red cat on the large sofa",
        "behind it stands a lamp which is off",
        "and so it continues",
    ] * 6
    text = ", ".join(clauses)
    rows = Rows(clip, [text])
    for piece in rows.plan.rows:
        assert all(clause.rstrip(",") in clauses for clause in piece.rstrip(",").split(", ")), piece


@given(st.text(min_size=1, max_size=300).filter(str.strip))
@settings(deadline=None, max_examples=150)
def test_pieces_fit_and_lose_nothing(text: str) -> None:
    def count(texts: Any) -> list[int]:
        return [2 + len("".join(text.split()).encode()) for text in texts]

    pieces = fitting(text, 12, count)
    assert words("".join(pieces)) == words(text)
    assert all(count([piece])[0] <= 12 for piece in pieces)


def test_a_long_sentence_is_refused_where_that_is_asked_for(clip: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match=r"texts\[0\] has 92 tokens.*ask for LONG_TEXT_SENTENCES"):
        Rows(clip, [WORD * 90], pb.LONG_TEXT_REJECT)


def request(**fields: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(image=pb.Image(content=b"x"), **fields)


def plan(clip: Tokenizer, **fields: Any) -> Plan:
    asked = request(**fields)
    check_request(asked, LIMITS)
    return finished(plan_request(asked, clip, LIMITS, everything))


def test_sentences_are_parts_where_they_are_asked_for(clip: Tokenizer) -> None:
    made = plan(clip, texts=["A cat. A dog.", "a cow", "Yes. " + WORD * 80], unit=pb.TEXT_UNIT_SENTENCES)
    assert made.groups[:4] == ["A cat.", "A dog.", "a cow", "Yes."]
    assert made.text_sizes == [2, 1, 3]
    assert made.group_sizes == [1] * 6
    assert made.split == [False] * 4 + [True] * 2
    assert made.counts(np.zeros(6, np.int32)) == [8, 4, 84]


def test_phrases_stand_beside_the_whole(clip: Tokenizer) -> None:
    phrases = [pb.Phrases(phrases=["a cat", "a sofa"]), pb.Phrases()]
    made = plan(clip, texts=["a cat on a sofa", WORD * 80], unit=pb.TEXT_UNIT_PHRASES, phrases=phrases)
    assert made.groups == ["a cat on a sofa", "a cat", "a sofa", WORD * 80]
    assert made.text_sizes == [3, 1]
    assert made.group_sizes == [1, 1, 1, 2], "a whole over the window has rows, and its score is their mean"
    assert made.counts(np.array([7, 4, 4, 77, 8])) == [7, 82]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"texts": ["a"], "unit": pb.TEXT_UNIT_PHRASES}, "PHRASES_MISMATCH"),
        ({"texts": ["a"], "phrases": [pb.Phrases()]}, "PHRASES_UNASKED"),
        ({"texts": ["a"], "unit": pb.TEXT_UNIT_PHRASES, "phrases": [pb.Phrases(phrases=[" "])]}, "TEXT_EMPTY"),
        ({"texts": ["a"], "unit": 9}, "UNIT_UNKNOWN"),
        ({"texts": ["a"], "aggregation": 9}, "AGGREGATION_UNKNOWN"),
        ({"texts": ["a"], "long_text": 9}, "LONG_TEXT_UNKNOWN"),
    ],
)
def test_requests_that_make_no_sense(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_request(request(**fields), LIMITS)
    assert caught.value.reason == reason


def test_texts_that_are_known_are_not_tokenised(clip: Tokenizer) -> None:
    made = finished(plan_texts(["a cat", "a dog"], clip, LIMITS, lambda keys: [1], reject=False))
    assert list(made.tokens) == [1]
    assert made.keys == [key_of("a cat"), key_of("a dog")]
    assert made.counts(np.array([4, 5])) == [4, 5]


def test_sentences_count_against_the_limit_of_texts(clip: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="makes over 10 parts"):
        Rows(clip, ["It is a cat. " * 20], pb.LONG_TEXT_SENTENCES, ScorerLimits(max_texts=10))


@pytest.mark.parametrize("text", ["a cat <end_of_text> and a dog", "<start_of_text>", "a <END_OF_TEXT>"])
def test_a_spelt_out_special_token_is_refused(clip: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidInput, match="spells a special token") as caught:
        Rows(clip, ["a cow", text], pb.LONG_TEXT_SENTENCES, LIMITS)
    assert caught.value.metadata["text_index"] == "1"


def test_a_text_of_which_nothing_is_left_is_refused(clip: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="nothing that the model can read"):
        Rows(clip, ["\x00\x01"], pb.LONG_TEXT_SENTENCES, LIMITS)


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
    rows = Rows(tokenizer, texts, pb.LONG_TEXT_SENTENCES)
    np.testing.assert_array_equal(rows.ids, wrapper(texts).numpy())
    assert rows.token_counts == [5, 10, 3]
    assert Rows(tokenizer, ["a " * 14], pb.LONG_TEXT_REJECT).token_counts == [16]
    with pytest.raises(InvalidInput, match=r"texts\[0\] has 17 tokens"):
        Rows(tokenizer, ["a " * 15], pb.LONG_TEXT_REJECT)
    assert Rows(tokenizer, ["a red cat . " * 5], pb.LONG_TEXT_SENTENCES).parts == [5]
    with pytest.raises(InvalidInput, match="special token"):
        Rows(tokenizer, ["a </s> cat"], pb.LONG_TEXT_SENTENCES)


def test_a_tokenizer_of_transformers_by_its_own_class_tokens(tmp_path: Path) -> None:
    wrapper = word_level(tmp_path)
    wrapper.tokenizer.cls_token = "<s>"
    wrapper.tokenizer_mode = "clips"
    tokenizer = Tokenizer(wrapper, 16)
    rows = Rows(tokenizer, ["a red square", "cat"], pb.LONG_TEXT_SENTENCES)
    np.testing.assert_array_equal(rows.ids, wrapper(["a red square", "cat"]).numpy())
    with pytest.raises(InvalidInput, match=r"texts\[0\] has 17 tokens"):
        Rows(tokenizer, ["a " * 14], pb.LONG_TEXT_REJECT)


def test_a_tokenizer_of_another_model_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="the model knows 5"):
        Tokenizer(word_level(tmp_path), 16, 5).encode(["cat"], [0])


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
