/** Waits, unless `signal` says that nobody waits for it any more. */
export function pause(ms: number, signal?: AbortSignal | null): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const gone = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", gone);
      resolve();
    }, ms);
    signal?.addEventListener("abort", gone, { once: true });
  });
}

/** What `work` comes to, unless it takes longer than `ms`. */
export function within<T>(ms: number, work: Promise<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(what)), ms);
  });
  // Whoever lost the race is heard by nobody, and is no failure of its own.
  work.catch(() => {});
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/** Longer with every failure in a row, and never the same for all who failed at once. */
export function backoff(failures: number, first: number, most: number): number {
  const most_now = Math.min(first * 2 ** Math.min(failures, 20), most);
  return most_now * (0.5 + Math.random() / 2);
}
