"""A turn and a conversation over connections that die, between a client and two replicas."""

import asyncio
import itertools
import threading
import time

import pytest
from world import LONG, Model, Proxy, Redis, Server

from chatbot_client import (
    AsyncClient,
    Client,
    Completed,
    Delta,
    Engine,
    Failed,
    Options,
    Posted,
    Restarted,
    TurnFailed,
    pb,
)

SEEDS = itertools.count(1)


def question(pieces, every, *how):
    return " ".join(map(str, (next(SEEDS), pieces, every, *how)))


def check(events, text):
    """The transcript of one turn: each event once and in order, deltas that make up the text."""
    assert [type(event) for event in events[:1]] == [Posted]
    assert isinstance(events[-1], Completed)
    assert all(isinstance(event, Delta) for event in events[1:-1])
    numbers = [event.raw.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert events[-1].text == text
    assert "".join(event.text for event in events[1:-1]) == text


@pytest.fixture
def minutes(request):
    return request.config.getoption("--minutes")


def test_every_transcript_is_exact_while_connections_are_cut(replicas, model, minutes):
    """Sync and asyncio at the same time, 4 turns each; a conversation beside them."""
    seconds = minutes * 60 or 12
    every = 2.0 if minutes else 0.7
    targets = [replica.address for replica in replicas]
    done, retries, faults = [], [], []
    end = time.monotonic() + seconds
    model.asked.clear()

    def some_question():
        return question(60, 50)

    def turns(client):
        try:
            while time.monotonic() < end:
                ask = some_question()
                check(list(client.chat(ask)), Model.answer(ask))
                done.append(ask)
        except BaseException as error:
            faults.append(error)
            raise

    async def turns_of_asyncio(client):
        while time.monotonic() < end:
            ask = some_question()
            check([event async for event in client.chat(ask)], Model.answer(ask))
            done.append(ask)

    async def talk(client):
        """One message after the other, each once in the log."""
        said, heard = [], []
        async with client.converse() as conversation:
            while time.monotonic() < end:
                ask = some_question()
                said.append(ask)
                await conversation.post(ask)
                async for event in conversation:
                    assert not isinstance(event, (Failed, Restarted)), event
                    heard.append(event)
                    if isinstance(event, Completed):
                        break
                assert heard[-1].text == Model.answer(ask)
                done.append(ask)
        assert [event.text for event in heard if isinstance(event, Posted)] == said
        pieces = "".join(event.text for event in heard if isinstance(event, Delta))
        assert pieces == "".join(map(Model.answer, said))

    def talk_of_threads(client):
        try:
            said, heard = [], []
            with client.converse() as conversation:
                while time.monotonic() < end:
                    ask = some_question()
                    said.append(ask)
                    conversation.post(ask)
                    for event in conversation:
                        assert not isinstance(event, (Failed, Restarted)), event
                        heard.append(event)
                        if isinstance(event, Completed):
                            break
                    assert heard[-1].text == Model.answer(ask)
                    done.append(ask)
            assert [event.text for event in heard if isinstance(event, Posted)] == said
            pieces = "".join(event.text for event in heard if isinstance(event, Delta))
            assert pieces == "".join(map(Model.answer, said))
        except BaseException as error:
            faults.append(error)
            raise

    async def asyncio_side(address, options):
        async with AsyncClient(address, options) as client:
            await asyncio.gather(*(turns_of_asyncio(client) for _ in range(4)), talk(client))

    with Proxy(*targets, every=every) as proxy:
        options = Options(on_retry=retries.append)
        with Client(proxy.address, options) as client:
            threads = [threading.Thread(target=turns, args=(client,)) for _ in range(4)]
            threads.append(threading.Thread(target=talk_of_threads, args=(client,)))
            for thread in threads:
                thread.start()
            asyncio.run(asyncio_side(proxy.address, options))
            for thread in threads:
                thread.join(LONG)
        print(f"{len(done)} turns, {proxy.cuts} cuts, {len(retries)} repetitions", flush=True)
    assert not faults, faults
    assert len(done) >= 20 and len(retries) >= 20
    # Nothing was generated twice.
    assert sorted(model.asked) == sorted(set(model.asked))
    assert set(done) <= set(model.asked)


def test_a_cut_at_every_place_loses_nothing(replicas, model):
    """The first connections are cut after so many bytes, wherever that is in a frame."""
    ask = question(40, 20)
    with Client(replicas[0].address) as client:
        whole = client.chat(ask)
        check(list(whole), Model.answer(ask))
    cuts, sizes = 0, range(50, 1500, 75)
    for size in sizes:
        targets = [replica.address for replica in replicas]
        with Proxy(*targets, after=size) as proxy, Client(proxy.address) as client:
            # The same request: the turn is over, and is read again.
            again = client.chat(ask, request_id=whole.request_id)
            check(list(again), Model.answer(ask))
            cuts += proxy.cuts
    assert cuts >= len(sizes)
    assert model.asked.count(ask) == 1


def test_a_silent_stream_is_resumed(replicas):
    ask = question(30, 50)
    targets = [replica.address for replica in replicas]
    with Proxy(*targets) as proxy, Proxy(*targets) as other:

        def hold(events):
            for event in events:
                yield event
                if isinstance(event, Delta) and not proxy.held and not proxy.cuts:
                    proxy.held = True
                    threading.Timer(2.0, lambda: (proxy.cut(), setattr(proxy, "held", False))).start()

        retries = []
        # Of pings a library would know it by itself.
        options = Options(silence_limit=0.7, keepalive_time=0, on_retry=retries.append)
        with Client(proxy.address, options) as client:
            check(list(hold(client.chat(ask))), Model.answer(ask))
        assert "silent" in retries[0].failure.message

        async def of_asyncio():
            retries.clear()
            async with AsyncClient(other.address, options) as client:
                events = []
                async for event in client.chat(question(30, 50)):
                    events.append(event)
                    if isinstance(event, Delta) and not other.held and not other.cuts:
                        other.held = True
                        loop = asyncio.get_running_loop()
                        loop.call_later(2.0, lambda: (other.cut(), setattr(other, "held", False)))
                check(events, events[-1].text)
            assert "silent" in retries[0].failure.message

        asyncio.run(of_asyncio())


def test_a_failed_turn_is_an_exception_and_no_repetition(replicas, model):
    ask = question(5, 10, "broken")
    with Client(replicas[0].address) as client:
        turn = client.chat(ask)
        with pytest.raises(TurnFailed) as failed:
            list(turn)
        assert failed.value.reason == "UPSTREAM_TRUNCATED"
        assert failed.value.partial_text == Model.answer(ask)
        assert failed.value.turn_id == turn.request_id
        # And the same from its status alone, through the library's own repetitions.
        with pytest.raises(TurnFailed) as failed:
            client.ask(ask, request_id=turn.request_id)
        assert failed.value.reason == "UPSTREAM_TRUNCATED"
    assert model.asked.count(ask) == 1


def test_a_turn_is_stopped_by_its_button(replicas):
    async def of_asyncio():
        async with AsyncClient(replicas[0].address) as client:
            turn = client.chat(question(400, 50))
            async for event in turn:
                if isinstance(event, Delta):
                    await turn.cancel()
            assert event.answer.finish_reason == pb.FINISH_REASON_CANCELLED
            assert turn.text == event.text

    asyncio.run(of_asyncio())
    with Client(replicas[1].address) as client:
        turn = client.chat(question(400, 50))
        for event in turn:
            if isinstance(event, Delta):
                turn.cancel()
        assert event.answer.finish_reason == pb.FINISH_REASON_CANCELLED

        with client.converse() as conversation:
            turn_id = conversation.post(question(400, 50))
            for event in conversation:
                if isinstance(event, Delta):
                    conversation.cancel(turn_id)
                if isinstance(event, Completed):
                    break
            assert event.answer.finish_reason == pb.FINISH_REASON_CANCELLED


def test_a_conversation_ends_when_it_rests(replicas):
    """What was posted is heard, though the stream is closed on our side at once."""
    asks = [question(5, 20), question(5, 20)]

    async def of_asyncio():
        async with AsyncClient(replicas[0].address) as client:
            async with client.converse() as conversation:
                await conversation.post("first", no_reply=True)
                await conversation.post(asks[0])
                await conversation.finish()
                heard = [event async for event in conversation]
            assert [it.text for it in heard if isinstance(it, Posted)] == ["first", asks[0]]
            assert heard[-1].text == Model.answer(asks[0])
            return conversation.conversation_id

    conversation_id = asyncio.run(of_asyncio())
    with Client(replicas[1].address) as client:
        with client.converse(conversation_id) as conversation:
            conversation.post(asks[1])
            conversation.finish()
            heard = list(conversation)
        assert [it.text for it in heard if isinstance(it, Posted)] == ["first", *asks]
        assert heard[-1].text == Model.answer(asks[1])


def test_a_server_that_stops_passes_its_readers_on(model):
    """SIGTERM: streams are told, and go to the other replica. The turns end within the grace of their
    owner, which would interrupt them else."""
    with Redis() as redis:
        settings = [f"store.url={redis.url}", *model.settings, "server.drain_delay=1s"]
        starting = Server(*settings, "server.drain_grace=8s"), Server(*settings)
        with starting[0] as one, starting[1] as other:
            target = f"ipv4:{one.address},{other.address}"
            heard, asks = [], [question(60, 50), question(60, 50)]
            with Client(target) as client, client.converse() as conversation:
                conversation.post(asks[0])
                turn = client.chat(asks[1])
                events = [next(turn), next(turn)]
                heard += [next(conversation), next(conversation)]
                one.process.terminate()
                events += turn
                check(events, Model.answer(asks[1]))
                for event in conversation:
                    assert not isinstance(event, Failed), event
                    heard.append(event)
                    if isinstance(event, Completed):
                        break
                check(heard, Model.answer(asks[0]))
                one.process.wait(LONG)


def test_engines_are_named(server):
    with Client(server.address) as client:
        assert client.ask("What is GOAWAY?").answer.sources
        ask = question(2, 1)
        answer = client.ask(ask, engine=Engine.ENGINE_GENERATIVE).answer
        assert answer.text == Model.answer(ask)
