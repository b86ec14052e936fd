import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type TestContext, test } from "node:test";

import { Raddle, RaddleError, type RaddleOptions } from "../src/index.js";

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

/** A server that gives one answer after the other, and a client of it. `asked` notes what it was asked for. */
async function server(t: TestContext, answers: Answer[], options: RaddleOptions = {}) {
  const asked: string[] = [];
  const keys: (string | undefined)[] = [];
  const listening = createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`);
    keys.push(request.headers["idempotency-key"] as string | undefined);
    const answer = answers[asked.length - 1] ?? refuses(410, "thread-deleted");
    request.resume().on("end", () => answer(request, response));
  });
  await new Promise<void>((resolve) => listening.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    listening.closeAllConnections();
    listening.close();
  });
  const { port } = listening.address() as AddressInfo;
  const raddle = new Raddle({ server: `http://127.0.0.1:${port}/`, ...options });
  return { raddle, asked, keys, port };
}

const refuses =
  (status: number, code: string, headers: Record<string, string> = {}): Answer =>
  (_, response) => {
    response.writeHead(status, { "content-type": "application/problem+json", ...headers });
    response.end(JSON.stringify({ status, code, detail: "no", request_id: "r1" }));
  };

const streams =
  (text: string): Answer =>
  (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(`retry: 1\n\n${text}`);
  };

const cuts =
  (text: string): Answer =>
  (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(`retry: 1\n\n${text}`, () => response.destroy());
  };

const frame = (seq: number, prev = seq - 1, event = "item.delta") =>
  `id: ${seq}\nevent: ${event}\ndata: ${JSON.stringify({ seq, prev, event })}\n\n`;

async function seqs(events: AsyncIterable<{ seq: number }>): Promise<number[]> {
  const seen: number[] = [];
  for await (const event of events) seen.push(event.seq);
  return seen;
}

test("a reader sees every event once however its stream is cut", async (t) => {
  const { raddle, asked } = await server(t, [
    streams(frame(2) + frame(3)),
    cuts(`${frame(3)}id: 4\nevent: item.delta\ndata: {"se`),
    streams(`${frame(4)}event: stream.gap\ndata: {"after":4}\n\n`),
    refuses(503, "draining", { "retry-after": "0" }),
    // What was named is behind what was received, and 5 comes again.
    streams(`${frame(5)}event: stream.end\ndata: {"reason":"shutdown","after":4}\n\n`),
    streams(frame(4) + frame(5) + frame(6)),
  ]);
  assert.deepEqual(await seqs(raddle.events("thr_1", { after: 1 })), [2, 3, 4, 5, 6]);
  const path = "GET /v1/threads/thr_1/events?after=";
  assert.deepEqual(asked, [1, 3, 3, 4, 4, 5, 6].map((after) => path + after));
});

test("an event that does not follow the last one is fetched anew", async (t) => {
  const { raddle, asked } = await server(t, [streams(frame(1) + frame(3)), streams(frame(2) + frame(3))]);
  assert.deepEqual(await seqs(raddle.events("thr_1")), [1, 2, 3]);
  assert.equal(asked[1], "GET /v1/threads/thr_1/events?after=1");
});

test("deltas that were joined since are no gap", async (t) => {
  const { raddle } = await server(t, [streams(frame(1) + frame(7, 1))]);
  assert.deepEqual(await seqs(raddle.events("thr_1")), [1, 7]);
});

test("nothing follows the last word", async (t) => {
  const { raddle, asked } = await server(t, [streams(frame(1) + frame(2, 1, "thread.deleted"))]);
  assert.deepEqual(await seqs(raddle.events("thr_1")), [1, 2]);
  assert.equal(asked.length, 1);
});

test("a refusal for good ends a stream", async (t) => {
  const { raddle, asked } = await server(t, [refuses(422, "invalid")]);
  await assert.rejects(seqs(raddle.events("thr_1", { after: 99 })), (error: RaddleError) => {
    assert.ok(error instanceof RaddleError);
    assert.deepEqual([error.status, error.code, error.detail, error.requestId], [422, "invalid", "no", "r1"]);
    return true;
  });
  assert.equal(asked.length, 1);
});

