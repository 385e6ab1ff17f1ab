"""The client for threads."""

from __future__ import annotations

import queue
import threading
from typing import Any, Callable, Iterable, Iterator, List, Optional, Union

import grpc

from . import _requests as make
from ._errors import ENDED_EARLY, ENDING, SILENT, ClientClosed, Failure, Kind, TurnFailed
from ._events import Event
from ._options import Health, Options
from ._retry import Attempts, Budget
from ._turn import SessionState, TurnState
from ._watchdog import Watchdog
from .v1 import chatbot_pb2 as pb
from .v1 import chatbot_pb2_grpc as rpc

#: For the last words of a turn that is over, which nobody needs.
GOODBYE = 1.0


class Client:
    """One channel to the service, for all threads of a process. Close it, or use it as a context
    manager; never make one for each call."""

    def __init__(self, target: str, options: Optional[Options] = None) -> None:
        self.options = options = Options() if options is None else options
        credentials, arguments = options.credentials(), options.arguments(target)
        self._channel = (
            grpc.insecure_channel(target, arguments)
            if credentials is None
            else grpc.secure_channel(target, credentials, arguments)
        )
        self._stub = rpc.ChatbotStub(self._channel)
        self._health = make.health_call(self._channel)
        self._budget = Budget(options.retry)
        self._watchdog = Watchdog()
        self._closed = threading.Event()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all calls, with ClientClosed, and gives the connections back. Turns go on without a
        reader for the server's `store.detach_grace`."""
        self._closed.set()
        self._channel.close()
        self._watchdog.stop()

    def ask(
        self,
        query: str,
        *,
        conversation_id: str = "",
        request_id: str = "",
        engine: int = 0,
        language_code: str = "",
        timeout: Optional[float] = None,
        wait_when_busy: bool = False,
    ) -> pb.AskResponse:
        """The answer in one message. Repeated as needed: the server knows the request by its id."""
        request = make.ask_request(query, conversation_id, request_id, engine, language_code)
        answer: pb.AskResponse = self._call(self._stub.Ask, request, timeout, wait_when_busy)
        return answer

    def rank_answers(
        self,
        query: str,
        *,
        max_answers: int = 0,
        excluded_answer_ids: Iterable[int] = (),
        language_code: str = "",
        timeout: Optional[float] = None,
    ) -> List[pb.RankAnswersResponse]:
        """The knowledge base's answers, best first."""
        request = make.rank_request(query, max_answers, excluded_answer_ids, language_code)

        def rank(request: pb.RankAnswersRequest, **how: Any) -> List[pb.RankAnswersResponse]:
            return list(self._stub.RankAnswers(request, **how))

        answers: List[pb.RankAnswersResponse] = self._call(rank, request, timeout)
        return answers

    def teach(
        self, changes: Iterable[pb.TeachRequest], *, timeout: Optional[float] = None
    ) -> pb.TeachResponse:
        """Changes the knowledge base. Not repeated, since the changes are read once: where it fails,
        send all of them again."""
        try:
            response: pb.TeachResponse = self._stub.Teach(
                iter(changes), timeout=self._timeout(timeout), metadata=self.options.metadata()
            )
            return response
        except (grpc.RpcError, ValueError) as error:
            raise self._failure(error).error() from None

    def cancel_turn(
        self, conversation_id: str, turn_id: str, *, timeout: Optional[float] = None
    ) -> None:
        """The stop button; a turn that is over is fine."""
        request = pb.CancelTurnRequest(conversation_id=conversation_id, turn_id=turn_id)
        self._call(self._stub.CancelTurn, request, timeout)

    def health(self, service: str = "", *, timeout: float = 5.0) -> Health:
        """What the server says of itself, once and without repetition. Raises where it cannot be
        reached."""
        try:
            request = make.health_request(service)
            metadata = self.options.metadata()
            return make.health_of(self._health(request, timeout=timeout, metadata=metadata))
        except grpc.RpcError as error:
            return make.health_failed(error)
        except ValueError:
            raise ClientClosed from None

    def chat(
        self,
        query: str,
        *,
        conversation_id: str = "",
        request_id: str = "",
        engine: int = 0,
        language_code: str = "",
        resume_token: str = "",
        timeout: Optional[float] = None,
        wait_when_busy: bool = False,
    ) -> Chat:
        """A turn's events as they come, to its end, whatever becomes of the connection. Another
        process goes on with a turn by giving its `request_id`, and `resume_token`. `timeout` is for
        all of it; without, the retry policy alone says when to give up."""
        request = make.chat_request(
            query, conversation_id, request_id, engine, language_code, resume_token
        )
        return Chat(self, request, self._attempts(timeout, wait_when_busy))

    def converse(self, conversation_id: str = "", resume_token: str = "") -> Conversation:
        """Joins a conversation; without an id, a new one that begins with the first message."""
        state = SessionState(conversation_id, resume_token, self._attempts(None, True))
        return Conversation(self, state)

    def _timeout(self, timeout: Optional[float]) -> float:
        return self.options.timeout if timeout is None else timeout

    def _attempts(self, timeout: Optional[float], wait_when_busy: bool) -> Attempts:
        options = self.options
        return Attempts(options.retry, self._budget, timeout, wait_when_busy, options.on_retry)

    def _call(
        self,
        call: Callable[..., Any],
        request: Any,
        timeout: Optional[float],
        wait_when_busy: bool = False,
    ) -> Any:
        attempts = self._attempts(self._timeout(timeout), wait_when_busy)
        while True:
            try:
                metadata = self.options.metadata()
                return call(request, timeout=attempts.time_left(), metadata=metadata)
            except (grpc.RpcError, ValueError) as error:
                failure = self._failure(error)
            if failure.kind is Kind.TURN:
                raise TurnFailed(failure, request.request_id, "")
            self._sleep(attempts.after(failure))

    def _failure(self, error: Union[grpc.RpcError, ValueError]) -> Failure:
        if self._closed.is_set():
            raise ClientClosed from None
        if isinstance(error, ValueError):
            raise error
        return Failure.of(error)

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise ClientClosed


