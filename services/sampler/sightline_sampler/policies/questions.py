"""Turns probe messages into questions for the engine: shapes and numbers are checked first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sightline.errors import InvalidInput
from sightline.sampler.v1 import sampler_pb2 as pb

from sightline_sampler.conversations import ConversationReader
from sightline_sampler.policies.proving import ProbeQuestion
from sightline_sampler.settings import GateSettings

_MOST = 4096


def read_questions(
    messages: Sequence[pb.Probe], conversations: ConversationReader, settings: GateSettings
) -> list[ProbeQuestion]:
    """The probes of a request; may be empty.

    Raises:
        InvalidInput: lengths differ, a number is not finite, there are too few tokens to decide, or a probe's question
            is invalid.
        NotFound: an image named by digest is not stored.
    """
    if len(messages) > _MOST:
        raise _bad(f"{len(messages)} probes; the limit is {_MOST}")
    questions = [_read(number, message, conversations) for number, message in enumerate(messages)]
    tokens = sum(len(question.token_ids) for question in questions)
    if questions and tokens < settings.min_tokens:
        raise _bad(
            f"the probes have {tokens} tokens in total; at least {settings.min_tokens} are needed (gate.min_tokens)"
        )
    return questions


def _read(number: int, message: pb.Probe, conversations: ConversationReader) -> ProbeQuestion:
    count = len(message.token_ids)
    if not count:
        raise _bad(f"probes[{number}] has no token_ids")
    if len(message.logprobs) != count or len(message.previous_logprobs) not in (0, count):
        raise _bad(
            f"probes[{number}] has {count} token_ids, {len(message.logprobs)} logprobs and "
            f"{len(message.previous_logprobs)} previous_logprobs: give one for each token (previous ones, or none)"
        )
    new, previous = (np.array(values, dtype=np.float64) for values in (message.logprobs, message.previous_logprobs))
    if not (np.isfinite(new).all() and np.isfinite(previous).all()):
        raise _bad(f"probes[{number}] has a log-probability that is not finite")
    return ProbeQuestion(
        asked=conversations.read(message),
        token_ids=list(message.token_ids),
        trainer=new,
        trainer_previous=previous if len(previous) else None,
    )


def _bad(message: str) -> InvalidInput:
    return InvalidInput(message, reason="BAD_PROBES")
