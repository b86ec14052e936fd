import assert from "node:assert/strict";
import { test } from "node:test";

import { type SseBlock, SseParser } from "../src/sse.js";

const bytes = (text: string) => new TextEncoder().encode(text);

function parse(pieces: Uint8Array[]): SseBlock[] {
  const parser = new SseParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

const all = (text: string) => parse([bytes(text)]);

/** With everything that a split may fall into. */
const STREAM =
  "\u{feff}retry: 1000\n\n: keep-alive\n\nid: 7\nevent: item.delta\ndata: {\"delta\":\"aé😀\"}\n\n" +
  "id: x1\r\n\r\ndata: a\r\ndata\r\ndata: b\r\n\r\ndata:  two\rid: 9\r\revent: stream.gap\ndata: {\"after\":9}\n\ndata: cut";

const BLOCKS: SseBlock[] = [
  { event: "", retry: 1000 },
  { event: "item.delta", id: "7", data: '{"delta":"aé😀"}' },
  { event: "", id: "x1" },
  { event: "", data: "a\n\nb" },
  { event: "", id: "9", data: " two" },
  { event: "stream.gap", data: '{"after":9}' },
];

test("a stream is the blocks that were closed", () => {
  assert.deepEqual(all(STREAM), BLOCKS);
});

test("every split gives the same blocks", () => {
  const whole = bytes(STREAM);
  assert.deepEqual(parse(Array.from(whole, (_, at) => whole.subarray(at, at + 1))), BLOCKS, "single bytes");
  for (let first = 0; first <= whole.length; first++) {
    for (let second = first; second <= whole.length; second++) {
      const pieces = [whole.subarray(0, first), whole.subarray(first, second), whole.subarray(second)];
      assert.deepEqual(parse(pieces), BLOCKS, `split at ${first} and ${second}`);
    }
  }
});

test("comments and unknown fields are no blocks", () => {
  assert.deepEqual(all(": ping\n\nwhat: ever\n\nevent: a\n\nretry: soon\n\n"), []);
});

test("a name belongs to its own block alone", () => {
  assert.deepEqual(all("event: a\ndata: 1\n\ndata: 2\n\n"), [
    { event: "a", data: "1" },
    { event: "", data: "2" },
  ]);
});

test("what is not UTF-8 is an error", () => {
  assert.throws(() => new SseParser().push(new Uint8Array([0x64, 0xff, 0x0a])));
});

test("a block without an end is refused before it is held", () => {
  const parser = new SseParser(8);
  parser.push(bytes("data: ab\n\ndata: cd\n\ndata: "));
  assert.throws(() => parser.push(bytes("efg")), /longer than 8/);
});
