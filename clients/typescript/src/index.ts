export { type EventsOptions, type FeedOptions, type Following, Raddle, type RaddleOptions, type Verb } from "./client.js";
export { type ProblemCode, RaddleError } from "./errors.js";
export type { Placed, UnavailableLog } from "./follow.js";
export type * from "./schema.js";
export { type SseBlock, SseParser } from "./sse.js";
