"""PairCollator: preference pairs as TRL's batches, with the tokens that were sampled.

TRL's own vision collator tokenises the response text again; what was sampled (and its end token) would be lost.
This one takes ``chosen_ids`` and ``rejected_ids`` as they are, begins the prompt as the sampler did (TRL's leaves out
the begin token that the model's tokenizer adds), and processes each image once a pair.
"""

from __future__ import annotations

from typing import Any

import torch


class PairCollator:
    """Makes a batch of 2 B rows, chosen first, from B pairs.

    Returns ``input_ids``, ``attention_mask`` and ``completion_mask`` of shape [2 B, L], padded on the right, the
    processor's image tensors repeated for both halves, and ``ref_chosen_logps`` / ``ref_rejected_logps`` of shape
    [B] where the pairs carry them. Nothing is truncated: image tokens are never cut.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.pad_id = processor.tokenizer.pad_token_id

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [[image.convert("RGB") for image in pair["images"]] for pair in pairs]
        texts = [pair["rendered_prompt"] for pair in pairs]
        bos = self.processor.tokenizer.bos_token
        batch = self.processor(
            images=images if any(images) else None,
            text=texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            # As the sampler does: a template that writes the begin token itself gets no second one.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
        prompt_mask = batch.pop("attention_mask").bool()
        prompts = [ids[mask] for ids, mask in zip(batch.pop("input_ids"), prompt_mask, strict=True)]
        types = batch.pop("mm_token_type_ids", None)
        rows = [
            (prompt, torch.tensor(pair[side]))
            for side in ("chosen_ids", "rejected_ids")
            for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        length = max(len(prompt) + len(response) for prompt, response in rows)
        input_ids = torch.full((len(rows), length), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        completion_mask = torch.zeros_like(input_ids)
        for i, (prompt, response) in enumerate(rows):
            end = len(prompt) + len(response)
            input_ids[i, :end] = torch.cat([prompt, response])
            attention_mask[i, :end] = 1
            completion_mask[i, len(prompt) : end] = 1
        output = {key: torch.cat([value, value]) for key, value in batch.items()}
        if types is not None:
            token_types = torch.zeros_like(input_ids)
            for i, prompt in enumerate(prompts * 2):
                token_types[i, : len(prompt)] = types[i % len(pairs)][prompt_mask[i % len(pairs)]]
            output["mm_token_type_ids"] = token_types
        output.update(input_ids=input_ids, attention_mask=attention_mask, completion_mask=completion_mask)
        if "ref_chosen_logps" in pairs[0]:
            for key in ("ref_chosen_logps", "ref_rejected_logps"):
                output[key] = torch.tensor([pair[key] for pair in pairs])
        return output
