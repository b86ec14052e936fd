/**
 * Server-sent events, from bytes.
 *
 * The same bytes give the same blocks however they are split. Lines end in CR, LF or both; a byte-order mark and comments
 * are read and ignored; a block that no empty line closed was cut off and is never handed out; what is not UTF-8 is an
 * error. Absent on purpose: I/O, reconnecting, what the events mean.
 */

/** What stood between two empty lines, unless that was nothing. */
export interface SseBlock {
  /** The `id:` of this block; one is not carried over to those after it. */
  id?: string;
  /** The `event:`; empty when there was none. */
  event: string;
  /** The `data:` lines, joined by newlines; without any there is no event. */
  data?: string;
  /** The `retry:` in milliseconds. */
  retry?: number;
}

/** The most characters held of one block: more than a server sends. */
const BOUND = 64 * 1024 * 1024;

export class SseParser {
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });
  readonly #bound: number;
  /** Pieces of the line that has not ended. */
  #line: string[] = [];
  #held = 0;
  /** The character before was a CR: an LF now belongs to the same line end. */
  #afterCr = false;
  #block: SseBlock = { event: "" };
  #data: string[] = [];

  constructor(bound = BOUND) {
    this.#bound = bound;
  }

  /** Reads on; gives the blocks that `bytes` completed. */
  push(bytes: Uint8Array): SseBlock[] {
    const blocks: SseBlock[] = [];
    let text = this.#decoder.decode(bytes, { stream: true });
    while (text !== "") {
      if (this.#afterCr) {
        this.#afterCr = false;
        if (text.startsWith("\n")) {
          text = text.slice(1);
          continue;
        }
      }
      const end = text.search(/[\r\n]/);
      const part = end < 0 ? text : text.slice(0, end);
      this.#held += part.length;
      if (this.#held > this.#bound) throw new Error(`an event of the stream is longer than ${this.#bound} characters`);
      this.#line.push(part);
      if (end < 0) break;
      this.#afterCr = text[end] === "\r";
      text = text.slice(end + 1);
      const line = this.#line.join("");
      this.#line = [];
      if (line !== "") this.#field(line);
      else this.#close(blocks);
    }
    return blocks;
  }

  #field(line: string): void {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#block.event = value;
    else if (name === "id" && !value.includes("\0")) this.#block.id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.#block.retry = Number(value);
    // Comments have an empty name.
  }

  #close(blocks: SseBlock[]): void {
    const block = this.#block;
    if (this.#data.length > 0) block.data = this.#data.join("\n");
    this.#block = { event: "" };
    this.#data = [];
    this.#held = 0;
    if (block.data !== undefined || block.id !== undefined || block.retry !== undefined) blocks.push(block);
  }
}
