"""What is watched: replicas of the chatbot, their Redis, a model, and those who call them. Real programs, on
loopback; each ends with the one that started it."""

import asyncio
import ctypes
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python/src"))

import grpc  # noqa: E402
from chatbot_client.v1 import chatbot_pb2 as pb  # noqa: E402
from chatbot_client.v1 import chatbot_pb2_grpc as rpc  # noqa: E402

#: Ends a wait that would never end.
LONG = 60.0


def wait_for(what, check, seconds=LONG):
    """What `check` gives once that is true."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


def free_ports(count):
    """Ports that nobody has. Not of those that the kernel gives to clients: one of them could have a port as
    its own while the replica is dead that will need it again."""
    ports = set()
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        ports.add(port)
    return sorted(ports)


def _as_child():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with us, however that ends.
    # A write beyond the file size limit, which is how a disk gets full here, is then an error and no signal.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


class Process:
    """A program, and the end of what it has said."""

    def __init__(self, *command, folder):
        self.command, self.folder = [str(part) for part in command], folder
        self.said = deque(maxlen=60)
        self.child = None

    def start(self):
        # A pipe and no file: its log must go on when its files may not grow.
        self.child = subprocess.Popen(
            self.command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_as_child,
            restore_signals=False,
        )
        self._listener = threading.Thread(
            target=self._listen, args=(self.child.stdout,), daemon=True
        )
        self._listener.start()

    def _listen(self, pipe):
        for line in pipe:
            self.said.append(re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip()))

    @property
    def pid(self):
        return self.child.pid

    def alive(self):
        return self.child is not None and self.child.poll() is None

    def must_live(self):
        """Says how it has ended, if it has."""
        if not self.alive():
            self._listener.join(5)
            said = "\n".join(self.said)
            raise AssertionError(f"{self.command[0]} has ended with {self.child.returncode}:\n{said}")

    def kill(self):
        if self.alive():
            self.child.kill()
            self.child.wait()


class Redis(Process):
    def __init__(self, folder):
        (self.port,) = free_ports(1)
        super().__init__(
            "redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", folder=folder
        )

    def call(self, *words):
        """What it answers to a command, as far as the first line goes."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            parts = [str(word).encode() for word in words]
            text = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)
            connection.sendall(text)
            return connection.makefile().readline().strip()

    def start(self):
        super().start()
        wait_for("Redis", self._answers)

    def _answers(self):
        try:
            return self.call("PING") == "+PONG"
        except OSError:
            return False


