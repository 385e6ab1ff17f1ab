"""The service config, in grpcio itself and without any of our own code; credentials; the stubs."""

import base64
import hashlib
import json
import shutil
import subprocess
import threading
import time
import uuid
from pathlib import Path

import grpc
import pytest
from world import LONG, Proxy, Server, wait_for

from chatbot_client import ChatbotError, Client, Health, Options, RetryPolicy, Tls, pb
from chatbot_client.v1 import chatbot_pb2_grpc as rpc

PACKAGE = Path(__file__).parents[1]
QUESTION = "My server says too many open files. What should I do?"
CONFIG = PACKAGE.parent / "service-config.json"


def channel(target, *more, config=None):
    text = CONFIG.read_text() if config is None else json.dumps(config)
    arguments = [
        ("grpc.service_config", text),
        ("grpc.default_authority", "chatbot"),
        ("grpc.use_local_subchannel_pool", 1),
        *more,
    ]
    return grpc.insecure_channel(target, arguments)


def ask(stub, **how):
    request = pb.AskRequest(query=QUESTION, request_id=str(uuid.uuid4()))
    return stub.Ask(request, timeout=10, **how)


def test_the_stubs_and_the_config_are_those_of_the_repository():
    made = subprocess.run([PACKAGE / "generate", "--check"], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr


def test_each_method_of_the_config_is_one_of_the_service():
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["Chatbot"].methods}
    for config in json.loads(CONFIG.read_text())["methodConfig"]:
        assert {name["method"] for name in config["name"]} <= methods - {"Chat", "Teach", "Converse"}


@pytest.fixture
def pair():
    """Two servers with nothing in common."""
    fast = "server.drain_delay=2s", "server.drain_grace=1s"
    starting = Server(*fast), Server(*fast)
    with starting[0] as one, starting[1] as other:
        yield one, other


def test_a_plain_channel_repeats_and_leaves_what_is_not_ready(server, pair):
    # 1. The retry policy: a connection that is cut each time is asked again by the library.
    config = {**json.loads(CONFIG.read_text())}
    del config["healthCheckConfig"]
    config_without_retries = {k: v for k, v in config.items() if k != "methodConfig"}
    for chosen, ends_well in ((config, True), (config_without_retries, False)):
        with Proxy(server.address) as proxy, channel(proxy.address, config=chosen) as plain:
            stub = rpc.ChatbotStub(plain)
            ask(stub)
            proxy.held = True
            timer = threading.Timer(0.3, lambda: (proxy.cut(), setattr(proxy, "held", False)))
            timer.start()
            if ends_well:
                assert ask(stub, wait_for_ready=True).answer.answered
            else:
                with pytest.raises(grpc.RpcError) as failed:
                    ask(stub, wait_for_ready=True)
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            timer.join()

    # 2. Health: the server that stops says so two seconds before it ends anything; nothing is sent to
    # it from then on, and nothing fails.
    one, other = pair
    with Proxy(one.address) as first, Proxy(other.address) as second:
        with channel(f"ipv4:{first.address},{second.address}") as plain:
            stub = rpc.ChatbotStub(plain)
            for _ in range(20):
                ask(stub, wait_for_ready=True)
            # Round robin.
            assert first.heard > 1_000 and second.heard > 1_000
            one.process.terminate()
            began = time.monotonic()
            heard = None
            while time.monotonic() < began + 5:
                ask(stub)
                time.sleep(0.005)
                elapsed = time.monotonic() - began
                if heard is None and elapsed > 0.7:
                    heard = first.heard, second.heard
                if elapsed < 1.8:
                    last = first.heard, second.heard
            one.process.wait(LONG)
        # Not a call, but for what HTTP/2 says of itself.
        assert last[0] - heard[0] < 100 and last[1] - heard[1] > 1_000, (heard, last)


def certificates(folder):
    """An authority, a server's and a client's certificate, made by openssl."""

    def run(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    for name, san in (("server", "DNS:chatbot.test,IP:127.0.0.1"), ("client", "DNS:client.test")):
        run("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        Path(folder, f"{name}.ext").write_text(f"subjectAltName={san}\n")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-extfile", f"{name}.ext", "-out", f"{name}.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_tls_and_a_token(tmp_path):
    certificates(tmp_path)
    token = base64.b64encode(uuid.uuid4().bytes).decode()
    digest = hashlib.sha256(token.encode()).hexdigest()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"sha256:{digest} tester chat\n")
    settings = [
        f"tls.cert_file={tmp_path}/server.pem",
        f"tls.key_file={tmp_path}/server.key",
        f"tls.client_ca_file={tmp_path}/ca.pem",
    ]
    quick = RetryPolicy(max_attempts=2)
    ca = f"{tmp_path}/ca.pem"
    own = dict(certificate_file=f"{tmp_path}/client.pem", key_file=f"{tmp_path}/client.key")
    starting = [
        Server(*settings),
        Server(f"auth.tokens_file={tokens}"),
        Server(*settings[:2], f"auth.tokens_file={tokens}"),
    ]
    with starting[0] as server:
        for name in (None, "chatbot.test"):
            tls = Tls(ca_file=ca, server_name=name, **own)
            with Client(server.address, Options(tls=tls)) as client:
                assert client.ask(QUESTION).answer.answered
        with Client(server.address, Options(tls=Tls(ca_file=ca), retry=quick)) as client:
            with pytest.raises(ChatbotError):
                client.ask("no certificate")
    with starting[1] as server:
        with Client(server.address, Options(token=token)) as client:
            assert client.ask(QUESTION).answer.answered
            assert client.health() is Health.SERVING
        for wrong in (None, "guess"):
            with Client(server.address, Options(token=wrong)) as client:
                with pytest.raises(ChatbotError) as failed:
                    client.ask(QUESTION)
                assert failed.value.reason == "CREDENTIAL_MISSING"
                assert token not in str(failed.value)
    # A token in the channel's credentials goes with the channel's own health checks, too.
    with starting[2] as server:
        current = lambda: token  # noqa: E731
        options = Options(tls=Tls(ca_file=ca), token=current, check_health=True, retry=quick)
        with Client(server.address, options) as client:
            assert wait_for(lambda: client.ask(QUESTION).answer.answered)
            assert [type(event).__name__ for event in client.chat(QUESTION)][-1] == "Completed"
