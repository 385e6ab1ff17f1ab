// Asks, streams a turn, is cut in the middle of it, and resumes: the same request, with the token of the
// last event, over whatever connection there is.
//
// usage: run ADDRESS
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const QUESTION = "My server says too many open files. What should I do?";
const root = process.env.CHATBOT_ROOT;

/** Passes bytes on until it is told to cut. It stands for whatever cuts connections where you are. */
class Cutter {
  left = 0; // bytes towards the client until everything is cut, once; 0: never
  open = new Set();

  async listen(target) {
    const [host, port] = target.split(":");
    this.server = createServer((near) => {
      const far = connect(Number(port), host);
      for (const socket of [near, far]) {
        this.open.add(socket);
        socket.on("error", () => {});
        socket.on("close", () => [near, far].forEach((each) => each.destroy()));
      }
      near.pipe(far);
      far.on("data", (data) => {
        const cut = this.left > 0 && data.length >= this.left;
        const part = cut ? data.subarray(0, this.left) : data;
        this.left = Math.max(0, this.left - data.length);
        near.write(part);
        if (cut) this.cut();
      });
    });
    this.server.listen(0, "127.0.0.1");
    await once(this.server, "listening");
    return `127.0.0.1:${this.server.address().port}`;
  }

  cut() {
    for (const socket of this.open) socket.end(() => socket.destroy());
    this.open.clear();
  }
}

const definition = loader.loadSync("chatbot/v1/chatbot.proto", {
  includeDirs: [`${root}/proto`],
  keepCase: true,
  longs: String,
  defaults: true,
  oneofs: true,
});
const { Chatbot } = grpc.loadPackageDefinition(definition).chatbot.v1;

const cutter = new Cutter();
// One client, which is one channel, for the whole process. grpc-js does no health checking.
const bot = new Chatbot(await cutter.listen(process.argv[2]), grpc.credentials.createInsecure(), {
  "grpc.service_config": readFileSync(`${root}/clients/service-config.json`, "utf8"),
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 20_000,
});
const deadline = Date.now() + 60_000;

// The request_id makes it safe for the library to repeat the call.
const asked = await new Promise((resolve, reject) =>
  bot.Ask({ query: QUESTION, request_id: randomUUID() }, { deadline }, (error, response) =>
    error ? reject(error) : resolve(response),
  ),
);
console.log("asked: ", asked.answer.text);

const turn = { query: QUESTION, request_id: randomUUID(), resume_token: "" };
let text = "";
let sequence = 0n;
let attempts = 0;
cutter.left = 450; // behind the first event or so
for (let done = false; !done; attempts++) {
  try {
    for await (const { event } of bot.Chat(turn, { deadline })) {
      if (BigInt(event.sequence_number) <= sequence) throw new Error(`event ${sequence} came twice`);
      sequence = BigInt(event.sequence_number);
      turn.resume_token = event.resume_token;
      if (event.event === "text_delta") text += event.text_delta;
      if (event.event === "turn_completed") [text, done] = [event.turn_completed.text, true];
      if (event.event === "turn_failed") throw new Error(`the turn has failed: ${event.turn_failed.reason}`);
    }
  } catch (error) {
    // INTERRUPTED and the UPSTREAM_ reasons are of a turn that has failed, which was told before.
    if (error.code !== grpc.status.UNAVAILABLE) throw error;
    console.log("cut:   ", grpc.status[error.code]);
    await sleep(100); // grows, with jitter, in a client that is no example
  }
}
if (attempts < 2 || text !== asked.answer.text) throw new Error(`${attempts} attempts, ${text}`);
console.log("resumed:", text);
bot.close();
cutter.server.close();
cutter.cut();
