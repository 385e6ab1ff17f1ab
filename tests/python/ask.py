"""A client that is not ours: grpcio, with stubs that grpc_tools.protoc makes from our proto.

usage: ask.py PROTO_FOLDER SERVER OPS

Exits with 0 if the server answers as promised, else with a traceback.
"""

import importlib
import pathlib
import sys
import tempfile
import uuid

import grpc
from grpc_tools import protoc


def stubs(folder):
    """Compiles our protos and imports what comes out."""
    out = tempfile.mkdtemp()
    include = pathlib.Path(protoc.__file__).parent / "_proto"
    protos = ["chatbot/v1/chatbot.proto", "grpc/health/v1/health.proto"]
    arguments = [f"-I{folder}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *arguments, *protos]) != 0:
        raise SystemExit("protoc refuses our proto")
    # grpcio is a package of the name "grpc" too: ours must be found by path, beside it.
    sys.path.insert(0, out)
    grpc.__path__.append(str(pathlib.Path(out) / "grpc"))
    return [
        importlib.import_module(name)
        for name in (
            "chatbot.v1.chatbot_pb2",
            "chatbot.v1.chatbot_pb2_grpc",
            "grpc.health.v1.health_pb2",
            "grpc.health.v1.health_pb2_grpc",
        )
    ]


def main(folder, server, ops):
    pb, rpc, health_pb, health_rpc = stubs(folder)
    with grpc.insecure_channel(server) as channel, grpc.insecure_channel(ops) as probe:
        bot = rpc.ChatbotStub(channel)

        def ask(query):
            request = pb.AskRequest(query=query, request_id=str(uuid.uuid4()))
            return bot.Ask(request, timeout=10).answer

        english = ask("My server says too many open files. What should I do?")
        assert english.answered and english.sources[0].answer_id == 1005, english
        korean = ask("30분마다 gRPC 연결이 끊겨요. 왜 그런가요?")
        assert korean.answered and korean.sources[0].answer_id == 2008, korean
        for off_topic in ("What is the best pizza in Naples?", "내일 서울 날씨 어때?"):
            unknown = ask(off_topic)
            assert not unknown.answered and unknown.text, unknown

        request = pb.RankAnswersRequest(query="GOAWAY last-stream-id", max_answers=5)
        ranked = list(bot.RankAnswers(request, timeout=10))
        scores = [answer.score for answer in ranked]
        assert 2 <= len(ranked) <= 5 and scores == sorted(scores, reverse=True), ranked
        assert {answer.answer_id for answer in ranked[:2]} == {1009, 2009}, ranked

        entry = pb.KnowledgeEntry(answer_id=9001, questions=["quokka smile"], answer="Always.")
        changes = [pb.TeachRequest(upsert=entry), pb.TeachRequest(delete_answer_id=-1)]
        taught = bot.Teach(iter(changes), timeout=10)
        assert taught.upserted_count == 1 and taught.rejected_count == 1, taught
        assert ask("quokka smile").text == "Always."

        try:
            ask("")
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
        else:
            raise AssertionError("an empty query was answered")

        for health in (health_rpc.HealthStub(channel), health_rpc.HealthStub(probe)):
            request = health_pb.HealthCheckRequest(service="readiness")
            assert health.Check(request, timeout=10).status == 1
            assert next(health.Watch(request, timeout=10)).status == 1
            assert len(health.List(health_pb.HealthListRequest(), timeout=10).statuses) == 5


if __name__ == "__main__":
    main(*sys.argv[1:])
