"""A stand-in for a model's server, with a steady pace: streams of /v1/chat/completions, as many tokens as
it was started for, one after the other with a gap. Needs nothing but Python.

    python3 tests/model/scripted.py [--host 127.0.0.1] [--port 0] [--tokens 60] [--gap 0.05]

Its first line on standard output is its address.
"""

import argparse
import asyncio
import json


async def request(reader: asyncio.StreamReader) -> tuple[str, dict]:
    """The path and the body of the next request; raises IncompleteReadError at the end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return head[0].split()[1], json.loads(body or b"{}")


def event(delta: dict, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"object": "chat.completion.chunk", "model": "scripted", "choices": [choice]}
    data = f"data: {json.dumps(chunk)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer(writer: asyncio.StreamWriter, question: str, tokens: int, gap: float) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    words = f"You have asked: {question}".split()
    for number in range(tokens):
        await asyncio.sleep(gap)
        word = words[number] if number < len(words) else str(number)
        writer.write(event({"content": f"{word} "}))
        await writer.drain()
    writer.write(event({}, "stop"))
    data = b"data: [DONE]\n\n"
    writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
    await writer.drain()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--gap", type=float, default=0.05, help="seconds")
    options = parser.parse_args()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                path, body = await request(reader)
                if path != "/v1/chat/completions":
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                question = body["messages"][-1]["content"]
                await answer(writer, question, options.tokens, options.gap)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The peer has gone, as it may.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, options.host, options.port)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"http://{host}:{port}", flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
