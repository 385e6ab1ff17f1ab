"""How a client reaches the service."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple, Union

import grpc

from ._retry import Retry, RetryPolicy

SERVICE_CONFIG = json.loads(Path(__file__).with_name("service_config.json").read_text())


class Health(enum.IntEnum):
    """What grpc.health.v1 says of a service."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    #: The server knows no service of this name.
    SERVICE_UNKNOWN = 3


@dataclass(frozen=True)
class Tls:
    """Files are PEM."""

    #: Authorities, in place of the system's.
    ca_file: Optional[str] = None
    #: What the server may ask of a client: its certificate and its key.
    certificate_file: Optional[str] = None
    key_file: Optional[str] = None
    #: The name in the server's certificate, where it is not that of the target.
    server_name: Optional[str] = None


@dataclass(frozen=True)
class Options:
    """Times are in seconds."""

    tls: Optional[Tls] = None
    #: A bearer token, or what gives the current one for each call.
    token: Union[None, str, Callable[[], str]] = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    #: How long a turn's stream may be silent before it is taken for dead and resumed, which is cheap
    #: and generates nothing. A model that thinks is silent, too.
    silence_limit: float = 45.0
    #: The same for a conversation that was joined. The server says each 25 s that it is alive.
    session_silence_limit: float = 60.0
    #: For Ask, RankAnswers, Teach and CancelTurn, repetitions included. A turn has 2 minutes.
    timeout: float = 150.0
    #: Whether the channel watches the health of each address and leaves those that are not ready. For
    #: targets of several addresses, such as a headless service: behind one virtual address there is
    #: nothing to turn to. With a token it needs TLS, since gRPC does not send other tokens with it.
    check_health: bool = False
    #: Pings a silent server while calls run; 0: never.
    keepalive_time: float = 30.0
    keepalive_timeout: float = 20.0
    #: Told of each repetition, before the pause; on the thread or in the task of the call.
    on_retry: Optional[Callable[[Retry], None]] = None
    #: More channel arguments, which go before those made here.
    channel: Tuple[Tuple[str, Any], ...] = ()

    def bearer(self) -> Optional[str]:
        token = self.token() if callable(self.token) else self.token
        return None if token is None else f"Bearer {token}"

    def metadata(self) -> Optional[List[Tuple[str, str]]]:
        """Of one call. Over TLS the channel's credentials have the token."""
        bearer = None if self.tls is not None else self.bearer()
        return None if bearer is None else [("authorization", bearer)]

    def arguments(self, target: str) -> List[Tuple[str, Any]]:
        """Of the channel."""
        config = dict(SERVICE_CONFIG)
        if not self.check_health:
            del config["healthCheckConfig"]
        arguments: List[Tuple[str, Any]] = [
            ("grpc.service_config", json.dumps(config)),
            # From one second by default, which is long for a server that recycles its connections.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.primary_user_agent", "chatbot-client-python"),
        ]
        if self.keepalive_time > 0:
            arguments += [
                ("grpc.keepalive_time_ms", int(self.keepalive_time * 1000)),
                ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout * 1000)),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        if self.tls is None and target.startswith(("ipv4:", "ipv6:")) and "," in target:
            # grpcio would send the whole list as the request's authority, which is none: the server's
            # HTTP/2 refuses such a request with PROTOCOL_ERROR.
            arguments.append(("grpc.default_authority", "chatbot"))
        if self.tls is not None and self.tls.server_name is not None:
            arguments.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return arguments + list(self.channel)

    def credentials(self) -> Optional[grpc.ChannelCredentials]:
        """None: plaintext."""
        if self.tls is None:
            return None

        def read(path: Optional[str]) -> Optional[bytes]:
            return None if path is None else Path(path).read_bytes()

        tls = self.tls
        channel = grpc.ssl_channel_credentials(
            read(tls.ca_file), read(tls.key_file), read(tls.certificate_file)
        )
        if self.token is None:
            return channel

        def give(_: Any, callback: Any) -> None:
            callback([("authorization", self.bearer())], None)

        # As a part of the channel's credentials it goes with the channel's own health checks, too.
        return grpc.composite_channel_credentials(channel, grpc.metadata_call_credentials(give))
