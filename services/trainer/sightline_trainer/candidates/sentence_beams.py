"""`sentence_beams`: CSR's tree of sentences (arXiv 2405.14622), grown by the policy one level of sentences at a time.

From each kept node, diverse group beam search writes `groups` next sentences, up to a stop string. Of a level's new
nodes, the `best` most likely and the `worst` least likely are continued (ranked by the sum over their sentences of the
mean log-prob per token, as CSR's code sums HF's sequence scores). A node that ends becomes a candidate. CSR's code: 5
groups, diversity 3, at most 70 tokens to ".", 1 best and 2 worst, an end at 1024 characters, sentences of 4 characters
or more.

Deviation: CSR's code ranks siblings by CLIP and log-prob in the tree; here the recipe's reward judges whole paths. At
    most `count` candidates are kept, the most likely and the least likely in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar

from pydantic import Field
from sightline.sampler import AsyncSamplerClient, Beams, Candidate, exact

from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class SentenceBeams(CandidatePart):
    """A tree of sentences, each level by diverse beam search."""

    writes: ClassVar[tuple[str, ...]] = ("policy",)

    groups: int = Field(5, ge=2, le=32, description="Number of next sentences per node, one beam group each (CSR: 5).")
    diversity_penalty: float = Field(3.0, ge=0.0, le=1000.0, description="Diversity penalty between groups (CSR: 3).")
    sentence_tokens: int = Field(70, ge=1, description="Maximum tokens per sentence (CSR: 70).")
    stop: list[str] = Field(default_factory=lambda: ["."], min_length=1, description="What ends a sentence.")
    best: int = Field(1, ge=1, description="Number of most likely nodes of a level to continue (CSR: 1).")
    worst: int = Field(2, ge=0, description="Number of least likely nodes of a level to continue (CSR: 2).")
    max_characters: int = Field(1024, ge=1, description="Length in characters at which a text ends (CSR: 1024).")
    max_sentences: int = Field(16, ge=1, le=64, description="Maximum sentences per text (our limit).")
    min_characters: int = Field(4, ge=1, description="Shorter sentences are dropped (CSR: 4).")
    count: int = Field(8, ge=2, le=256, description="Maximum number of candidates per prompt.")

    def open(self, context: SourceContext) -> Source:
        return SentenceBeamsSource(self, context.sampler)


@dataclass(frozen=True)
class _Node:
    """A partial text, and the sum of its sentences' mean log-probs."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    score: float = 0.0
    sentences: int = 0


class SentenceBeamsSource:
    """Grows a tree for the prompt's own text. It is deterministic: the same policy gives the same tree."""

    def __init__(self, settings: SentenceBeams, client: AsyncSamplerClient) -> None:
        self.settings = settings
        self.client = client

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        growing, ended = [_Node()], list[tuple[_Node, str]]()
        rendered = ""
        while growing:
            level: list[_Node] = []
            for node in growing:
                rendered, grown = await self._grown(prompt, node, ask.version)
                for child, reason in grown:
                    if reason is None:
                        level.append(child)
                    else:
                        ended.append((child, reason))
            growing = self._kept(level)
        return [
            Response(
                prompt_id=prompt.id,
                index=len(ask.made) + number,
                text=node.text,
                token_ids=node.ids,
                logprobs=node.logprobs,
                finish_reason=reason,
                policy_version=ask.version,
                rendered_prompt=rendered,
                prompt=prompt.prompt,
                source="policy",
            )
            for number, (node, reason) in enumerate(self._chosen(ended))
        ]

    async def _grown(self, prompt: Prompt, node: _Node, version: int) -> tuple[str, list[tuple[_Node, str | None]]]:
        """The children of a node, with the finish reason of those that end."""
        settings = self.settings
        samples = await self.client.sample(
            prompt.images,
            prompt.asked(),
            settings.groups,
            beams=Beams(settings.groups, settings.diversity_penalty),
            stop=tuple(settings.stop),
            max_tokens=settings.sentence_tokens,
            continue_from=node.ids,
            policy=exact(version),
        )
        children = [(child, self._child(node, child)) for child in samples.candidates]
        return samples.rendered_prompt, [
            (grown, self._end(grown, child))
            for child, grown in children
            if child.finish_reason == "eos" or len(grown.text) - len(node.text) >= settings.min_characters
        ]

    def _child(self, node: _Node, child: Candidate) -> _Node:
        logprobs = [float(value) for value in child.logprobs]
        # The text is cut before its stop string, but its tokens are not; the first of several stands for all.
        text = child.text + (self.settings.stop[0] if child.finish_reason == "stop" else "")
        return _Node(
            [*node.ids, *(int(token) for token in child.token_ids)],
            [*node.logprobs, *logprobs],
            text,
            node.score + (fmean(logprobs) if logprobs else 0.0),
            node.sentences + 1,
        )

    def _end(self, node: _Node, child: Candidate) -> str | None:
        if child.finish_reason != "stop":
            return child.finish_reason
        settings = self.settings
        full = len(node.text) >= settings.max_characters or node.sentences >= settings.max_sentences
        return "length" if full else None

    def _kept(self, level: Sequence[_Node]) -> list[_Node]:
        """The best and the worst, without duplicates."""
        best, worst = self.settings.best, self.settings.worst
        ranked = sorted(level, key=lambda node: -node.score)
        return ranked if len(ranked) <= best + worst else [*ranked[:best], *ranked[len(ranked) - worst :]]

    def _chosen(self, ended: Sequence[tuple[_Node, str]]) -> list[tuple[_Node, str]]:
        """At most `count`, from both ends of the ranking by mean score, each text once."""
        texts: dict[str, tuple[_Node, str]] = {}
        for node, reason in ended:
            texts.setdefault(node.text, (node, reason))
        ranked = sorted(texts.values(), key=lambda one: -one[0].score / max(1, one[0].sentences))
        taken: list[tuple[_Node, str]] = []
        while ranked and len(taken) < self.settings.count:
            taken.append(ranked.pop(0 if len(taken) % 2 == 0 else -1))
        return taken
