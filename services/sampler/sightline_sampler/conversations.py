"""Reads the image and prompt, or the conversation, of a request within its limits."""

from __future__ import annotations

from typing import cast, get_args

from sightline.convert import enum_name
from sightline.errors import InvalidInput
from sightline.sampler.turns import Role, Turn, check_turns, user_turn
from sightline.sampler.v1 import sampler_pb2 as pb

from sightline_sampler.engines.base import Conversation
from sightline_sampler.request_images import RequestImages
from sightline_sampler.settings import SamplerLimits


class ConversationReader:
    """Reads conversations.

    Args:
        limits: limits of images, turns and texts.
        images: resolves images by digest.
    """

    def __init__(self, limits: SamplerLimits, images: RequestImages) -> None:
        self._limits, self._images = limits, images

    def read(self, message: pb.SampleRequest | pb.ScoreTokensRequest | pb.Probe) -> Conversation:
        """The turns of a message, and their images.

        Raises:
            InvalidInput: there is nothing to answer, or the conversation is malformed or over a limit.
            NotFound: an image named by digest is not stored.
        """
        if not message.turns:
            turns: tuple[Turn, ...] = user_turn(message.prompt, int(message.HasField("image")))
            shown = [message.image] if message.HasField("image") else []
        elif message.prompt or message.HasField("image"):
            raise InvalidInput("the request has turns and also image or prompt: send only one form", reason="BAD_TURNS")
        else:
            _refuse_over("turns", len(message.turns), self._limits.max_turns, "TOO_MANY_TURNS")
            turns = tuple(_turn(turn, number) for number, turn in enumerate(message.turns))
            shown = [part.image for turn in message.turns for part in turn.parts if part.HasField("image")]
        check_turns(turns)
        self.check_size(turns)
        _refuse_over("images", len(shown), self._limits.max_images, "TOO_MANY_IMAGES")
        return Conversation(turns, tuple(self._images.resolve(image) for image in shown))

    def check_size(self, turns: tuple[Turn, ...]) -> None:
        """Raises InvalidInput if the texts of the turns are over the limit."""
        size, most = sum(len(part.encode()) for turn in turns for part in turn.content if part), self._limits
        if size > most.max_prompt_bytes:
            raise InvalidInput(
                f"the prompt has {size} bytes; the limit is {most.max_prompt_bytes}",
                reason="PROMPT_TOO_LARGE",
                metadata={"limit_bytes": str(most.max_prompt_bytes)},
            )


def _turn(turn: pb.Turn, number: int) -> Turn:
    role = enum_name(pb.Role.DESCRIPTOR, turn.role)
    if role not in get_args(Role):
        raise InvalidInput(f"turns[{number}] has an unknown role: use system, user or assistant", reason="BAD_TURNS")
    if any(part.WhichOneof("kind") is None for part in turn.parts):
        raise InvalidInput(f"turns[{number}] has a part that is neither text nor image: remove it", reason="BAD_TURNS")
    content = tuple(None if part.HasField("image") else part.text for part in turn.parts)
    return Turn(cast(Role, role), content)


def _refuse_over(what: str, count: int, most: int, reason: str) -> None:
    if count > most:
        raise InvalidInput(
            f"the request has {count} {what}; at most {most} are allowed", reason=reason, metadata={"limit": str(most)}
        )
