"""A client of the chatbot service: the connection dies, the conversation does not.

    with Client("localhost:8980") as bot:
        print(bot.ask("What is GOAWAY?").answer.text)
        for event in bot.chat("Why does my connection drop every 30 minutes?"):
            ...

`AsyncClient` is the same for asyncio. Both hold one channel, repeat what may be repeated, and resume
turns and conversations by themselves.
"""

from ._aio import AsyncChat, AsyncClient, AsyncConversation
from ._errors import (
    ChatbotError,
    ClientClosed,
    ConversationBusy,
    Failure,
    OutOfOrder,
    TurnFailed,
)
from ._events import Completed, Delta, Event, Failed, Posted, Restarted
from ._options import SERVICE_CONFIG, Health, Options, Tls
from ._retry import Retry, RetryPolicy
from ._sync import Chat, Client, Conversation
from .v1 import chatbot_pb2 as pb
from .v1.chatbot_pb2 import Engine, FinishReason

__all__ = [
    "AsyncChat",
    "AsyncClient",
    "AsyncConversation",
    "Chat",
    "ChatbotError",
    "Client",
    "ClientClosed",
    "Completed",
    "Conversation",
    "ConversationBusy",
    "Delta",
    "Engine",
    "Event",
    "Failed",
    "Failure",
    "FinishReason",
    "Health",
    "Options",
    "OutOfOrder",
    "Posted",
    "Restarted",
    "Retry",
    "RetryPolicy",
    "SERVICE_CONFIG",
    "Tls",
    "TurnFailed",
    "pb",
]