class Chatbot(Process):
    """A replica. It keeps its ports when it is started again."""

    def __init__(self, program, name, job, folder, settings):
        self.name, self.job = name, job
        self.port, self.ops = free_ports(2)
        knowledge = Path(folder, "knowledge.jsonl")
        # A few entries: the sample takes a debug build seconds to learn.
        questions = {
            1: ["My server says too many open files", "too many open files"],
            2: ["Why does my connection drop?", "What is GOAWAY?"],
        }
        lines = [
            json.dumps({"answer_id": number, "questions": asked, "answer": f"Answer {number}."})
            for number, asked in questions.items()
        ]
        knowledge.write_text("\n".join(lines) + "\n")
        every = [
            f"server.address=127.0.0.1:{self.port}",
            f"ops.address=127.0.0.1:{self.ops}",
            f"knowledge.path={knowledge}",
            "knowledge.min_confidence=0",
            *settings,
        ]
        arguments = [part for setting in every for part in ("--set", setting)]
        super().__init__(program, "serve", *arguments, folder=folder)

    def start(self):
        super().start()
        wait_for(f"{self.name} serves", self._ready)

    def _ready(self):
        self.must_live()
        return self.get("/readyz").startswith("HTTP/1.1 200")

    def get(self, path):
        """A whole answer of the ops port; empty if there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.ops), 2) as connection:
                request = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
                connection.sendall(request.encode())
                return connection.makefile(newline="").read()
        except OSError:
            return ""

    def metric(self, name):
        lines = self.get("/metrics").splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name} ")]
        return float(values[0]) if values else None


class Model:
    """A server of /v1/chat/completions on a thread of its own. `mode` is what befalls every request:
    "good", "slow" to begin, or "broken". A question that begins with "hold" gets one piece, one that begins with
    "silent" none, and then nothing more, the first time that it is asked of any model."""

    asked = set()

    def __init__(self, slow=7.0):
        self.mode, self.slow = "good", slow
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(LONG)
        self.url = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: *(\d+)", head, re.I).group(1))
            question = json.loads(await reader.readexactly(length))["messages"][-1]["content"]
            await self._answer(writer, question)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # Its client has gone.
        finally:
            writer.close()

    async def _answer(self, writer, question):
        if self.mode == "broken":
            writer.write(b"HTTP/1.1 500 Broken\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        await writer.drain()
        word = question.split()[0]
        held = word in ("hold", "silent") and question not in self.asked
        self.asked.add(question)
        if self.mode == "slow":
            await asyncio.sleep(self.slow)
        if held and word == "silent":
            await asyncio.sleep(LONG)
        for index in range(5):
            await asyncio.sleep(0.05)
            self._event(writer, choices=[self._choice({"content": f"piece {index} "}, None)])
            await writer.drain()
            if held:
                await asyncio.sleep(LONG)
        self._event(writer, choices=[self._choice({}, "stop")])
        self._event(writer, choices=[], usage={"prompt_tokens": 20, "completion_tokens": 10})
        writer.write(b"data: [DONE]\n\n")

    @staticmethod
    def _choice(delta, reason):
        return {"index": 0, "delta": delta, "finish_reason": reason}

    @staticmethod
    def _event(writer, **fields):
        writer.write(b"data: " + json.dumps(fields).encode() + b"\n\n")


class Load:
    """Callers of one replica, until it is stopped. What goes wrong is no matter of theirs."""

    def __init__(self, replica, chats, authority=None):
        self.replica, self.authority = replica, authority
        self.stopped = threading.Event()
        turns = [threading.Thread(target=self._run, args=(self._chat,)) for _ in range(chats)]
        self.threads = [*turns, threading.Thread(target=self._run, args=(self._everything,))]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _channel(self):
        address = f"localhost:{self.replica.port}"
        options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.use_local_subchannel_pool", 1)]
        if self.authority is None:
            return grpc.insecure_channel(f"127.0.0.1:{self.replica.port}", options)
        return grpc.secure_channel(
            address, grpc.ssl_channel_credentials(self.authority.read_bytes()), options
        )

    def _run(self, once):
        with self._channel() as channel:
            bot = rpc.ChatbotStub(channel)
            while not self.stopped.is_set():
                try:
                    once(bot)
                except grpc.RpcError:
                    pass
                self.stopped.wait(0.1)

    def _chat(self, bot):
        request = pb.ChatRequest(query=f"why {random.random()}", request_id=str(uuid.uuid4()))
        for _ in bot.Chat(request, timeout=30):
            pass

    def _everything(self, bot):
        query = "too many open files"
        list(bot.RankAnswers(pb.RankAnswersRequest(query=query, max_answers=2), timeout=5))
        ask = pb.AskRequest(
            query=query, request_id=str(uuid.uuid4()), engine=pb.ENGINE_RETRIEVAL
        )
        answer = bot.Ask(ask, timeout=5)
        cancel = pb.CancelTurnRequest(
            conversation_id=answer.conversation_id, turn_id=ask.request_id
        )
        bot.CancelTurn(cancel, timeout=5)
        entry = pb.KnowledgeEntry(answer_id=7, questions=["What is new?"], answer="This.")
        bot.Teach(iter([pb.TeachRequest(upsert=entry)]), timeout=5)
        join = pb.ConverseRequest(join=pb.Join(conversation_id=answer.conversation_id))
        for _ in bot.Converse(iter([join]), timeout=5):
            pass


def idle_connection(source, port):
    """A client of HTTP/2 that has greeted and asks nothing: preface and empty SETTINGS. `None` if it is
    turned away."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), 2, (source, 0))
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        return connection
    except OSError:
        return None


class Certificates:
    """An authority, and a certificate of `localhost` in a file that is replaced."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = folder / "ca.pem"
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        name = "/CN=authority"
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", name,
                      "-keyout", "ca.key", "-out", self.authority)
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
                      "-keyout", self.key, "-out", "request.pem")
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=a\n[a]\ndatabase=index\nserial=serial\nnew_certs_dir=.\n"
            "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n"
            "[x]\nsubjectAltName=DNS:localhost\n"
        )
        (folder / "index").write_text("")
        (folder / "serial").write_text("01\n")

    def issue(self, since, until):
        """Valid from so many days from now until so many."""
        day = lambda days: time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * 86400))
        self._openssl("ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", self.authority,
                      "-keyfile", "ca.key", "-extensions", "x", "-startdate", day(since),
                      "-enddate", day(until), "-in", "request.pem", "-out", "new.pem")
        (self.folder / "new.pem").replace(self.certificate)

    def _openssl(self, *arguments):
        done = subprocess.run(["openssl", *map(str, arguments)], cwd=self.folder, capture_output=True)
        if done.returncode:
            raise AssertionError(f"openssl {arguments[0]}: {done.stderr.decode()}")
