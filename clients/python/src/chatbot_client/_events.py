"""What a caller is told of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from .v1 import chatbot_pb2 as pb


@dataclass(frozen=True)
class _Of:
    #: The event as the server sent it: sequence_number, resume_token, create_time.
    raw: pb.Event

    @property
    def turn_id(self) -> str:
        """The turn that it belongs to; empty for a message that wants no answer."""
        return self.raw.turn_id

    @property
    def conversation_id(self) -> str:
        return self.raw.conversation_id


@dataclass(frozen=True)
class Posted(_Of):
    """A participant said something."""

    participant_id: str
    text: str
    request_id: str


@dataclass(frozen=True)
class Delta(_Of):
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class Completed(_Of):
    """The turn is over. Its text replaces all pieces."""

    answer: pb.TurnCompleted

    @property
    def text(self) -> str:
        return self.answer.text


@dataclass(frozen=True)
class Failed(_Of):
    """A turn of the conversation is over and has no answer. Only in a conversation that was joined:
    a single turn raises TurnFailed."""

    code: int
    reason: str
    partial_text: str


@dataclass(frozen=True)
class Restarted:
    """The server has lost its place: all that was shown of the turn, or of the conversation that was
    joined, is void and comes again from the beginning."""


Event = Union[Posted, Delta, Completed, Failed, Restarted]


def event_of(raw: pb.Event) -> Union[Posted, Delta, Completed, Failed, None]:
    """None: an event of a newer contract."""
    kind = raw.WhichOneof("event")
    if kind == "message_posted":
        said = raw.message_posted
        return Posted(raw, said.participant_id, said.text, said.request_id)
    if kind == "text_delta":
        return Delta(raw, raw.text_delta)
    if kind == "turn_completed":
        return Completed(raw, raw.turn_completed)
    if kind == "turn_failed":
        failed = raw.turn_failed
        return Failed(raw, failed.code, failed.reason, failed.partial_text)
    return None
