"""The two word-level tokenizers (the scorer's and the LVLM's) and the LVLM's chat template.

Both are ordinary fast tokenizers of transformers that split on white space and punctuation and know every word of the
world's captions and questions; anything else becomes <unk>.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sightline_playground.captions import OPENINGS, PROMPTS
from sightline_playground.truth import RELATIONS
from sightline_playground.world import COLOURS, PLACES, SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD: Final = "<pad>"
UNKNOWN: Final = "<unk>"
BOS: Final = "<s>"
EOS: Final = "</s>"
IMAGE: Final = "<image>"
CLIP_START: Final = "<start_of_text>"
CLIP_END: Final = "<end_of_text>"

CLIP_CONTEXT: Final = 77
"""Tokens of the scorer's text window, as in OpenAI's CLIP; the longest caption of the training set has about 60."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}"
    "{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's format, with the end token after the assistant's turn."""


def words() -> list[str]:
    """Every word that captions, questions, prompts and the chat template use, sorted."""
    texts = itertools.chain(
        COLOURS,
        SHAPES,
        PLACES,
        OPENINGS,
        PROMPTS,
        RELATIONS,
        ["and a an the too", "is there in the picture ?", "yes no . , : user assistant"],
    )
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """The scorer's tokenizer: <start_of_text> words <end_of_text>.

    The end token has the largest id, because open_clip's text tower pools at the largest id (pool_type "argmax").
    """
    vocabulary = [PAD, UNKNOWN, *words(), CLIP_START, CLIP_END]
    return _tokenizer(
        vocabulary,
        template=f"{CLIP_START} $A {CLIP_END}",
        specials={"bos_token": CLIP_START, "eos_token": CLIP_END},
        padding_side="right",
        model_max_length=CLIP_CONTEXT,
    )


def lvlm_tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The LVLM's tokenizer: it puts <s> in front, as LLaVA's does, and nothing at the end. Pads on the left.

    Args:
        extra: tokens to append after all others, so that the others keep their numbers.
    """
    vocabulary = [PAD, UNKNOWN, BOS, EOS, IMAGE, *words(), *extra]
    tokenizer = _tokenizer(
        vocabulary,
        template=f"{BOS} $A",
        specials={"bos_token": BOS, "eos_token": EOS, "extra_special_tokens": {"image_token": IMAGE}},
        padding_side="left",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _tokenizer(
    vocabulary: list[str], template: str, specials: dict[str, Any], padding_side: str, model_max_length: int
) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [word for word in vocabulary if word.startswith("<")]
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(mark, numbers[mark]) for mark in marks if mark in template.split()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side=padding_side,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        **specials,
    )
