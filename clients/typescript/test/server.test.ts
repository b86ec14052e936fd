/** What a host does, against a real server: `RADDLE_TEST_SERVER` is its address, and who writes `kill` to `RADDLE_TEST_CONTROL` has it killed and started again. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect } from "node:net";
import { test } from "node:test";

import { type EventRecord, Raddle, RaddleError } from "../src/index.js";

function given(name: string): string {
  const value = process.env[name];
  assert.ok(value, `${name} is not set: this test is run by \`cargo test --test clients\``);
  return value;
}

const raddle = new Raddle({ server: given("RADDLE_TEST_SERVER") });

/** SIGKILL, and a start on the same data and port; it listens when this returns. */
async function killAndRestart(): Promise<void> {
  const [host, port] = given("RADDLE_TEST_CONTROL").split(":");
  const control = connect(Number(port), host);
  control.write("kill\n");
  const [answer] = (await once(control, "data")) as [Buffer];
  assert.equal(answer.toString(), "up\n");
  control.destroy();
}

async function newThread(): Promise<string> {
  return (await raddle.post("/v1/threads", { body: {} })).id;
}

async function start(thread: string, prompt: string): Promise<string> {
  const started = await raddle.post("/v1/threads/{thread}/turns", { params: { path: { thread } }, body: { prompt } });
  assert.ok("turn" in started);
  return started.turn.id;
}

/** The log as its pages say it. */
async function log(thread: string): Promise<EventRecord[]> {
  const all: EventRecord[] = [];
  for (;;) {
    const query = { after: all.at(-1)?.seq ?? 0, limit: 500 };
    const page = await raddle.get("/v1/threads/{thread}/events", { params: { path: { thread }, query } });
    if (page.data.length === 0) return all;
    all.push(...page.data);
  }
}

/** Nothing of the thread runs or waits. */
function atRest(event: EventRecord): boolean {
  return event.event === "thread.status" && event.payload.thread.status === "idle";
}

function dense(events: EventRecord[]): void {
  assert.deepEqual(events.map((event) => event.seq), events.map((_, at) => at + 1));
}

test("a turn is followed to its end, and a prompt that was queued runs behind it", async () => {
  const thread = await newThread();
  const first = await start(thread, "@tokens 20 50");
  const path = { thread };
  const queued = await raddle.post("/v1/threads/{thread}/turns", {
    params: { path },
    body: { prompt: "then this", delivery: "queue" },
  });
  assert.ok("admission" in queued);
  assert.equal(queued.active_turn, first);
  assert.equal(queued.admission.status, "pending");
  const events: EventRecord[] = [];
  const said = new Map<string, string>();
  let ended = 0;
  for await (const event of raddle.events(thread)) {
    events.push(event);
    if (event.event === "item.delta") {
      const turn = event.turn_id ?? "";
      said.set(turn, (said.get(turn) ?? "") + event.payload.delta);
    }
    if (event.event === "turn.completed") {
      assert.equal(event.payload.status, "completed");
      ended += 1;
    }
    if (atRest(event)) break;
  }
  assert.equal(ended, 2);
  dense(events);
  assert.equal(said.get(first)?.trim().split(/\s+/).length, 20);
  assert.equal([...said.values()][1], "echo: then this");
  assert.deepEqual(events, await log(thread));
});

test("a call waits for a person, who decides", async () => {
  const thread = await newThread();
  const turn = await start(thread, '@tool demo_put {"name": "typescript.txt", "text": "hello"}\n@say done');
  for await (const event of raddle.events(thread)) {
    if (event.event === "approval.required") {
      const params = { path: { approval: event.payload.approval.id } };
      const decided = await raddle.post("/v1/approvals/{approval}", { params, body: { decision: "approved" } });
      assert.equal(decided.status, "approved");
    }
    if (event.event === "turn.completed") {
      assert.equal(event.turn_id, turn);
      assert.equal(event.payload.status, "completed");
      break;
    }
  }
  const { data } = await raddle.get("/v1/threads/{thread}/items", { params: { path: { thread }, query: { turn } } });
  const tool = data.find((item) => item.metadata["tool"] === "demo_put");
  assert.equal(tool?.status, "completed");
});

test("a refusal is an error with its code", async () => {
  const thread = await newThread();
  const turn = await start(thread, "@tokens 1000 10");
  await assert.rejects(start(thread, "now?"), (error: unknown) => {
    assert.ok(error instanceof RaddleError);
    assert.deepEqual([error.status, error.code], [409, "turn-open"]);
    assert.equal(error.problem["active_turn"], turn);
    assert.ok(error.requestId && error.detail);
    return true;
  });
  const path = { thread, turn };
  const receipt = await raddle.post("/v1/threads/{thread}/turns/{turn}/interrupt", { params: { path }, body: {} });
  assert.equal(receipt.turn.status, "interrupted");
  const ended = await raddle.get("/v1/threads/{thread}/turns/{turn}/wait", { params: { path } });
  assert.equal(ended.status, "interrupted");
});

test("a stream goes on over a kill of the server, without a gap or a double", async () => {
  const from = await raddle.now();
  const thread = await newThread();
  await start(thread, "@tokens 60 40");
  const feed = raddle.tenantEvents({ after: from, threads: [thread] });
  const events: EventRecord[] = [];
  const fed: EventRecord[] = [];
  const watch = async () => {
    for await (const { record } of feed) {
      assert.ok("thread_id" in record);
      fed.push(record);
      if (atRest(record)) break;
    }
  };
  const watches = watch();
  let killed = false;
  for await (const event of raddle.events(thread)) {
    events.push(event);
    if (event.event === "item.delta" && !killed) {
      killed = true;
      await killAndRestart();
    }
    if (event.event === "turn.completed") assert.equal(event.payload.status, "completed");
    if (atRest(event)) break;
  }
  await watches;
  assert.ok(events.some((event) => event.event === "turn.resumed"));
  dense(events);
  assert.deepEqual(events, await log(thread));
  assert.deepEqual(fed, events);
});

test("a stream ends behind the deletion of its thread", async () => {
  const thread = await newThread();
  const events = raddle.events(thread);
  assert.equal((await events.next()).value?.event, "thread.created");
  const last = events.next();
  await raddle.delete("/v1/threads/{thread}", { params: { path: { thread } } });
  assert.equal((await last).value?.event, "thread.deleted");
  assert.equal((await events.next()).done, true);
  await assert.rejects(raddle.get("/v1/threads/{thread}", { params: { path: { thread } } }), { code: "not-found" });
});