class Chat(Iterator[Event]):
    """A turn. Iterate to read it; leaving early closes the stream and does not stop the turn, which
    `cancel` does."""

    def __init__(self, client: Client, request: pb.ChatRequest, attempts: Attempts) -> None:
        self._client = client
        self._state = TurnState(request, attempts)
        #: Also the turn's id.
        self.request_id: str = request.request_id
        self._call: Any = None
        self._left = False
        self._events = self._run()

    @property
    def conversation_id(self) -> str:
        """Known from the first event on."""
        return self._state.conversation_id

    @property
    def resume_token(self) -> str:
        """Of the last event."""
        return self._state.resume_token

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._state.text

    def cancel(self) -> None:
        """Stops the turn. Its events end with what was said until then."""
        self._client.cancel_turn(self.conversation_id, self.request_id)

    def close(self) -> None:
        """Leaves. From any thread."""
        self._left = True
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Chat:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def _run(self) -> Iterator[Event]:
        client, state = self._client, self._state
        while not self._left:
            failure = ENDED_EARLY
            watch = None
            try:
                self._call = client._stub.Chat(
                    state.request(),
                    timeout=state.attempts.time_left(),
                    metadata=client.options.metadata(),
                )
                limit = client.options.silence_limit
                with client._watchdog.watch(self._call, limit) as watch:
                    for response in self._call:
                        watch.heard()
                        event = state.accept(response.event)
                        if event is not None:
                            yield event
                            # However long the reader has looked at it.
                            watch.heard()
                        if state.over:
                            watch.shorten(GOODBYE)
            except (grpc.RpcError, ValueError) as error:
                if state.over or self._left:
                    return
                failure = client._failure(error)
            finally:
                if self._call is not None:
                    self._call.cancel()
            if state.over:
                return
            if watch is not None and watch.silent:
                failure = SILENT
            wait, notice = state.lost(failure)
            if notice is not None:
                yield notice
            client._sleep(wait)


