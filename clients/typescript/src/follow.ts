import { RaddleError } from "./errors.js";
import { type SseBlock, SseParser } from "./sse.js";
import { backoff, pause, within } from "./wait.js";

/** What a block makes a reader do. */
export type Step<T> =
  | { do: "nothing" }
  | { do: "yield"; value: T }
  /** This one, and nothing follows it. */
  | { do: "end"; value: T }
  /** The stream is over, and goes on over another connection: at once, or when the server is likely to be back. */
  | { do: "again"; soon: boolean };

/** Where somebody stands in a stream, and what blocks mean there. */
export interface Place<T> {
  /** What to ask for; nothing before there is a place. */
  readonly cursor: string | undefined;
  take(block: SseBlock): Step<T>;
  /** Whether a refusal is the end of the stream. */
  ends(refused: RaddleError): boolean;
}

export interface FollowOptions {
  signal?: AbortSignal | undefined;
  /** After this many milliseconds without a byte a connection is taken for dead: a server says something every 15 s. */
  silence: number;
  /** How often in a row a stream is opened anew before the failure is believed. */
  reconnects: number;
}

/** How long to wait before connecting again, until the server says so. */
const RETRY = 1000;
const LONGEST_RETRY = 15_000;
/** A connection that lasted this long was a good one, even if nothing happened meanwhile. */
const LASTING = 10_000;

/** One connection. */
class Connection {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #parser = new SseParser();
  readonly #silence: number;
  readonly begun = performance.now();

  constructor(body: ReadableStream<Uint8Array>, silence: number) {
    this.#reader = body.getReader();
    this.#silence = silence;
  }

  /** The next blocks, perhaps none; nothing at the end. */
  async read(): Promise<SseBlock[] | undefined> {
    const { done, value } = await within(this.#silence, this.#reader.read(), "the stream has gone silent");
    return done ? undefined : this.#parser.push(value);
  }
}

/**
 * The events behind `place`, each once and in order, over as many connections as it takes.
 *
 * A refusal for good ends it with a {@link RaddleError}; a server that restarts, is busy or cannot be reached is tried
 * again, `reconnects` times without progress.
 */
export async function* follow<T>(
  connect: (cursor: string | undefined, signal: AbortSignal) => Promise<Response>,
  place: Place<T>,
  { signal, silence, reconnects }: FollowOptions,
): AsyncGenerator<T, void, undefined> {
  let failures = 0;
  let retry = RETRY;
  for (;;) {
    signal?.throwIfAborted();
    const own = new AbortController();
    const leave = () => own.abort(signal?.reason);
    signal?.addEventListener("abort", leave, { once: true });
    let wait = 0;
    let soon = false;
    let why: unknown = new Error("the stream ends again and again");
    try {
      let connection: Connection | undefined;
      let over = false;
      while (!over) {
        let blocks: SseBlock[] = [];
        try {
          connection ??= await open(connect(place.cursor, own.signal), silence);
          const read = await connection.read();
          over = read === undefined;
          blocks = read ?? [];
        } catch (error) {
          signal?.throwIfAborted();
          if (error instanceof RaddleError) {
            if (place.ends(error)) return;
            if (error.status < 500 && error.status !== 429) throw error;
            wait = (error.retryAfter ?? 0) * 1000;
          }
          why = error;
          over = true;
        }
        for (const block of blocks) {
          if (block.retry !== undefined) retry = block.retry;
          let step: Step<T>;
          try {
            step = place.take(block);
          } catch (error) {
            // Not what a server of ours says, or something is missing: another connection may be better.
            why = error;
            over = true;
            break;
          }
          if (step.do === "yield" || step.do === "end") {
            failures = 0;
            yield step.value;
            if (step.do === "end") return;
          } else if (step.do === "again") {
            soon = step.soon;
            over = true;
            break;
          }
        }
      }
      if (connection !== undefined && performance.now() - connection.begun > LASTING) failures = 0;
    } finally {
      signal?.removeEventListener("abort", leave);
      own.abort();
    }
    if (failures >= reconnects) throw why;
    if (!soon || failures > 0) await pause(Math.max(wait, backoff(failures, retry, LONGEST_RETRY)), signal);
    failures += 1;
  }
}

async function open(answer: Promise<Response>, silence: number): Promise<Connection> {
  const response = await within(silence, answer, "the server does not answer");
  if (!response.ok) throw await RaddleError.of(response);
  if (response.body === null) throw new Error("the server answered with nothing to read");
  return new Connection(response.body, silence);
}

/** An event of one log. */
interface Numbered {
  seq: number;
  prev: number;
  event: string;
}

/** Behind an event of one log: a thread's, or a run's. */
export class LogPlace<T extends Numbered> implements Place<T> {
  #after: number;
  readonly #lastWord: string;

  /** `lastWord` is the event that nothing follows. */
  constructor(after: number, lastWord: string) {
    this.#after = after;
    this.#lastWord = lastWord;
  }

  get cursor(): string {
    return String(this.#after);
  }

  take(block: SseBlock): Step<T> {
    // Both name the last event that was sent. What was received is the better place: it is never behind it.
    if (block.event === "stream.gap") return { do: "again", soon: true };
    if (block.event === "stream.end") return { do: "again", soon: false };
    const seq = Number(block.id ?? Number.NaN);
    // A stream that is resumed may repeat; a reader may not notice.
    if (block.data === undefined || !Number.isSafeInteger(seq) || seq <= this.#after) return { do: "nothing" };
    const value = JSON.parse(block.data) as T;
    const last = value.event === this.#lastWord;
    if (value.prev !== this.#after && !last) {
      throw new Error(`event ${seq} follows ${value.prev}, and the last one received was ${this.#after}`);
    }
    this.#after = seq;
    return { do: last ? "end" : "yield", value };
  }

  ends(refused: RaddleError): boolean {
    return refused.code === "thread-deleted";
  }
}

/** An event of a tenant, and the place behind it. */
export interface Placed<T> {
  /** Where to go on behind it. An event that is kept nowhere, such as `thread.deleted`, has none. */
  cursor: string | undefined;
  record: T;
}

/** A log whose events cannot be read; the others go on. */
export interface UnavailableLog {
  thread_id?: string;
  run_id?: string;
  detail: string;
}

/** Behind a cursor that only the server can read. */
export class FeedPlace<T> implements Place<Placed<T>> {
  cursor: string | undefined;
  readonly #unavailable: (log: UnavailableLog) => void;

  constructor(after: string | undefined, unavailable: (log: UnavailableLog) => void) {
    this.cursor = after;
    this.#unavailable = unavailable;
  }

  take(block: SseBlock): Step<Placed<T>> {
    const value = block.data === undefined ? undefined : (JSON.parse(block.data) as unknown);
    if (block.event === "stream.gap" || block.event === "stream.end") {
      const { after } = value as { after?: unknown };
      if (typeof after === "string") this.cursor = after;
      return { do: "again", soon: block.event === "stream.gap" };
    }
    // Said also without an event: whoever comes back from there has missed nothing.
    if (block.id !== undefined) this.cursor = block.id;
    if (block.event === "stream.unavailable") {
      this.#unavailable(value as UnavailableLog);
      return { do: "nothing" };
    }
    if (value === undefined) return { do: "nothing" };
    return { do: "yield", value: { cursor: block.id, record: value as T } };
  }

  ends(): boolean {
    return false;
  }
}
