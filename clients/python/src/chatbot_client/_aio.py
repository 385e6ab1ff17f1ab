"""The client for asyncio."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator, Callable, Iterable, List, Optional, Union

import grpc
import grpc.aio

from . import _requests as make
from ._errors import ENDED_EARLY, ENDING, SILENT, ClientClosed, Failure, Kind, TurnFailed
from ._events import Event
from ._options import Health, Options
from ._retry import Attempts, Budget
from ._turn import SessionState, TurnState
from .v1 import chatbot_pb2 as pb
from .v1 import chatbot_pb2_grpc as rpc

#: For the last words of a turn that is over, which nobody needs.
GOODBYE = 1.0


class AsyncClient:
    """One channel to the service, for all tasks of an event loop. Close it, or use it as an asynchronous
    context manager; never make one for each call. Its methods are those of `Client`."""

    def __init__(self, target: str, options: Optional[Options] = None) -> None:
        self.options = options = Options() if options is None else options
        credentials, arguments = options.credentials(), options.arguments(target)
        self._channel = (
            grpc.aio.insecure_channel(target, arguments)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, arguments)
        )
        self._stub = rpc.ChatbotStub(self._channel)
        self._health = make.health_call(self._channel)
        self._budget = Budget(options.retry)
        self._closed = asyncio.Event()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all calls, with ClientClosed, and gives the connections back."""
        self._closed.set()
        await self._channel.close()

    async def ask(
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
        answer: pb.AskResponse = await self._call(
            self._stub.Ask, request, timeout, wait_when_busy
        )
        return answer

    async def rank_answers(
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

        async def rank(request: pb.RankAnswersRequest, **how: Any) -> List[pb.RankAnswersResponse]:
            return [answer async for answer in self._stub.RankAnswers(request, **how)]

        answers: List[pb.RankAnswersResponse] = await self._call(rank, request, timeout)
        return answers

    async def teach(
        self, changes: Iterable[pb.TeachRequest], *, timeout: Optional[float] = None
    ) -> pb.TeachResponse:
        """Changes the knowledge base. Not repeated, since the changes are read once: where it fails,
        send all of them again."""
        try:
            response: pb.TeachResponse = await self._stub.Teach(
                iter(changes), timeout=self._timeout(timeout), metadata=self.options.metadata()
            )
            return response
        except _BROKEN as error:
            raise self._failure(error).error() from None

    async def cancel_turn(
        self, conversation_id: str, turn_id: str, *, timeout: Optional[float] = None
    ) -> None:
        """The stop button; a turn that is over is fine."""
        request = pb.CancelTurnRequest(conversation_id=conversation_id, turn_id=turn_id)
        await self._call(self._stub.CancelTurn, request, timeout)

    async def health(self, service: str = "", *, timeout: float = 5.0) -> Health:
        """What the server says of itself, once and without repetition. Raises where it cannot be
        reached."""
        request, metadata = make.health_request(service), self.options.metadata()
        try:
            return make.health_of(await self._health(request, timeout=timeout, metadata=metadata))
        except grpc.aio.AioRpcError as error:
            return make.health_failed(error)
        except grpc.aio.UsageError:
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
    ) -> AsyncChat:
        """A turn's events as they come, to its end, whatever becomes of the connection. Another
        process goes on with a turn by giving its `request_id`, and `resume_token`. `timeout` is for
        all of it; without, the retry policy alone says when to give up."""
        request = make.chat_request(
            query, conversation_id, request_id, engine, language_code, resume_token
        )
        return AsyncChat(self, request, self._attempts(timeout, wait_when_busy))

    def converse(self, conversation_id: str = "", resume_token: str = "") -> AsyncConversation:
        """Joins a conversation; without an id, a new one that begins with the first message."""
        state = SessionState(conversation_id, resume_token, self._attempts(None, True))
        return AsyncConversation(self, state)

    def _timeout(self, timeout: Optional[float]) -> float:
        return self.options.timeout if timeout is None else timeout

    def _attempts(self, timeout: Optional[float], wait_when_busy: bool) -> Attempts:
        options = self.options
        return Attempts(options.retry, self._budget, timeout, wait_when_busy, options.on_retry)

    async def _call(
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
                return await call(request, timeout=attempts.time_left(), metadata=metadata)
            except _BROKEN as error:
                failure = self._failure(error)
            if failure.kind is Kind.TURN:
                raise TurnFailed(failure, request.request_id, "")
            await self._sleep(attempts.after(failure))

    def _failure(self, error: BaseException) -> Failure:
        """Of what ended a call. Closing the channel cancels the calls on it, and so does cancelling a
        task, which stays what it is."""
        if self._closed.is_set():
            raise ClientClosed from None
        if not isinstance(error, grpc.aio.AioRpcError):
            raise error
        return Failure.of(error)

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except asyncio.TimeoutError:
            return
        raise ClientClosed


_BROKEN = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError)


class AsyncChat(AsyncIterator[Event]):
    """A turn. Iterate to read it; leaving early closes the stream and does not stop the turn, which
    `cancel` does."""

    def __init__(self, client: AsyncClient, request: pb.ChatRequest, attempts: Attempts) -> None:
        self._client = client
        self._state = TurnState(request, attempts)
        #: Also the turn's id.
        self.request_id: str = request.request_id
        self._call: Any = None
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

    async def cancel(self) -> None:
        """Stops the turn. Its events end with what was said until then."""
        await self._client.cancel_turn(self.conversation_id, self.request_id)

    async def aclose(self) -> None:
        """Leaves."""
        if self._call is not None:
            self._call.cancel()
        await self._events.aclose()  # type: ignore[attr-defined]

    async def __aenter__(self) -> AsyncChat:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncChat:
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()

    async def _run(self) -> AsyncIterator[Event]:
        client, state = self._client, self._state
        while True:
            failure = ENDED_EARLY
            try:
                self._call = client._stub.Chat(
                    state.request(),
                    timeout=state.attempts.time_left(),
                    metadata=client.options.metadata(),
                )
                while True:
                    limit = GOODBYE if state.over else client.options.silence_limit
                    response = await asyncio.wait_for(self._call.read(), limit)
                    if response is grpc.aio.EOF:
                        break
                    event = state.accept(response.event)
                    if event is not None:
                        yield event
            except asyncio.TimeoutError:
                failure = SILENT
            except _BROKEN as error:
                if state.over and isinstance(error, grpc.aio.AioRpcError):
                    return
                failure = client._failure(error)
            finally:
                if self._call is not None:
                    self._call.cancel()
            if state.over:
                return
            wait, notice = state.lost(failure)
            if notice is not None:
                yield notice
            await client._sleep(wait)


class AsyncConversation(AsyncIterator[Event]):
    """A conversation that was joined. Reads and writes in a task of its own from the first event that is
    asked for, or message that is posted, to `aclose`."""

    #: Events that wait to be read; more are left to the server.
    WAITING = 256

    def __init__(self, client: AsyncClient, state: SessionState) -> None:
        self._client = client
        self._state = state
        self._writing = asyncio.Lock()
        self._events: asyncio.Queue[Any] = asyncio.Queue(self.WAITING)
        self._call: Any = None
        self._task: Optional[asyncio.Task[None]] = None
        self._left = False
        self._end: Optional[_End] = None

    @property
    def conversation_id(self) -> str:
        """Of a new conversation it is known from the first event on."""
        return self._state.conversation_id

    @property
    def resume_token(self) -> str:
        """Of the last event."""
        return self._state.resume_token

    async def post(self, text: str, *, engine: int = 0, no_reply: bool = False) -> str:
        """Says something; its id is the turn's. It is in the log when it comes back as an event, and is
        sent until then."""
        async with self._writing:
            request_id, request = self._state.post(text, engine, no_reply)
            await self._send(request)
        self._start()
        return request_id

    async def cancel(self, turn_id: str) -> None:
        """Stops a turn."""
        async with self._writing:
            request = self._state.cancel(turn_id)
            if request is not None:
                await self._send(request)

    async def finish(self) -> None:
        """Says that nothing more will be posted: the events end when the conversation rests."""
        async with self._writing:
            self._state.finishing = True
            await self._send(None)
        self._start()

    async def aclose(self) -> None:
        """Leaves. What was posted and not yet heard may be lost."""
        self._left = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def __aenter__(self) -> AsyncConversation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncConversation:
        return self

    async def __anext__(self) -> Event:
        if self._end is None:
            if self._left:
                raise StopAsyncIteration
            self._start()
            event: Union[Event, _End] = await self._events.get()
            if not isinstance(event, _End):
                return event
            self._end = event
        if self._end.error is not None:
            raise self._end.error
        raise StopAsyncIteration

    def _start(self) -> None:
        if self._task is None and not self._left:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _send(self, request: Optional[pb.ConverseRequest]) -> None:
        """On the stream that is open; `None` closes our side. What does not arrive is sent again by the
        next one."""
        if self._call is None:
            return
        try:
            if request is None:
                await self._call.done_writing()
            else:
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            return

    async def _run(self) -> None:
        error: Optional[BaseException] = None
        try:
            await self._stay()
        except asyncio.CancelledError:
            raise
        except Exception as failed:  # noqa: BLE001: it is the reader's
            error = failed
        await self._events.put(_End(error))

    async def _stay(self) -> None:
        client, state = self._client, self._state
        while True:
            failure = ENDED_EARLY
            call: Any = None
            try:
                async with self._writing:
                    call = client._stub.Converse(metadata=client.options.metadata())
                    self._call = call
                    for request in state.opening():
                        await self._send(request)
                    if state.finishing:
                        await self._send(None)
                while True:
                    limit = client.options.session_silence_limit
                    response = await asyncio.wait_for(call.read(), limit)
                    if response is grpc.aio.EOF:
                        if state.finished:
                            return
                        break
                    kind = response.WhichOneof("response")
                    if kind == "event":
                        event = state.accept(response.event)
                        if event is not None:
                            await self._events.put(event)
                    elif kind == "session_ending":
                        failure = ENDING
                        break
            except asyncio.TimeoutError:
                failure = SILENT
            except _BROKEN as error:
                failure = client._failure(error)
            finally:
                self._call = None
                if call is not None:
                    call.cancel()
            wait, notice = state.lost(failure)
            if notice is not None:
                await self._events.put(notice)
            await client._sleep(wait)


class _End:
    def __init__(self, error: Optional[BaseException]) -> None:
        self.error = error
