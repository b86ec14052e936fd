// An agent that does what the last part of its prompt says, a line at a time:
//
//   say TEXT         streams TEXT
//   think TEXT       streams TEXT as a thought
//   recite           streams the whole prompt
//   run ID FILE      appends to FILE, without asking
//   ask ID FILE      appends to FILE, if it may; and what went wrong, if its question was taken back before it was cancelled
//   hold ID FILE     appends `begun` to FILE, and then waits to be cancelled
//   die              ends at once
//   pid              streams the number of the process
//   cwd              streams the directory and the names of the environment
import { appendFileSync } from "node:fs";
import { Readable, Writable } from "node:stream";

const acp = await import(process.env.ACP_SDK);

function chunk(kind, text) {
  return { sessionUpdate: kind, content: { type: "text", text } };
}

async function perform(line, prompt, session, client, signal) {
  const update = (update) => client.notify(acp.methods.client.session.update, { sessionId: session, update });
  const change = (toolCallId, fields) => update({ sessionUpdate: "tool_call_update", toolCallId, ...fields });
  const [word, ...rest] = line.split(" ");
  const text = rest.join(" ");
  const [id, file] = rest;
  const output = (text) => [{ type: "content", content: { type: "text", text } }];
  const announce = (kind) =>
    update({
      sessionUpdate: "tool_call",
      toolCallId: id,
      title: `write ${id}`,
      kind,
      status: "pending",
      rawInput: { command: `append ${id}` },
    });
  switch (word) {
    case "say":
      await update(chunk("agent_message_chunk", text));
      return;
    case "think":
      await update(chunk("agent_thought_chunk", text));
      return;
    case "recite":
      await update(chunk("agent_message_chunk", prompt));
      return;
    case "cwd":
      await update(chunk("agent_message_chunk", `${process.cwd()} ${Object.keys(process.env).sort()}`));
      return;
    case "pid":
      await update(chunk("agent_message_chunk", `${process.pid}`));
      return;
    case "run":
      await announce("execute");
      await change(id, { status: "in_progress", content: output("begun") });
      appendFileSync(file, `${id}\n`);
      await change(id, { status: "completed", content: output("begun\ndone") });
      return;
    case "ask": {
      await announce("edit");
      const options = [
        { optionId: "always", name: "Always", kind: "allow_always" },
        { optionId: "once", name: "Once", kind: "allow_once" },
        { optionId: "never", name: "No", kind: "reject_once" },
      ];
      const toolCall = { toolCallId: id };
      const request = { sessionId: session, toolCall, options };
      const { outcome } = await client.request(acp.methods.client.session.requestPermission, request);
      if (outcome.outcome === "selected" && outcome.optionId === "once") {
        await change(id, { status: "in_progress" });
        appendFileSync(file, `${id}\n`);
        await change(id, { status: "completed", content: output("written") });
      } else {
        if (outcome.outcome === "cancelled" && /"session\/cancel"|"cancelled"/.exec(told)[0] === '"cancelled"') {
          appendFileSync(file, "not cancelled before its question was\n");
        }
        await change(id, { status: "failed", content: output("refused") });
        await update(chunk("agent_message_chunk", `${id} was refused`));
      }
      return;
    }
    case "hold":
      await announce("execute");
      await change(id, { status: "in_progress" });
      appendFileSync(file, "begun\n");
      await new Promise((resolve) => signal.addEventListener("abort", resolve));
      appendFileSync(file, "cancelled\n");
      return;
    case "die":
      process.exit(7);
  }
}

// All that was heard, in its order.
let told = "";
const decoder = new TextDecoder();
const heard = new TransformStream({
  transform(bytes, listener) {
    told += decoder.decode(bytes, { stream: true });
    listener.enqueue(bytes);
  },
});

let running;
acp
  .agent({ name: "test-agent" })
  .onRequest(acp.methods.agent.initialize, () => ({ protocolVersion: acp.PROTOCOL_VERSION, agentCapabilities: {} }))
  .onRequest(acp.methods.agent.session.new, () => ({ sessionId: "session-1" }))
  .onNotification(acp.methods.agent.session.cancel, () => running?.abort())
  .onRequest(acp.methods.agent.session.prompt, async ({ params, client }) => {
    running = new AbortController();
    const parts = params.prompt.map((part) => part.text);
    for (const line of parts.at(-1).split("\n")) {
      await perform(line, parts.join("\n---\n"), params.sessionId, client, running.signal);
      if (running.signal.aborted) return { stopReason: "cancelled" };
    }
    return { stopReason: "end_turn" };
  })
  .connect(acp.ndJsonStream(Writable.toWeb(process.stdout), Readable.toWeb(process.stdin).pipeThrough(heard)));
