import { retryAfter } from "./errors.js";
import { backoff, pause } from "./wait.js";

/** What sends a request, as `fetch` does. */
export type Fetch = (request: Request) => Promise<Response>;

export interface Patience {
  /** How long an answer may take, in milliseconds; for a wait, in addition to what it asks for. */
  timeout: number;
  /** How often a request is repeated. */
  retries: number;
  /** The longest that is waited before one repetition, in milliseconds. A server that asks for more is not asked again. */
  longest: number;
}

/** The routes that answer when something has happened. */
const WAIT = /\/turns\/[^/]+\/wait$/;

/**
 * Sends a request until there is an answer worth having: 429 and 503 with a `Retry-After` are waited for, and so is a
 * server that cannot be reached, where a repetition is harmless. For that every POST gets an `Idempotency-Key`.
 */
export function persistent(fetch: Fetch, { timeout, retries, longest }: Patience): Fetch {
  return async (request) => {
    if (request.method === "POST" && !request.headers.has("idempotency-key")) {
      request.headers.set("idempotency-key", randomKey());
    }
    const harmless = request.method === "GET" || request.method === "POST";
    for (let failures = 0; ; failures++) {
      const last = failures >= retries;
      // A body can be sent once.
      const copy = last ? request : request.clone();
      let wait: number;
      try {
        const response = await fetch(new Request(copy, { signal: limited(request, timeout) }));
        const seconds = retryAfter(response);
        const refused = response.status === 429 || response.status === 503;
        if (last || !refused || seconds === null || seconds * 1000 > longest) return response;
        await response.body?.cancel();
        wait = seconds * 1000 + backoff(failures, 100, 1000);
      } catch (error) {
        if (request.signal.aborted || !harmless || last) throw error;
        wait = Math.min(backoff(failures, 200, 5000), longest);
      }
      await pause(wait, request.signal);
    }
  };
}

/** The request's own signal, or the end of patience. */
function limited(request: Request, timeout: number): AbortSignal {
  const url = new URL(request.url);
  const asked = WAIT.test(url.pathname) ? Number(url.searchParams.get("timeout_ms") ?? 30_000) : 0;
  return AbortSignal.any([request.signal, AbortSignal.timeout(timeout + asked)]);
}

/** 128 random bits; `crypto.randomUUID` is missing from pages that came over plain HTTP. */
function randomKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