test("a stream that brings nothing is believed after so many tries", async (t) => {
  const { raddle, asked } = await server(t, Array(9).fill(streams("")), { reconnects: 3 });
  await assert.rejects(seqs(raddle.events("thr_1")), /again and again/);
  assert.equal(asked.length, 4);
});

test("a connection that has gone silent is opened anew", async (t) => {
  const silent: Answer = (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(`retry: 1\n\n${frame(1)}`);
  };
  const { raddle, asked } = await server(t, [silent, streams(frame(2))], { silence: 50 });
  assert.deepEqual(await seqs(raddle.events("thr_1")), [1, 2]);
  assert.equal(asked[1], "GET /v1/threads/thr_1/events?after=1");
});

test("a signal ends a stream with its reason", async (t) => {
  const open: Answer = (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(frame(1));
  };
  const { raddle } = await server(t, [open]);
  const leaves = new AbortController();
  const events = raddle.events("thr_1", { signal: leaves.signal });
  assert.equal((await events.next()).value?.seq, 1);
  const next = events.next();
  leaves.abort(new Error("enough"));
  await assert.rejects(next, /enough/);
});

test("a feed goes on behind the newest cursor also when that came without an event", async (t) => {
  const told: string[] = [];
  const { raddle, asked } = await server(t, [
    streams(`id: a\n\nid: b\nevent: job.queued\ndata: {"event":"job.queued"}\n\n: keep-alive\n\nid: c\n\n`),
    streams(`event: stream.gap\ndata: {"after":"d"}\n\n`),
    streams(`event: stream.unavailable\ndata: {"thread_id":"thr_1","detail":"damaged"}\n\nevent: thread.deleted\ndata: {"event":"thread.deleted"}\n\n`),
    refuses(403, "forbidden"),
  ]);
  const seen: unknown[] = [];
  const events = raddle.tenantEvents({ threads: ["thr_1", "thr_2"], onUnavailable: ({ detail }) => told.push(detail) });
  await assert.rejects(async () => {
    for await (const { cursor, record } of events) seen.push([cursor, record.event]);
  }, /forbidden/);
  assert.deepEqual(seen, [["b", "job.queued"], [undefined, "thread.deleted"]]);
  assert.deepEqual(told, ["damaged"]);
  const path = "GET /v1/events?threads=thr_1%2Cthr_2";
  assert.deepEqual(asked, [path, `${path}&after=c`, `${path}&after=d`, `${path}&after=d`]);
});

test("a POST is repeated under one key when the server says later or is gone", async (t) => {
  const gone: Answer = (_, response) => response.destroy();
  const made: Answer = (_, response) => {
    response.writeHead(201, { "content-type": "application/json" });
    response.end('{"id":"thr_1"}');
  };
  const { raddle, keys } = await server(t, [refuses(503, "busy", { "retry-after": "0" }), gone, made]);
  assert.equal((await raddle.post("/v1/threads", { body: { title: "é" } })).id, "thr_1");
  assert.equal(keys.length, 3);
  assert.match(keys[0] ?? "", /^[0-9a-f]{32}$/);
  assert.equal(new Set(keys).size, 1);
});

test("a caller's own key is kept", async (t) => {
  const { raddle, keys } = await server(t, [refuses(409, "in-flight")]);
  const params = { header: { "Idempotency-Key": "mine" } };
  await assert.rejects(raddle.post("/v1/threads", { params, body: {} }), /in-flight/);
  assert.deepEqual(keys, ["mine"]);
});

test("a refusal without a time to come back, or with a late one, is not repeated", async (t) => {
  const refusals = [refuses(503, "thread-unavailable"), refuses(429, "inbox-full", { "retry-after": "3600" })];
  const { raddle, asked } = await server(t, refusals);
  await assert.rejects(raddle.get("/v1/info"), (error: RaddleError) => error.retryAfter === null);
  await assert.rejects(raddle.get("/v1/info"), (error: RaddleError) => error.retryAfter === 3600);
  assert.equal(asked.length, 2);
});

test("an answer that is no problem document is a refusal all the same", async (t) => {
  const page: Answer = (_, response) => response.writeHead(404, { "content-type": "text/html" }).end("<html>");
  const { raddle } = await server(t, [page]);
  await assert.rejects(raddle.get("/v1/info"), (error: RaddleError) => error.status === 404 && error.code === "unknown");
});
