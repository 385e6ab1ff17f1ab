"""What a client meets: servers, proxies that cut, models that drip. Real ones, on loopback, on free
ports; each ends with the context that it was made in."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

LONG = 60.0
#: The sample takes a debug build four seconds to learn. One entry cannot be told apart from others, so it is
#: trusted from any score on.
KNOWLEDGE = {
    "answer_id": 1,
    "questions": ["My server says too many open files. What should I do?", "What is GOAWAY?"],
    "answer": "Close your channels. " * 20,
}


def wait_for(check, seconds=LONG, what="it"):
    """What `check` gives once that is true."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come in {seconds} s"
        time.sleep(0.02)


def with_us():
    """Ends a child with its parent, however that ends: PR_SET_PDEATHSIG, SIGKILL."""
    ctypes.CDLL(None).prctl(1, 9)


def descriptors(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))


def settled(pid, most, seconds=10.0):
    """The open descriptors of a process, once they are not more than this or the time is over."""
    end = time.monotonic() + seconds
    while descriptors(pid) > most and time.monotonic() < end:
        time.sleep(0.05)
    return descriptors(pid)


class Server:
    """The chatbot, as a process."""

    def __init__(self, *settings, address="127.0.0.1:0"):
        program = os.environ["CHATBOT_BIN"]
        self.folder = tempfile.mkdtemp()
        self.log = Path(self.folder, "log")
        knowledge = Path(self.folder, "knowledge.jsonl")
        knowledge.write_text(json.dumps(KNOWLEDGE) + "\n")
        every = [
            f"server.address={address}",
            "ops.address=127.0.0.1:0",
            "store.url=memory:",
            f"knowledge.path={knowledge}",
            "knowledge.min_confidence=0",
        ]
        arguments = [part for setting in [*every, *settings] for part in ("--set", setting)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "serve", *arguments], cwd=self.folder, stdout=log, stderr=log, preexec_fn=with_us
            )

    def __enter__(self):
        try:
            self.address = wait_for(self._serves, what="the server")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _serves(self):
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r" serving .*address=(\S+)", re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text()))
        return found and found.group(1)

    @property
    def pid(self):
        return self.process.pid


class Redis:
    """A server of its own, in a folder that goes with it."""

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = tempfile.mkdtemp()
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            preexec_fn=with_us,
        )
        wait_for(self._answers, what="Redis")
        return self

    def _answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Loop:
    """An event loop on a thread: the far side of a test that blocks."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = self.call(self._listen())
        self.address = "127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]
        return self

    async def _listen(self):
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LONG)

    async def _end(self):
        self.server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __exit__(self, *_):
        self.call(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Proxy(Loop):
    """Passes bytes on, each connection to the next of its targets; cuts and holds when it is told."""

    def __init__(self, *targets, every=None, after=None):
        self.targets = list(targets)
        #: Seconds between cuts of everything.
        self.every = every
        #: Bytes towards the client after which the first connection is cut; the next has twice as many.
        self.after = after
        self.cuts = 0
        self.opened = 0
        #: Bytes from clients.
        self.heard = 0
        self.held = False
        self._writers = set()

    def __enter__(self):
        super().__enter__()
        if self.every is not None:
            self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._cut_again()))
        return self

    async def _cut_again(self):
        while True:
            await asyncio.sleep(self.every)
            self._cut()

    def _cut(self):
        for writer in self._writers:
            self.cuts += 1
            writer.transport.abort()
        self._writers.clear()

    def cut(self):
        async def cut():
            self._cut()

        self.call(cut())

    async def _serve(self, reader, writer):
        self.opened += 1
        host, port = self.targets[self.opened % len(self.targets)].rsplit(":", 1)
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        passing = [
            asyncio.ensure_future(self._pass(reader, far_writer, None)),
            asyncio.ensure_future(
                self._pass(far_reader, writer, self.after and self.after * self.opened)
            ),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The test is over; what has called us would call it a fault.
            pass
        finally:
            for one in passing:
                one.cancel()
            self._writers.discard(writer)
            for one in (writer, far_writer):
                one.transport.abort()

    async def _pass(self, reader, writer, left):
        try:
            while True:
                data = await reader.read(65536)
                if not data:
                    return
                while self.held:
                    await asyncio.sleep(0.02)
                if writer not in self._writers:
                    self.heard += len(data)
                if left is not None:
                    data, left = data[:left], left - len(data)
                writer.write(data)
                await writer.drain()
                if left is not None and left <= 0:
                    self.cuts += 1
                    return
        except OSError:
            return


class Model(Loop):
    """An OpenAI-like server. A question says what it does: "SEED PIECES MILLISECONDS [broken]"."""

    def __init__(self):
        self.asked = []

    @staticmethod
    def piece(seed, index):
        return f"{seed}-{index} 가나다 "

    @classmethod
    def answer(cls, question):
        seed, pieces = question.split()[:2]
        return "".join(cls.piece(seed, index) for index in range(int(pieces)))

    @property
    def settings(self):
        return [
            f"upstream.base_url=http://{self.address}",
            "upstream.model=drip",
            "engine.default=generative",
        ]

    async def _serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: *(\d+)", head, re.I).group(1))
            body = json.loads(await reader.readexactly(length))
            question = body["messages"][-1]["content"]
            self.asked.append(question)
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            )
            seed, pieces, every, *how = question.split()
            for index in range(int(pieces)):
                await asyncio.sleep(int(every) / 1000)
                self._event(writer, {"content": self.piece(seed, index)}, None)
                await writer.drain()
            if "broken" not in how:
                self._event(writer, {}, "stop")
                writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @staticmethod
    def _event(writer, delta, reason):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
