"""What can go wrong with a call, and what follows from it.

A status of the service carries one ErrorInfo with a reason; a status without one was made by the
transport, a proxy or the library. The table at the head of chatbot.proto is the source of all of it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import grpc
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "chatbot.v1.Chatbot"
#: A turn that failed for one of these stays failed.
OF_A_TURN = frozenset(
    {"INTERRUPTED", "TURN_TIMEOUT", "UPSTREAM_UNAVAILABLE", "UPSTREAM_TRUNCATED"}
)
#: What a broken connection can look like, where the status is not the service's own.
OF_A_CONNECTION = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class ChatbotError(Exception):
    """A call that has failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason or failure.code.name}: {failure.message}")
        self.code = failure.code
        #: One of the reasons of chatbot.proto; empty where the status is not the service's own.
        self.reason = failure.reason
        self.message = failure.message
        #: Seconds after which a repetition may help; None: none is asked for.
        self.retry_after = failure.retry_after
        #: Of the ErrorInfo.
        self.metadata = failure.metadata
        #: (field, what is wrong with it)
        self.violations = failure.violations


class TurnFailed(ChatbotError):
    """The turn is over and has no answer. A new attempt is a new call, with a new request_id."""

    def __init__(self, failure: Failure, turn_id: str, partial_text: str) -> None:
        super().__init__(failure)
        self.turn_id = turn_id
        #: What had been said until then, as far as it is known.
        self.partial_text = partial_text


class ConversationBusy(ChatbotError):
    """Another turn is running in this conversation."""

    @property
    def turn_id(self) -> str:
        """The turn that is running."""
        return self.metadata.get("turn_id", "")


class ClientClosed(ChatbotError):
    """The client was closed, before the call or during it."""

    def __init__(self) -> None:
        super().__init__(Failure(grpc.StatusCode.CANCELLED, "the client is closed"))


class OutOfOrder(ChatbotError):
    """The server has broken the contract: an event came with a number that is not the next."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure(grpc.StatusCode.INTERNAL, message))


class Kind(enum.Enum):
    """What follows from a failure."""

    AGAIN = enum.auto()  #: the same request, after a pause
    AGAIN_IN_TIME = enum.auto()  #: the same, but only because the server has said when
    RESTART = enum.auto()  #: the same request, from the beginning
    BUSY = enum.auto()
    TURN = enum.auto()  #: the turn has failed
    FATAL = enum.auto()


@dataclass(frozen=True)
class Failure:
    """A status, taken apart."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    retry_after: Optional[float] = None
    #: The server has said by its pushback that it wants no repetition.
    refused: bool = False
    metadata: Dict[str, str] = field(default_factory=dict)
    violations: List[Tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, error: Any) -> Failure:
        """Of what grpcio raises, sync or asyncio."""
        reason, metadata, violations = "", {}, []
        retry_after: Optional[float] = None
        refused = False
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in status_pb2.Status.FromString(value).details:
                    info = error_details_pb2.ErrorInfo()
                    retry = error_details_pb2.RetryInfo()
                    bad = error_details_pb2.BadRequest()
                    if detail.Unpack(info) and info.domain == DOMAIN:
                        reason, metadata = info.reason, dict(info.metadata)
                    elif detail.Unpack(retry):
                        delay = retry.retry_delay
                        told = delay.seconds + delay.nanos / 1e9
                        retry_after = max(told, retry_after or 0.0)
                    elif detail.Unpack(bad):
                        violations = [(it.field, it.description) for it in bad.field_violations]
            elif key == "grpc-retry-pushback-ms":
                # A negative or unreadable value is a no (gRFC A6).
                try:
                    pushback = int(value) / 1000
                except ValueError:
                    pushback = -1.0
                refused = pushback < 0
                retry_after = max(pushback, retry_after or 0.0)
        if refused:
            retry_after = None
        code, message = error.code(), error.details() or ""
        return cls(code, message, reason, retry_after, refused, metadata, violations)

    @property
    def kind(self) -> Kind:
        """What follows from it, for a request that the server recognises by its id."""
        code = grpc.StatusCode
        if self.reason in OF_A_TURN:
            return Kind.TURN
        if self.reason == "RESUME_TOKEN_INVALID":
            return Kind.RESTART
        if self.reason == "TURN_IN_PROGRESS":
            return Kind.BUSY
        if self.refused:
            return Kind.FATAL
        if self.code is code.RESOURCE_EXHAUSTED:
            return Kind.FATAL if self.retry_after is None else Kind.AGAIN_IN_TIME
        if self.code is code.UNAVAILABLE:
            return Kind.AGAIN
        if not self.reason and self.code in OF_A_CONNECTION:
            return Kind.AGAIN
        # The request did not arrive in time. Where it is the caller's own limit, no time is left.
        if self.reason == "DEADLINE_EXCEEDED":
            return Kind.AGAIN
        return Kind.FATAL

    def error(self) -> ChatbotError:
        """What a caller gets."""
        return ConversationBusy(self) if self.kind is Kind.BUSY else ChatbotError(self)


SILENT = Failure(grpc.StatusCode.UNAVAILABLE, "the stream was silent for too long")
ENDED_EARLY = Failure(grpc.StatusCode.UNAVAILABLE, "the stream ended before its turn did")
ENDING = Failure(grpc.StatusCode.UNAVAILABLE, "the server ends the connection")