class Conversation(Iterator[Event]):
    """A conversation that was joined. Reads and writes on a thread of its own from the first event that
    is asked for, or message that is posted, to `close`. All methods may be called from any thread."""

    #: Events that wait to be read; more are left to the server.
    WAITING = 256

    def __init__(self, client: Client, state: SessionState) -> None:
        self._client = client
        self._state = state
        self._lock = threading.Lock()
        self._events: queue.Queue[Any] = queue.Queue(self.WAITING)
        self._outbox: Optional[queue.SimpleQueue[Any]] = None
        self._call: Any = None
        self._thread: Optional[threading.Thread] = None
        self._left = threading.Event()
        self._end: Union[None, BaseException] = None

    @property
    def conversation_id(self) -> str:
        """Of a new conversation it is known from the first event on."""
        return self._state.conversation_id

    @property
    def resume_token(self) -> str:
        """Of the last event."""
        return self._state.resume_token

    def post(self, text: str, *, engine: int = 0, no_reply: bool = False) -> str:
        """Says something; its id is the turn's. It is in the log when it comes back as an event, and is
        sent until then."""
        with self._lock:
            request_id, request = self._state.post(text, engine, no_reply)
            self._send(request)
        self._start()
        return request_id

    def cancel(self, turn_id: str) -> None:
        """Stops a turn."""
        with self._lock:
            request = self._state.cancel(turn_id)
            if request is not None:
                self._send(request)

    def finish(self) -> None:
        """Says that nothing more will be posted: the events end when the conversation rests."""
        with self._lock:
            self._state.finishing = True
            self._send(None)
        self._start()

    def close(self) -> None:
        """Leaves. What was posted and not yet heard may be lost."""
        self._left.set()
        with self._lock:
            self._send(None)
            if self._call is not None:
                self._call.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Conversation:
        return self

    def __next__(self) -> Event:
        self._start()
        while not self._left.is_set():
            try:
                event: Union[Event, _End] = self._events.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(event, _End):
                self._events.put(event)
                if event.error is not None:
                    raise event.error
                raise StopIteration
            return event
        raise StopIteration

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._left.is_set():
                self._thread = threading.Thread(target=self._run, name="chatbot-converse", daemon=True)
                self._thread.start()

    def _send(self, request: Optional[pb.ConverseRequest]) -> None:
        if self._outbox is not None:
            self._outbox.put(request)

    def _tell(self, event: Any) -> None:
        while not self._left.is_set():
            try:
                return self._events.put(event, timeout=0.2)
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            self._stay()
            self._tell(_End(None))
        except BaseException as error:  # noqa: BLE001: it is the reader's
            self._tell(_End(error))

    def _stay(self) -> None:
        client, state = self._client, self._state
        while not self._left.is_set():
            failure = ENDED_EARLY
            watch = None
            outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            try:
                with self._lock:
                    for request in state.opening():
                        outbox.put(request)
                    if state.finishing:
                        outbox.put(None)
                    self._outbox = outbox
                    self._call = client._stub.Converse(
                        iter(outbox.get, None), metadata=client.options.metadata()
                    )
                with client._watchdog.watch(self._call, client.options.session_silence_limit) as watch:
                    for response in self._call:
                        watch.heard()
                        kind = response.WhichOneof("response")
                        if kind == "event":
                            with self._lock:
                                event = state.accept(response.event)
                            if event is not None:
                                self._tell(event)
                                watch.heard()
                        elif kind == "session_ending":
                            failure = ENDING
                            break
                    else:
                        if state.finished:
                            return
            except (grpc.RpcError, ValueError) as error:
                if self._left.is_set():
                    return
                failure = client._failure(error)
            finally:
                with self._lock:
                    self._outbox = None
                # Ends the thread on which grpcio waits for more of it.
                outbox.put(None)
                if self._call is not None:
                    self._call.cancel()
            if watch is not None and watch.silent:
                failure = SILENT
            with self._lock:
                wait, notice = state.lost(failure)
            if notice is not None:
                self._tell(notice)
            if self._left.wait(0):
                return
            client._sleep(wait)


class _End:
    def __init__(self, error: Optional[BaseException]) -> None:
        self.error = error
