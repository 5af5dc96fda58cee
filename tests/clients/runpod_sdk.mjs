// What a user of the npm package runpod-sdk writes: node runpod_sdk.mjs FIFO. Prints what each call gave, as JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const runpodSdk = createRequire(process.env.RUNPOD_SDK + "/")("runpod-sdk").default;

const [fifo] = process.argv.slice(2);
const baseUrl = process.env.RUNPOD_ENDPOINT_BASE_URL;
const endpoint = runpodSdk("key", { baseUrl }).endpoint("handler");
const said = {};
const job = await endpoint.run({ input: { kind: "echo", n: 1 } });
said.run = job.status;
const ended = async (id) => {
  for (;;) {
    const answer = await endpoint.status(id);
    if (answer.completed) return answer;
  }
};
said.output = (await ended(job.id)).output;
said.runSync = (await endpoint.runSync({ input: { kind: "echo", n: 2 } })).output;
said.failed = (await endpoint.runSync({ input: { kind: "fail" } })).status;
const streaming = await endpoint.run({ input: { kind: "stream" } });
said.stream = [];
for await (const chunk of endpoint.stream(streaming.id)) said.stream.push(chunk.output);
const waiting = await endpoint.run({ input: { kind: "wait", reached: fifo } });
readFileSync(fifo);
said.in_progress = (await endpoint.status(waiting.id)).status;
const queued = await endpoint.run({ input: { kind: "echo" } });
said.health = await endpoint.health();
said.purgeQueue = await endpoint.purgeQueue();
said.purged = (await endpoint.status(queued.id)).status;
said.cancel = (await endpoint.cancel(waiting.id)).status;
said.cancelled = (await endpoint.status(waiting.id)).status;
console.log(JSON.stringify(said));
