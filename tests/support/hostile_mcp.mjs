// An MCP server over stdio that does one thing wrong, named by its argument.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

const mode = process.argv[2];
const object = { type: "object" };
const tool = (name, inputSchema = object) => ({ name, description: `a tool: ${name}`, inputSchema });
const nested = (levels) => (levels === 0 ? object : { type: "object", properties: { p: nested(levels - 1) } });

const LISTS = {
  schemas: () => [
    tool("good"),
    tool("giant", { type: "object", description: "x".repeat(1 << 20) }),
    tool("deep", nested(40)),
    tool("elsewhere", { type: "object", properties: { p: { $ref: "http://127.0.0.1:9/schema.json" } } }),
    tool("a.b"),
    tool("a/b"),
    { name: "bare" },
    tool("fine"),
  ],
  abyss: () => [tool("deep", nested(200))],
  pages: () => [tool("one")],
};
let grown = 0;
const tools = () => (LISTS[mode] ?? (() => [tool("act"), ...Array.from({ length: grown }, (_, at) => tool(`new${at}`))]))();

const send = (message) => process.stdout.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
const text = (text) => ({ content: [{ type: "text", text }] });

const call = {
  large: (id) => send({ id, result: text("x".repeat(10 << 20)) }),
  changing: (id) => {
    grown += 1;
    send({ method: "notifications/tools/list_changed" });
    send({ id, result: text("grown") });
  },
  asking: (id, params) => {
    asked = id;
    send({ id: "s", method: "sampling/createMessage", params: { messages: [], maxTokens: 1 } });
  },
  orphans: (id) => {
    const orphan = spawn("sleep", ["1000"], { detached: true, stdio: "ignore" });
    send({ id, result: text(`${process.pid} ${orphan.pid}`) });
  },
  hanging: (id) => {
    called = id;
    send({ method: "notifications/progress", params: { progressToken: token, progress: 1, message: "hanging" } });
  },
};
let asked, called, token;

if (mode === "dies") process.exit(3);
if (mode === "flood") for (let line = 0; line < 50_000; line++) process.stderr.write(`${"e".repeat(100)}\n`);
if (mode === "noisy") process.stdout.write("Welcome!\n{\"jsonrpc\": \n\n[1, 2\n\u0000\u0001\n");

createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, method, params, error } = JSON.parse(line);
  token = params?._meta?.progressToken;
  if (mode === "silent") return;
  if (method === "initialize") {
    const serverInfo = { name: "hostile", version: "1" };
    return send({ id, result: { protocolVersion: params.protocolVersion, capabilities: { tools: { listChanged: true } }, serverInfo } });
  }
  if (method === "tools/list") {
    // A list without an end.
    return send({ id, result: mode === "pages" ? { tools: tools(), nextCursor: "more" } : { tools: tools() } });
  }
  if (method === "tools/call") return (call[mode] ?? ((id) => send({ id, result: text("done") })))(id, params);
  if (method === "notifications/cancelled") process.stderr.write(`cancelled ${params.requestId === called}\n`);
  // The answer to what was asked of the client.
  if (id === "s") send({ id: asked, result: text(`refused: ${error?.code}`) });
});
