"""Tokenizers and chat templates of the tiny checkpoints, made here in the form of each family's own."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_TEXT = """
describe the picture . there is a an and red blue green yellow star circle square triangle what in this yes no
one two three user assistant : ? left right of above below
"""
WORDS = _TEXT.split()


def tokenizer(
    *special: str,
    bos: str = "<s>",
    eos: str = "</s>",
    pad: str = "<pad>",
    begins: bool = False,
    named: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer of words and line breaks, with a family's special tokens.

    Args:
        special: further special tokens.
        bos: written before each text where `begins`, as the tokenizers of Llama and Gemma do.
        eos: ends a turn.
        pad: fills up.
        begins: whether the tokenizer writes `bos` itself.
        named: attributes that the family's processor reads from its tokenizer, `image_token` and the like.
    """
    named = dict(named or {})
    ids: dict[str, int] = {}
    for word in (pad, bos, eos, "<unk>", *special, *named.values(), "\n", *WORDS):
        ids.setdefault(word, len(ids))
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^\s]+"), "removed", invert=True)
    if begins:
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        extra_special_tokens={**named, **{f"special_{i}": name for i, name in enumerate(special)}},
    )


def template(turn: str, end: str, answer: str, image: str, *, begin: str = "", images_first: bool = False) -> str:
    """A chat template in Jinja.

    Args:
        turn: begins a turn; `{role}` is its role.
        end: ends it.
        answer: what an answer begins with.
        image: stands for an image.
        begin: what a conversation begins with.
        images_first: whether a turn's images stand before its text, wherever the message has them.
    """

    def quoted(text: str) -> str:
        return repr(text)

    before, _, after = turn.partition("{role}")
    role = f"{quoted(before)} + message['role'] + {quoted(after)}" if "{role}" in turn else quoted(turn)
    text = "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    shown = f"{{% if part['type'] == 'image' %}}{{{{ {quoted(image)} }}}}"
    if images_first:
        text += f"{{% for part in message['content'] %}}{shown}{{% endif %}}{{% endfor %}}"
        text += "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    else:
        text += f"{{% for part in message['content'] %}}{shown}{{% elif part['type'] == 'text' %}}"
    text += "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    return (
        f"{{{{ {quoted(begin)} }}}}{{% for message in messages %}}{{{{ {role} }}}}{text}{{{{ {quoted(end)} }}}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {quoted(answer)} }}}}{{% endif %}}"
    )


def chatml(image: str, *, answer: str = "", begin: str = "") -> str:
    """The template of the Qwen families and of others that adopted it."""
    return template("<|im_start|>{role}\n", "<|im_end|>\n", f"<|im_start|>assistant\n{answer}", image, begin=begin)
