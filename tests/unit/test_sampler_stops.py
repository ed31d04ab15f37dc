"""Stop strings over a real tokenizer's bytes and spaces."""

import pytest
from sightline_sampler.engines.local.stops import cut, holds_stop
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token per byte, so a character may be several tokens."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model = models.BPE({"</s>": 0, **{c: i for i, c in enumerate(sorted(alphabet), start=1)}}, [])
    words = Tokenizer(model)
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")


def first_stop(tokenizer: PreTrainedTokenizerFast, text: str, stop: tuple[str, ...]) -> str | None:
    """Feed a text token by token, as decoding does; return the text when it stopped."""
    ids: list[int] = []
    for token in tokenizer(text)["input_ids"]:
        ids.append(token)
        if holds_stop(tokenizer, ids, stop):
            return str(tokenizer.decode(ids))
    return None


@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("one. two", (".",), "one."),
        ("one two", (".",), None),
        ("x" * 300 + "STOP more", ("STOP",), "x" * 300 + "STOP"),
        ("ab\n\ncd\n\nef", ("\n\n",), "ab\n\n"),
        ("aab aac", ("aac", "zz"), "aab aac"),
        ("größer als Öl", ("Öl",), "größer als Öl"),
        ("größer als Öl", ("ß",), "größ"),
        ("日本語。続き", ("。",), "日本語。"),
        ("S" * 40 + "ST", ("ST",), "S" * 40 + "ST"),
    ],
)
def test_it_stops_at_the_token_that_completes_one(
    tokenizer: PreTrainedTokenizerFast, text: str, stop: tuple[str, ...], said: str | None
) -> None:
    assert first_stop(tokenizer, text, stop) == said


def test_the_text_ends_before_the_first_of_them() -> None:
    assert cut("one. two! three", (".",)) == "one"
    assert cut("one. two! three", ("!", ".")) == "one"
    assert cut("one two", (".",)) == "one two"
    assert cut(".", (".",)) == ""
