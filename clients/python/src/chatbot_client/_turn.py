"""A turn and a conversation as a client sees them over many connections. No IO: the sync and the
asyncio client drive the same state."""

from __future__ import annotations

import uuid
from collections import deque
from typing import Deque, Dict, List, Optional, Tuple

import grpc

from ._errors import ENDED_EARLY, Failure, Kind, OutOfOrder, TurnFailed
from ._events import Completed, Delta, Event, Failed, Posted, Restarted, event_of
from ._retry import Attempts
from .v1 import chatbot_pb2 as pb

#: Gives a number's code.
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Place:
    """How far the log was read: each event once, in its order."""

    def __init__(self, resume_token: str = "") -> None:
        self.resume_token = resume_token
        self._sequence = 0
        #: The newest, to tell a repetition from a contradiction.
        self._seen: Deque[Tuple[int, str]] = deque(maxlen=1024)

    def is_new(self, event: pb.Event) -> bool:
        """Takes note of it."""
        at = (event.sequence_number, event.resume_token)
        if event.sequence_number <= self._sequence:
            if at in self._seen:
                return False
            raise OutOfOrder(f"event {at[0]} came after event {self._sequence}")
        self._sequence = event.sequence_number
        self.resume_token = event.resume_token
        self._seen.append(at)
        return True

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]


class TurnState:
    """One turn: what to send, what to show, what follows from a failure."""

    def __init__(self, request: pb.ChatRequest, attempts: Attempts) -> None:
        self._request = request
        self.attempts = attempts
        self._place = Place(request.resume_token)
        self.conversation_id = request.conversation_id
        self.text = ""
        self.over = False

    @property
    def resume_token(self) -> str:
        return self._place.resume_token

    def request(self) -> pb.ChatRequest:
        """The same request each time, but for the place."""
        request = pb.ChatRequest()
        request.CopyFrom(self._request)
        request.resume_token = self._place.resume_token
        return request

    def accept(self, raw: pb.Event) -> Optional[Event]:
        """What to show of an event. Raises where the turn has failed."""
        if self.over or not self._place.is_new(raw):
            return None
        self.attempts.heard()
        self.conversation_id = raw.conversation_id
        event = event_of(raw)
        if isinstance(event, Delta):
            self.text += event.text
        elif isinstance(event, Completed):
            self.text = event.text
            self.over = True
        elif isinstance(event, Failed):
            self.over = True
            code = CODES.get(event.code, grpc.StatusCode.UNKNOWN)
            failure = Failure(code, "the turn has failed", event.reason)
            raise TurnFailed(failure, event.turn_id, event.partial_text)
        return event

    def lost(self, failure: Failure = ENDED_EARLY) -> Tuple[float, Optional[Event]]:
        """How long to wait before the request is sent again, and what to show before that. Raises
        where it is not."""
        if failure.kind is Kind.TURN:
            raise TurnFailed(failure, self._request.request_id, self.text)
        if failure.kind is Kind.RESTART:
            if not self._place.resume_token:
                raise failure.error()
            wait = self.attempts.after(failure)
            self._place.reset()
            self.text = ""
            return wait, Restarted()
        return self.attempts.after(failure), None


class SessionState:
    """A conversation that was joined: the same, and what was said and not yet heard back."""

    def __init__(self, conversation_id: str, resume_token: str, attempts: Attempts) -> None:
        self.attempts = attempts
        self.conversation_id = conversation_id
        self._place = Place(resume_token)
        self._posts: Dict[str, pb.PostMessage] = {}
        self._cancels: List[str] = []
        self._over: Deque[str] = deque(maxlen=64)
        self.finishing = False

    @property
    def resume_token(self) -> str:
        return self._place.resume_token

    def opening(self) -> List[pb.ConverseRequest]:
        """What a new stream begins with: all that the log does not have yet, as far as it was heard.
        What it has is recognised by its id."""
        join = pb.Join(conversation_id=self.conversation_id, resume_token=self.resume_token)
        posts = [pb.ConverseRequest(post_message=post) for post in self._posts.values()]
        cancels = [self._cancel(turn) for turn in self._cancels]
        return [pb.ConverseRequest(join=join), *posts, *cancels]

    def post(self, text: str, engine: int, no_reply: bool) -> Tuple[str, pb.ConverseRequest]:
        request_id = str(uuid.uuid4())
        post = pb.PostMessage(request_id=request_id, text=text, no_reply=no_reply)
        post.engine = engine  # type: ignore[assignment]
        self._posts[request_id] = post
        return request_id, pb.ConverseRequest(post_message=post)

    def cancel(self, turn_id: str) -> Optional[pb.ConverseRequest]:
        if turn_id in self._over:
            return None
        if not self.conversation_id and not self._posts:
            raise ValueError("nothing was said here yet")
        self._cancels.append(turn_id)
        return self._cancel(turn_id)

    @staticmethod
    def _cancel(turn_id: str) -> pb.ConverseRequest:
        return pb.ConverseRequest(cancel_turn=pb.CancelTurnRequest(turn_id=turn_id))

    def accept(self, raw: pb.Event) -> Optional[Event]:
        if not self._place.is_new(raw):
            return None
        self.attempts.heard()
        self.conversation_id = raw.conversation_id
        event = event_of(raw)
        if isinstance(event, Posted):
            self._posts.pop(event.request_id, None)
        elif isinstance(event, (Completed, Failed)):
            self._over.append(event.turn_id)
            self._cancels = [turn for turn in self._cancels if turn != event.turn_id]
        return event

    @property
    def finished(self) -> bool:
        """Whether a stream that has ended well is the end."""
        return self.finishing and not self._posts

    def lost(self, failure: Failure) -> Tuple[float, Optional[Event]]:
        if failure.kind is Kind.RESTART:
            if not self._place.resume_token:
                raise failure.error()
            wait = self.attempts.after(failure)
            self._place.reset()
            return wait, Restarted()
        return self.attempts.after(failure), None
