"""`reference`: the dataset's annotation as a candidate for the chosen side (POVID, BPO)."""

from __future__ import annotations

from typing import ClassVar

from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.row_gate import RowGate


class Reference(CandidatePart):
    """The annotation of the dataset."""

    writes: ClassVar[tuple[str, ...]] = ("reference",)

    def open(self, context: SourceContext) -> Source:
        return ReferenceSource(context.gate)


class ReferenceSource:
    """One candidate for each prompt with an annotation, for every user's text that was asked about it."""

    def __init__(self, gate: RowGate) -> None:
        self.gate = gate

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        if not prompt.reference:
            return []
        asked = list(dict.fromkeys(candidate.prompt for candidate in ask.made)) or [prompt.prompt]
        return [
            unsampled(self.gate, prompt, text, prompt.reference, index=len(ask.made) + number, source="reference")
            for number, text in enumerate(asked)
        ]


def unsampled(
    gate: RowGate, prompt: Prompt, asked: str, text: str, *, index: int, source: str, statement: str = ""
) -> Response:
    """A candidate that no policy sampled, tokenised as if the policy had written it. If the gate refuses it, it has no
    tokens and says why."""
    ids, fault = gate.tokenised(prompt, asked, text)
    return Response(
        prompt_id=prompt.id,
        index=index,
        text=text,
        token_ids=ids,
        rendered_prompt="" if fault else gate.template.prompt(prompt.asked(asked)),
        prompt=asked,
        source=source,
        statement=statement,
        fault=fault,
    )
