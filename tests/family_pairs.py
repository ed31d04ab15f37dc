"""Preference pairs of random tokens on photos of mixed shapes, for a tiny checkpoint of any family."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from families import FAMILIES, OTHERS, photos
from sightline_trainer.pairs.build import FEATURES
from transformers import AutoProcessor

# Three photos of other shapes; ragged lengths; a response that stands in three pairs.
LAYOUT = [(0, 1, 2), (0, 1, 3), (0, 4, 1), (1, 4, 0), (2, 1, 3)]
TURN_END = {"gemma3": "<end_of_turn>"}


def family_pairs(model: Path, family: str, layout: list[tuple[int, int, int]] = LAYOUT) -> Dataset:
    """Pairs for (prompt, chosen, rejected): equal prompt numbers share an image and text, equal response numbers of one
    prompt are one response. Lengths differ with the numbers."""
    processor = AutoProcessor.from_pretrained(model)
    template = (FAMILIES | OTHERS)[family].template
    tokenizer = processor.tokenizer
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("star", "circle", "blue", "left", "of", "two", "one")]
    rows = []
    for prompt, chosen, rejected in layout:
        question = "describe the picture . " + "blue star " * prompt
        content = [{"type": "image"}, {"type": "text", "text": question}]
        more = {"chat_template": template} if template else {}
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, **more
        )
        row = {
            "prompt_id": f"p{prompt}", "images": [{"bytes": photos()[prompt], "path": f"{prompt}.jpg"}],
            "prompt": [{"role": "user", "content": question}], "rendered_prompt": rendered,
            "margin": 5.0, "iteration": 1,
        }  # fmt: skip
        for side, number in (("chosen", chosen), ("rejected", rejected)):
            generator = torch.Generator().manual_seed(100 * prompt + number)
            picked = torch.randint(len(words), (3 + 2 * number,), generator=generator).tolist()
            ids = [words[at] for at in picked]
            row |= {
                f"{side}_ids": [*ids, tokenizer.eos_token_id], f"{side}_reward": 0.0, f"{side}_policy_version": 0,
                f"{side}_index": number, side: [{"role": "assistant", "content": tokenizer.decode(ids)}],
            }  # fmt: skip
        rows.append({name: row.get(name) for name in FEATURES})
    return Dataset.from_list(rows, features=FEATURES)
