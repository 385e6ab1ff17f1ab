"""What a client must not do: leak, hurry, repeat what was refused."""

import asyncio
import gc
import threading
import time
from concurrent import futures

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from world import LONG, Proxy, descriptors, settled

from chatbot_client import (
    AsyncClient,
    ChatbotError,
    Client,
    ClientClosed,
    Completed,
    ConversationBusy,
    Delta,
    Health,
    Options,
    OutOfOrder,
    Restarted,
    RetryPolicy,
    pb,
)
from chatbot_client.v1 import chatbot_pb2_grpc as rpc

QUICK = RetryPolicy(initial_backoff=0.001, max_backoff=0.01, per_second=10_000)


def packed(message):
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail


def status(code, reason, after=None, pushback=None):
    """A status as the service makes it."""
    details = [packed(error_details_pb2.ErrorInfo(reason=reason, domain="chatbot.v1.Chatbot"))]
    if after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(after * 1000))
        details.append(packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    body = status_pb2.Status(code=code.value[0], message=reason, details=details)
    metadata = [("grpc-status-details-bin", body.SerializeToString())]
    if pushback is not None:
        metadata.append(("grpc-retry-pushback-ms", pushback))
    return code, metadata


class Script(rpc.ChatbotServicer):
    """Plays one step for each call: a status to refuse with, or what to send and the status after it."""

    def __init__(self):
        self.steps = []
        self.calls = []

    def _next(self, request, context):
        self.calls.append((time.monotonic(), request))
        step = self.steps.pop(0)
        events, end = step if isinstance(step[0], list) else ([], step)
        yield from events
        if end:
            code, metadata = end
            context.set_trailing_metadata(metadata)
            context.abort(code, "as told")

    def Ask(self, request, context):
        for event in self._next(request, context):
            return event

    def Chat(self, request, context):
        yield from (pb.ChatResponse(event=event) for event in self._next(request, context))

    def Converse(self, requests, context):
        heard = [next(requests)]
        self.calls.append((time.monotonic(), heard))
        step = self.steps.pop(0)
        for _ in range(step.get("reads", 0)):
            heard.append(next(requests))
        yield from step["sends"]
        if "end" in step:
            code, metadata = step["end"]
            context.set_trailing_metadata(metadata)
            context.abort(code, "as told")

    @property
    def gaps(self):
        times = [at for at, _ in self.calls]
        return [after - before for before, after in zip(times, times[1:])]


@pytest.fixture
def script():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    script = Script()
    rpc.add_ChatbotServicer_to_server(script, server)
    script.address = "127.0.0.1:%d" % server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield script
    server.stop(None).wait()


def event(number, tag="a", **what):
    token = f"{tag}{number}"
    return pb.Event(sequence_number=number, resume_token=token, conversation_id="c", **what)


def delta(number, text, tag="a"):
    return event(number, tag, text_delta=text)


def completed(number, text, tag="a"):
    return event(number, tag, turn_completed=pb.TurnCompleted(text=text, answered=True))


EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(params=["sync", "asyncio"])
def read(request, script):
    """Asks, or reads a turn, with either client."""

    def of_threads(method, options, **how):
        with Client(script.address, options) as client:
            result = getattr(client, method)("q", **how)
            return list(result) if method == "chat" else result

    def of_asyncio(method, options, **how):
        async def run():
            async with AsyncClient(script.address, options) as client:
                result = getattr(client, method)("q", **how)
                if method == "chat":
                    return [event async for event in result]
                return await result

        return asyncio.run(run())

    chosen = of_threads if request.param == "sync" else of_asyncio
    return lambda method, options=None, **how: chosen(method, options or Options(retry=QUICK), **how)


@pytest.mark.parametrize("method", ["ask", "chat"])
def test_exhausted_without_a_time_is_not_repeated(script, read, method):
    for end in (
        status(EXHAUSTED, "RATE_LIMITED"),
        status(EXHAUSTED, "OVERLOADED", after=0.1, pushback="-1"),
        status(EXHAUSTED, "OVERLOADED", pushback="soon"),
        status(UNAVAILABLE, "DRAINING", after=0.1, pushback="-1"),
    ):
        script.steps = [end, end]
        script.calls.clear()
        with pytest.raises(ChatbotError) as failed:
            read(method)
        assert failed.value.code is end[0] and failed.value.reason
        assert len(script.calls) == 1


@pytest.mark.parametrize("method", ["ask", "chat"])
def test_exhausted_with_a_time_is_repeated_and_not_before(script, read, method):
    answer = pb.AskResponse(answer=pb.TurnCompleted(text="x"))
    good = ([completed(1, "x")], None) if method == "chat" else ([answer], None)
    script.steps = [
        status(EXHAUSTED, "RATE_LIMITED", after=0.5),
        status(EXHAUSTED, "OVERLOADED", pushback="700"),
        status(EXHAUSTED, "OVERLOADED", after=0.2, pushback="400"),
        good,
    ]
    read(method)
    assert len(script.calls) == 4
    for gap, least in zip(script.gaps, (0.5, 0.7, 0.4)):
        assert least <= gap < least * 1.1 + 0.5, script.gaps
    # The same request each time.
    assert len({request.request_id for _, request in script.calls}) == 1


def test_a_time_beyond_the_callers_own_is_told_at_once(script, read):
    script.steps = [status(EXHAUSTED, "RATE_LIMITED", after=30)]
    began = time.monotonic()
    with pytest.raises(ChatbotError) as failed:
        read("ask", timeout=2.0)
    assert failed.value.retry_after == 30 and time.monotonic() - began < 1.5


def test_a_turn_in_progress_is_waited_for_only_if_that_is_wanted(script, read):
    busy = status(grpc.StatusCode.ABORTED, "TURN_IN_PROGRESS", after=0.3)
    script.steps = [busy]
    with pytest.raises(ConversationBusy):
        read("chat")
    script.calls.clear()
    script.steps = [busy, busy, ([completed(1, "x")], None)]
    read("chat", wait_when_busy=True)
    assert len(script.calls) == 3 and min(script.gaps) >= 0.3


def test_events_are_shown_once_and_in_order(script, read):
    lost = status(UNAVAILABLE, "DRAINING")
    script.steps = [
        ([delta(1, "a"), delta(2, "b")], lost),
        # A server that repeats what it was told is known.
        ([delta(1, "a"), delta(2, "b"), delta(5, "c")], lost),
        ([completed(6, "abc")], None),
    ]
    events = read("chat")
    assert [it.text for it in events] == ["a", "b", "c", "abc"]
    assert [request.resume_token for _, request in script.calls] == ["", "a2", "a5"]

    script.steps = [([delta(1, "a"), delta(3, "b"), delta(2, "other", "x")], None)]
    with pytest.raises(OutOfOrder):
        read("chat")


def test_a_lost_place_is_told_and_begins_again(script, read):
    script.steps = [
        ([delta(1, "a"), delta(2, "b")], status(UNAVAILABLE, "LOG_UNAVAILABLE")),
        status(grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_INVALID"),
        ([delta(1, "a", "x"), completed(2, "a!", "x")], None),
    ]
    kinds = [type(it) for it in read("chat")]
    assert kinds == [Delta, Delta, Restarted, Delta, Completed]
    assert [request.resume_token for _, request in script.calls] == ["", "a2", ""]
    # With no place to lose it is a fault.
    script.steps = [status(grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_INVALID")] * 2
    script.calls.clear()
    with pytest.raises(ChatbotError):
        read("chat")
    assert len(script.calls) == 1


def test_what_is_wrong_is_not_repeated(script, read):
    for code, reason in (
        (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"),
        (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING"),
        (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"),
        (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
    ):
        script.steps = [status(code, reason)]
        script.calls.clear()
        with pytest.raises(ChatbotError) as failed:
            read("chat")
        assert failed.value.reason == reason and len(script.calls) == 1


def test_patience_has_an_end(script, read):
    script.steps = [status(UNAVAILABLE, "LOG_UNAVAILABLE")] * 50
    policy = RetryPolicy(initial_backoff=0.001, max_backoff=0.01, max_attempts=7, per_second=1e4)
    with pytest.raises(ChatbotError) as failed:
        read("chat", Options(retry=policy))
    assert failed.value.reason == "LOG_UNAVAILABLE" and len(script.calls) == 8


def test_posts_that_were_not_heard_are_said_again(script):
    """And the place, and the join, after the end of a session."""

    def posted(number, request):
        said = pb.MessagePosted(text=request.text, request_id=request.request_id)
        return pb.ConverseResponse(event=event(number, message_posted=said))

    for client_of in ("sync", "asyncio"):
        script.calls.clear()
        ending = pb.ConverseResponse(session_ending=pb.SessionEnding())
        script.steps = [
            {"reads": 2, "sends": [], "end": status(UNAVAILABLE, "DRAINING")},
            {"reads": 2, "sends": [], "end": status(UNAVAILABLE, "DRAINING")},
            {"reads": 2, "sends": [ending]},
            {"reads": 2, "sends": []},
        ]

        if client_of == "sync":
            with Client(script.address, Options(retry=QUICK)) as client:
                with client.converse() as conversation:
                    ids = [conversation.post("one"), conversation.post("two")]
                    conversation.finish()
                    end = time.monotonic() + LONG
                    while len(script.calls) < 4 and time.monotonic() < end:
                        time.sleep(0.01)
        else:

            async def run():
                async with AsyncClient(script.address, Options(retry=QUICK)) as client:
                    async with client.converse() as conversation:
                        ids = [await conversation.post("one"), await conversation.post("two")]
                        await conversation.finish()
                        end = time.monotonic() + LONG
                        while len(script.calls) < 4 and time.monotonic() < end:
                            await asyncio.sleep(0.01)
                        return ids

            ids = asyncio.run(run())
        assert len(script.calls) >= 4
        for _, heard in script.calls[:3]:
            assert heard[0].WhichOneof("request") == "join"
            assert [it.post_message.request_id for it in heard[1:]] == ids


def test_a_thousand_reconnects_and_ten_thousand_health_checks_leak_nothing(server):
    """Descriptors of this process and of the server, within 2."""

    with Proxy(server.address) as proxy:
        with Client(proxy.address, Options(retry=QUICK)) as client:
            assert client.health() is Health.SERVING
            ours, theirs = descriptors(), descriptors(server.pid)
            for _ in range(5_000):
                assert client.health() is Health.SERVING
            opened = proxy.opened
            for _ in range(500):
                client.ask("What is GOAWAY?")
                proxy.cut()
            client.ask("What is GOAWAY?")
            assert proxy.opened - opened >= 500
            counts = [ours, settled("self", ours + 2), theirs, settled(server.pid, theirs + 2)]
            print("sync: descriptors of the client and the server, before and after:", counts)
            assert abs(counts[1] - counts[0]) <= 2 and abs(counts[3] - counts[2]) <= 2

    async def run():
        async with AsyncClient(proxy.address, Options(retry=QUICK)) as client:
            assert await client.health() is Health.SERVING
            ours, theirs = descriptors(), descriptors(server.pid)
            for _ in range(100):
                found = await asyncio.gather(*(client.health() for _ in range(50)))
                assert set(found) == {Health.SERVING}
            for _ in range(500):
                await client.ask("What is GOAWAY?")
                await asyncio.get_running_loop().run_in_executor(None, proxy.cut)
            await client.ask("What is GOAWAY?")
            return [ours, settled("self", ours + 2), theirs, settled(server.pid, theirs + 2)]

    with Proxy(server.address) as proxy:
        counts = asyncio.run(run())
        assert proxy.opened >= 500
    print("asyncio: the same:", counts)
    assert abs(counts[1] - counts[0]) <= 2 and abs(counts[3] - counts[2]) <= 2


def test_close_really_closes(server):
    """Twenty-two clients, closed with a turn and a conversation open; no thread, no descriptor."""
    slow = "7 600 100"
    turns = []

    def of_threads():
        with Client(server.address) as client:
            turn = client.chat(slow, engine=pb.ENGINE_GENERATIVE)
            conversation = client.converse()
            conversation.post("hello", no_reply=True)
            next(conversation)
            next(turn)
        turns.append(turn)
        for late in (turn, conversation):
            with pytest.raises(ClientClosed):
                list(late)
        for late in (lambda: client.ask("too late"), client.health):
            with pytest.raises(ClientClosed):
                late()

    async def of_asyncio():
        async with AsyncClient(server.address) as client:
            turn = client.chat(slow, engine=pb.ENGINE_GENERATIVE)
            conversation = client.converse()
            await conversation.post("hello", no_reply=True)
            await conversation.__anext__()
            await turn.__anext__()
        turns.append(turn)
        for late in (turn, conversation):
            with pytest.raises(ClientClosed):
                async for _ in late:
                    pass
        for call in (client.ask("too late"), client.health()):
            with pytest.raises(ClientClosed):
                await call

    def stop():
        """The turns, which go on and have connections to the model."""
        with Client(server.address) as client:
            while turns:
                turn = turns.pop()
                client.cancel_turn(turn.conversation_id, turn.request_id)

    async def many():
        """In one event loop: for each further one grpcio keeps a pair of sockets."""
        # What grpcio opens once for a process.
        await of_asyncio()
        of_threads()
        stop()
        gc.collect()
        await asyncio.sleep(1)
        before = descriptors(), descriptors(server.pid), threading.active_count()
        for _ in range(10):
            await of_asyncio()
            of_threads()
        stop()
        gc.collect()
        most = [count + 2 for count in before]
        end = time.monotonic() + 10
        while True:
            now = descriptors(), descriptors(server.pid), threading.active_count()
            if all(a <= b for a, b in zip(now, most)) or time.monotonic() > end:
                return before, now
            await asyncio.sleep(0.1)

    before, now = asyncio.run(many())
    assert all(b <= a + 2 for a, b in zip(before, now)), (before, now)


def test_an_early_leave_closes_its_stream_only(server):
    with Client(server.address) as client:
        with client.chat("8 50 50", engine=pb.ENGINE_GENERATIVE) as turn:
            for event in turn:
                if isinstance(event, Delta):
                    break
        assert list(turn) == []
        # The turn goes on, and is found again.
        again = client.chat(
            "8 50 50",
            engine=pb.ENGINE_GENERATIVE,
            request_id=turn.request_id,
            resume_token=turn.resume_token,
        )
        assert list(again)[-1].answer.finish_reason == pb.FINISH_REASON_STOP


def test_health_of_what_is_not_known_and_what_is_not_there(server):
    with Client(server.address) as client:
        assert client.health("chatbot.v1.Chatbot") is Health.SERVING
        assert client.health("nobody") is Health.SERVICE_UNKNOWN
    with Proxy("127.0.0.1:1") as nobody:
        with Client(nobody.address) as client, pytest.raises(ChatbotError) as failed:
            client.health(timeout=2)
        assert failed.value.code in (UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
