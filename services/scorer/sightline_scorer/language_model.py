"""P(yes): a language model behind a sampler says whether a picture shows a text (VQAScore, Lin et al. 2024,
arXiv:2404.01291).

The number is the probability that the reply begins with `answer`: the product over its tokens, under the policy at
temperature 1. With `against` it is answer / (answer + against). It uses the version that the sampler served when this
model was loaded, so that equal questions keep equal answers; a reload switches to the version served then.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

from sightline.errors import InternalError, PreconditionFailed
from sightline.sampler import AsyncSamplerClient, Exact, PolicyInfo, exact
from sightline_chassis.shipped import model_place

from sightline_scorer.credential_files import credentials
from sightline_scorer.settings import ModelSettings, SamplerConnection


@dataclass(frozen=True)
class Reply:
    """An answer, and its tokens."""

    text: str
    ids: tuple[int, ...]


class LanguageModel:
    """Asks a sampler. Use it from one event loop.

    Args:
        settings: the model's, of kind vqa.
        policy: the policy that answers.
        replies: `answer`, and `against` if there is one.
    """

    def __init__(
        self, settings: ModelSettings, client: AsyncSamplerClient, policy: PolicyInfo, replies: tuple[Reply, ...]
    ) -> None:
        self._question = settings.question
        self._timeout = (settings.sampler or SamplerConnection()).timeout_seconds
        self._client = client
        self.policy = policy
        self._replies = replies

    @property
    def selector(self) -> Exact:
        """The policy that answers, even if another one becomes active."""
        return exact(self.policy.version, run_id=self.policy.run_id)

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the policy's manifest, or of the base model's weights, hexadecimal."""
        return self.policy.digest

    @property
    def question_digest(self) -> str:
        """SHA-256 of the question and the replies, hexadecimal."""
        facts = [self._question, *(list(reply.ids) for reply in self._replies)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    async def __call__(self, picture: bytes, text: str) -> float:
        """The probability, 0 to 1.

        Raises:
            SightlineError: the errors of the sampler's ScoreTokens.
        """
        question = self._question.replace("{text}", text)
        masses = []
        for reply in self._replies:
            found = await self._client.score_tokens(
                picture, question, reply.ids, policy=self.selector, timeout=self._timeout
            )
            masses.append(math.exp(float(found.logprobs.sum(dtype="f8"))))
        value = masses[0] if len(masses) == 1 else masses[0] / sum(masses) if sum(masses) else math.nan
        if not math.isfinite(value):
            raise InternalError(
                "the log-probs of the sampler behind this model are not finite, so there is no score: check the "
                "sampler's model"
            )
        return value

    async def close(self) -> None:
        """Close the connection; the sampler is not ours to stop."""
        await self._client.close()


async def language_model(settings: ModelSettings) -> LanguageModel:
    """Connect, and find out which policy answers.

    Raises:
        PreconditionFailed: NO_SCORES: the sampler's engine cannot score given tokens; ANSWER_UNREADABLE.
        SightlineError: the sampler is unavailable.
    """
    connection = settings.sampler or SamplerConnection()
    replies = tuple(_reply(settings, text) for text in (settings.answer, settings.against) if text is not None)
    client = AsyncSamplerClient(settings.source, **credentials(connection))
    try:
        policies = await client.policies(timeout=connection.timeout_seconds)
        if not policies.capabilities.scores:
            raise PreconditionFailed(
                f"the sampler at {settings.source} ({policies.capabilities.engine}) cannot score given tokens: name one"
                " whose engine can",
                reason="NO_SCORES",
            )
        return LanguageModel(settings, client, policies.active, replies)
    except BaseException:
        await client.close()
        raise


def _reply(settings: ModelSettings, text: str) -> Reply:
    from transformers import AutoTokenizer

    assert settings.tokenizer is not None
    tokenizer = AutoTokenizer.from_pretrained(model_place(settings.tokenizer))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise PreconditionFailed(
            f"the tokenizer {settings.tokenizer} has no tokens for the answer {text!r}: write it as the model does",
            reason="ANSWER_UNREADABLE",
        )
    return Reply(text, tuple(int(each) for each in ids))
