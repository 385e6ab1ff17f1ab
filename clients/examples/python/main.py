"""Asks, streams a turn, is cut in the middle of it, and hears the rest: chatbot_client resumes by itself.

usage: run ADDRESS
"""

import asyncio
import sys

from chatbot_client import AsyncClient, Completed, Delta, Options

QUESTION = "My server says too many open files. What should I do?"


class Cutter:
    """Passes bytes on until it is told to cut. It stands for whatever cuts connections where you are."""

    def __init__(self, target):
        self.host, self.port = target.rsplit(":", 1)
        #: Bytes towards the client until the connection is cut, once; 0: never.
        self.left = 0

    async def serve(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection(self.host, int(self.port))
        up = asyncio.ensure_future(self.pass_on(reader, far_writer))
        try:
            while data := await far_reader.read(65536):
                cut = 0 < self.left <= len(data)
                writer.write(data[: self.left] if cut else data)
                self.left = max(0, self.left - len(data))
                if cut:
                    await writer.drain()
                    break
        except (OSError, asyncio.CancelledError):
            pass
        up.cancel()
        writer.close()
        far_writer.close()

    async def pass_on(self, reader, writer):
        while data := await reader.read(65536):
            writer.write(data)


async def main(target):
    cutter = Cutter(target)
    async with await asyncio.start_server(cutter.serve, "127.0.0.1", 0) as proxy:
        host, port = proxy.sockets[0].getsockname()
        cuts = []

        def cut(retry):
            cuts.append(retry)
            print("cut:   ", retry.failure.code.name)

        # One client for the whole process.
        async with AsyncClient(f"{host}:{port}", Options(on_retry=cut)) as bot:
            answer = (await bot.ask(QUESTION)).answer
            print("asked: ", answer.text)

            text = ""
            cutter.left = 450  # behind the first event or so
            async for event in bot.chat(QUESTION):
                if isinstance(event, Delta):
                    text += event.text
                elif isinstance(event, Completed):
                    text = event.text
            assert cuts and text == answer.text, (cuts, text)
            print("resumed:", text)


asyncio.run(main(*sys.argv[1:]))
