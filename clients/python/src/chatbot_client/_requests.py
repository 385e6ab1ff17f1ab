"""The service's requests, from what a caller says."""

from __future__ import annotations

import uuid
from typing import Any, Callable, Iterable

import grpc
from google.protobuf import wrappers_pb2

from ._errors import Failure
from ._options import Health
from .v1 import chatbot_pb2 as pb


def ask_request(
    query: str, conversation_id: str, request_id: str, engine: int, language_code: str
) -> pb.AskRequest:
    return pb.AskRequest(
        query=query,
        conversation_id=conversation_id,
        # Made once, here: whoever sends the request again, grpcio included, sends this id.
        request_id=request_id or str(uuid.uuid4()),
        engine=engine,  # type: ignore[arg-type]
        language_code=language_code,
    )


def chat_request(
    query: str,
    conversation_id: str,
    request_id: str,
    engine: int,
    language_code: str,
    resume_token: str,
) -> pb.ChatRequest:
    return pb.ChatRequest(
        query=query,
        conversation_id=conversation_id,
        request_id=request_id or str(uuid.uuid4()),
        engine=engine,  # type: ignore[arg-type]
        language_code=language_code,
        resume_token=resume_token,
    )


def rank_request(
    query: str, max_answers: int, excluded_answer_ids: Iterable[int], language_code: str
) -> pb.RankAnswersRequest:
    return pb.RankAnswersRequest(
        query=query,
        max_answers=max_answers,
        excluded_answer_ids=excluded_answer_ids,
        language_code=language_code,
    )


def health_call(channel: Any) -> Callable[..., Any]:
    """grpc.health.v1's Check. Its messages are one string and one enum, so these two of protobuf's own
    do; stubs would collide with those of grpcio-health-checking wherever both are imported."""
    return channel.unary_unary(  # type: ignore[no-any-return]
        "/grpc.health.v1.Health/Check",
        request_serializer=wrappers_pb2.StringValue.SerializeToString,
        response_deserializer=wrappers_pb2.Int32Value.FromString,
    )


def health_request(service: str) -> wrappers_pb2.StringValue:
    return wrappers_pb2.StringValue(value=service)


def health_of(response: wrappers_pb2.Int32Value) -> Health:
    try:
        return Health(response.value)
    except ValueError:
        return Health.UNKNOWN


def health_failed(error: Any) -> Health:
    """Raises what is no answer."""
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return Health.SERVICE_UNKNOWN
    raise Failure.of(error).error() from None
