import createClient, { type Client, type MaybeOptionalInit, type MethodResponse } from "openapi-fetch";
import type { HttpMethod, PathsWithMethod, RequiredKeysOf } from "openapi-typescript-helpers";

import { RaddleError } from "./errors.js";
import { type FollowOptions, FeedPlace, follow, LogPlace, type Placed, type UnavailableLog } from "./follow.js";
import { type Fetch, persistent } from "./http.js";
import type { EventRecord, paths, RunEvent, TenantEventRecord } from "./schema.js";

export interface RaddleOptions {
  /** Where the server is; `http://127.0.0.1:7878` unless given. */
  server?: string;
  /** Sent as `Authorization: Bearer …`. */
  key?: string;
  /** How long an answer may take, in milliseconds; for a wait, in addition to what it asks for. 60 s unless given. */
  timeout?: number;
  /** How often a request is repeated that met 429, 503 or nobody; 4 unless given. */
  retries?: number;
  /** The longest `Retry-After` that is waited for, in milliseconds; 30 s unless given. */
  longestRetry?: number;
  /** A stream without a byte for this long is opened anew, in milliseconds; 45 s unless given. */
  silence?: number;
  /** How often in a row a stream is opened anew without progress before it fails; 30 unless given. */
  reconnects?: number;
  /** In the place of the platform's own. */
  fetch?: Fetch;
}

type Api = Client<paths, "application/json">;

/** What a call takes beside its path: nothing where the route needs nothing. */
type InitParam<Init> = RequiredKeysOf<Init> extends never ? [init?: Init] : [init: Init];

/** Calls a route, and gives what it answers; a refusal is thrown as a {@link RaddleError}. */
export type Verb<Method extends HttpMethod> = <
  Path extends PathsWithMethod<paths, Method>,
  Init extends MaybeOptionalInit<paths[Path], Method>,
>(
  path: Path,
  ...init: InitParam<Init>
) => Promise<MethodResponse<Api, Method, Path>>;

export interface Following {
  signal?: AbortSignal;
}

export interface EventsOptions extends Following {
  /** The `seq` of the last event that the caller has; from the beginning unless given. */
  after?: number;
}

export interface FeedOptions extends Following {
  /** The cursor behind the last event that the caller has; from now on unless given. */
  after?: string;
  /** Told of a log whose records are damaged; the others go on. */
  onUnavailable?: (log: UnavailableLog) => void;
}

/** A server, and how to speak to it. */
export class Raddle {
  /** The routes with status and headers, as `openapi-fetch` has them; refusals are thrown here too. */
  readonly api: Api;
  readonly get: Verb<"get">;
  readonly put: Verb<"put">;
  readonly post: Verb<"post">;
  readonly patch: Verb<"patch">;
  readonly delete: Verb<"delete">;

  readonly #server: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: Fetch;
  readonly #following: Omit<FollowOptions, "signal">;

  constructor(options: RaddleOptions = {}) {
    this.#server = (options.server ?? "http://127.0.0.1:7878").replace(/\/+$/, "");
    this.#headers = options.key === undefined ? {} : { authorization: `Bearer ${options.key}` };
    this.#fetch = options.fetch ?? ((request) => globalThis.fetch(request));
    this.#following = { silence: options.silence ?? 45_000, reconnects: options.reconnects ?? 30 };
    const { timeout = 60_000, retries = 4, longestRetry: longest = 30_000 } = options;
    const fetch = persistent(this.#fetch, { timeout, retries, longest });
    this.api = createClient<paths, "application/json">({ baseUrl: this.#server, headers: this.#headers, fetch });
    this.api.use({
      async onResponse({ response }) {
        if (!response.ok) throw await RaddleError.of(response);
      },
    });
    const verb = <Method extends HttpMethod>(name: Uppercase<Method>): Verb<Method> => {
      // That every verb has the shape of its method is what the types of `openapi-fetch` say one by one.
      const call = this.api[name as "GET"] as unknown as (path: string, init?: object) => Promise<{ data: unknown }>;
      return (async (path: string, init?: object) => (await call(path, init)).data) as unknown as Verb<Method>;
    };
    this.get = verb("GET");
    this.put = verb("PUT");
    this.post = verb("POST");
    this.patch = verb("PATCH");
    this.delete = verb("DELETE");
  }

  /**
   * The events of a thread behind `after`, as they happen, each once and in order, whatever becomes of connections and of
   * the server. It ends behind `thread.deleted`, and throws the reason of `signal`.
   */
  events(thread: string, { after = 0, signal }: EventsOptions = {}): AsyncGenerator<EventRecord, void, undefined> {
    const path = `/v1/threads/${encodeURIComponent(thread)}/events`;
    return follow(this.#stream(path, {}), new LogPlace<EventRecord>(after, "thread.deleted"), {
      ...this.#following,
      signal,
    });
  }

  /** The same for a run. */
  runEvents(run: string, { after = 0, signal }: EventsOptions = {}): AsyncGenerator<RunEvent, void, undefined> {
    const path = `/v1/runs/${encodeURIComponent(run)}/events`;
    return follow(this.#stream(path, {}), new LogPlace<RunEvent>(after, "context.run.deleted"), {
      ...this.#following,
      signal,
    });
  }

  /**
   * The events of all threads, jobs, schedules and runs of the tenant, or of some threads: each once, those of one log in
   * order. Without a cursor it begins when the connection is there; take one from {@link now} to miss nothing.
   */
  tenantEvents({ after, threads, onUnavailable = () => {}, signal }: FeedOptions & { threads?: readonly string[] } = {}) {
    const place = new FeedPlace<TenantEventRecord>(after, onUnavailable);
    const query: Record<string, string> = threads === undefined ? {} : { threads: threads.join(",") };
    return follow<Placed<TenantEventRecord>>(this.#stream("/v1/events", query), place, { ...this.#following, signal });
  }

  /** A cursor behind everything that has happened so far. */
  async now(): Promise<string> {
    return (await this.get("/v1/events", { params: { query: { limit: 1 } } })).next_cursor;
  }

  #stream(path: string, query: Record<string, string>) {
    return (cursor: string | undefined, signal: AbortSignal): Promise<Response> => {
      const url = new URL(this.#server + path);
      for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
      if (cursor !== undefined) url.searchParams.set("after", cursor);
      const headers = { ...this.#headers, accept: "text/event-stream" };
      return this.#fetch(new Request(url, { headers, signal, cache: "no-store" }));
    };
  }
}
