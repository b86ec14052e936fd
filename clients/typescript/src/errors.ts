import type { Problem } from "./schema.js";

/** What servers of this version say; a newer one may say more. */
export type ProblemCode = Problem["code"] | (string & {});

/** A request that the server refused. Branch on `code`; `detail` is for a person. */
export class RaddleError extends Error {
  override readonly name = "RaddleError";
  readonly status: number;
  readonly code: ProblemCode;
  readonly detail: string;
  readonly requestId: string | null;
  /** Seconds after which it is worth to try again, where the server says so. */
  readonly retryAfter: number | null;
  /** The whole document: problems of some codes carry further fields. */
  readonly problem: Readonly<Record<string, unknown>>;

  constructor(status: number, problem: Record<string, unknown>, retryAfter: number | null = null) {
    const text = (name: string): string | null => {
      const value = problem[name];
      return typeof value === "string" ? value : null;
    };
    const code = text("code") ?? "unknown";
    const detail = text("detail") ?? `the server answered ${status}`;
    super(`${detail} (${status} ${code})`);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.requestId = text("request_id");
    this.retryAfter = retryAfter;
    this.problem = problem;
  }

  /** The error in an answer; what is not a server of ours may answer anything. */
  static async of(response: Response): Promise<RaddleError> {
    let problem: unknown;
    try {
      problem = JSON.parse(await response.text());
    } catch {
      // No JSON, or cut off: the status is all there is.
    }
    const fields = typeof problem === "object" && problem !== null ? (problem as Record<string, unknown>) : {};
    return new RaddleError(response.status, fields, retryAfter(response));
  }
}

/** The seconds of `Retry-After`; servers of ours give no dates. */
export function retryAfter(response: Response): number | null {
  const text = response.headers.get("retry-after");
  return text !== null && /^[0-9]+$/.test(text) ? Number(text) : null;
}
