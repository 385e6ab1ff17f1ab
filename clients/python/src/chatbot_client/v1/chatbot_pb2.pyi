import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Engine(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_UNSPECIFIED: _ClassVar[Engine]
    ENGINE_RETRIEVAL: _ClassVar[Engine]
    ENGINE_GENERATIVE: _ClassVar[Engine]
    ENGINE_RETRIEVAL_AUGMENTED: _ClassVar[Engine]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_MAX_TOKENS: _ClassVar[FinishReason]
    FINISH_REASON_CONTENT_FILTER: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
ENGINE_UNSPECIFIED: Engine
ENGINE_RETRIEVAL: Engine
ENGINE_GENERATIVE: Engine
ENGINE_RETRIEVAL_AUGMENTED: Engine
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_MAX_TOKENS: FinishReason
FINISH_REASON_CONTENT_FILTER: FinishReason
FINISH_REASON_CANCELLED: FinishReason

class RankAnswersRequest(_message.Message):
    __slots__ = ("query", "max_answers", "excluded_answer_ids", "language_code")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_ANSWER_IDS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    query: str
    max_answers: int
    excluded_answer_ids: _containers.RepeatedScalarFieldContainer[int]
    language_code: str
    def __init__(self, query: _Optional[str] = ..., max_answers: _Optional[int] = ..., excluded_answer_ids: _Optional[_Iterable[int]] = ..., language_code: _Optional[str] = ...) -> None: ...

class RankAnswersResponse(_message.Message):
    __slots__ = ("answer_id", "score", "text", "confidence")
    ANSWER_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    answer_id: int
    score: float
    text: str
    confidence: float
    def __init__(self, answer_id: _Optional[int] = ..., score: _Optional[float] = ..., text: _Optional[str] = ..., confidence: _Optional[float] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("query", "conversation_id", "request_id", "engine", "language_code")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    query: str
    conversation_id: str
    request_id: str
    engine: Engine
    language_code: str
    def __init__(self, query: _Optional[str] = ..., conversation_id: _Optional[str] = ..., request_id: _Optional[str] = ..., engine: _Optional[_Union[Engine, str]] = ..., language_code: _Optional[str] = ...) -> None: ...

class AskResponse(_message.Message):
    __slots__ = ("conversation_id", "answer")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    answer: TurnCompleted
    def __init__(self, conversation_id: _Optional[str] = ..., answer: _Optional[_Union[TurnCompleted, _Mapping]] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("query", "conversation_id", "request_id", "engine", "language_code", "resume_token")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    query: str
    conversation_id: str
    request_id: str
    engine: Engine
    language_code: str
    resume_token: str
    def __init__(self, query: _Optional[str] = ..., conversation_id: _Optional[str] = ..., request_id: _Optional[str] = ..., engine: _Optional[_Union[Engine, str]] = ..., language_code: _Optional[str] = ..., resume_token: _Optional[str] = ...) -> None: ...

class ChatResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence_number", "resume_token", "turn_id", "create_time", "message_posted", "text_delta", "turn_completed", "turn_failed", "conversation_id")
    SEQUENCE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_POSTED_FIELD_NUMBER: _ClassVar[int]
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    TURN_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    TURN_FAILED_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_number: int
    resume_token: str
    turn_id: str
    create_time: _timestamp_pb2.Timestamp
    message_posted: MessagePosted
    text_delta: str
    turn_completed: TurnCompleted
    turn_failed: TurnFailed
    conversation_id: str
    def __init__(self, sequence_number: _Optional[int] = ..., resume_token: _Optional[str] = ..., turn_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., message_posted: _Optional[_Union[MessagePosted, _Mapping]] = ..., text_delta: _Optional[str] = ..., turn_completed: _Optional[_Union[TurnCompleted, _Mapping]] = ..., turn_failed: _Optional[_Union[TurnFailed, _Mapping]] = ..., conversation_id: _Optional[str] = ...) -> None: ...

class MessagePosted(_message.Message):
    __slots__ = ("participant_id", "text", "request_id")
    PARTICIPANT_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    participant_id: str
    text: str
    request_id: str
    def __init__(self, participant_id: _Optional[str] = ..., text: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class TurnCompleted(_message.Message):
    __slots__ = ("turn_id", "text", "answered", "confidence", "sources", "usage", "finish_reason", "degraded")
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    text: str
    answered: bool
    confidence: float
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    usage: Usage
    finish_reason: FinishReason
    degraded: bool
    def __init__(self, turn_id: _Optional[str] = ..., text: _Optional[str] = ..., answered: bool = ..., confidence: _Optional[float] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., degraded: bool = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("answer_id", "score", "title")
    ANSWER_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    answer_id: int
    score: float
    title: str
    def __init__(self, answer_id: _Optional[int] = ..., score: _Optional[float] = ..., title: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class TurnFailed(_message.Message):
    __slots__ = ("code", "reason", "partial_text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_TEXT_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    partial_text: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., partial_text: _Optional[str] = ...) -> None: ...

class TeachRequest(_message.Message):
    __slots__ = ("upsert", "delete_answer_id")
    UPSERT_FIELD_NUMBER: _ClassVar[int]
    DELETE_ANSWER_ID_FIELD_NUMBER: _ClassVar[int]
    upsert: KnowledgeEntry
    delete_answer_id: int
    def __init__(self, upsert: _Optional[_Union[KnowledgeEntry, _Mapping]] = ..., delete_answer_id: _Optional[int] = ...) -> None: ...

class KnowledgeEntry(_message.Message):
    __slots__ = ("answer_id", "questions", "answer", "language_code")
    ANSWER_ID_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    answer_id: int
    questions: _containers.RepeatedScalarFieldContainer[str]
    answer: str
    language_code: str
    def __init__(self, answer_id: _Optional[int] = ..., questions: _Optional[_Iterable[str]] = ..., answer: _Optional[str] = ..., language_code: _Optional[str] = ...) -> None: ...

class TeachResponse(_message.Message):
    __slots__ = ("upserted_count", "deleted_count", "rejected_count", "rejections", "knowledge_revision")
    UPSERTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DELETED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REJECTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    KNOWLEDGE_REVISION_FIELD_NUMBER: _ClassVar[int]
    upserted_count: int
    deleted_count: int
    rejected_count: int
    rejections: _containers.RepeatedCompositeFieldContainer[Rejection]
    knowledge_revision: int
    def __init__(self, upserted_count: _Optional[int] = ..., deleted_count: _Optional[int] = ..., rejected_count: _Optional[int] = ..., rejections: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ..., knowledge_revision: _Optional[int] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("index", "reason")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    index: int
    reason: str
    def __init__(self, index: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("join", "post_message", "cancel_turn")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    POST_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_TURN_FIELD_NUMBER: _ClassVar[int]
    join: Join
    post_message: PostMessage
    cancel_turn: CancelTurnRequest
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., post_message: _Optional[_Union[PostMessage, _Mapping]] = ..., cancel_turn: _Optional[_Union[CancelTurnRequest, _Mapping]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("conversation_id", "resume_token")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    resume_token: str
    def __init__(self, conversation_id: _Optional[str] = ..., resume_token: _Optional[str] = ...) -> None: ...

class PostMessage(_message.Message):
    __slots__ = ("request_id", "text", "engine", "no_reply")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    NO_REPLY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    engine: Engine
    no_reply: bool
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., engine: _Optional[_Union[Engine, str]] = ..., no_reply: bool = ...) -> None: ...

class ConverseResponse(_message.Message):
    __slots__ = ("event", "heartbeat", "session_ending")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ENDING_FIELD_NUMBER: _ClassVar[int]
    event: Event
    heartbeat: Heartbeat
    session_ending: SessionEnding
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., session_ending: _Optional[_Union[SessionEnding, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SessionEnding(_message.Message):
    __slots__ = ("time_left",)
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    time_left: _duration_pb2.Duration
    def __init__(self, time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CancelTurnRequest(_message.Message):
    __slots__ = ("conversation_id", "turn_id")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    turn_id: str
    def __init__(self, conversation_id: _Optional[str] = ..., turn_id: _Optional[str] = ...) -> None: ...

class CancelTurnResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
