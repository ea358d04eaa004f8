/* How many answers came a second, and how long they took, over the last few seconds. */

const WINDOW_MS = 3000;
const LEAST_ANSWERS = 3; // also of a slow server

export class FrameRate {
  #answers = []; // { atMs, latencyMs }, oldest first

  add(latencyMs, atMs = performance.now()) {
    this.#answers.push({ atMs, latencyMs });
    const isOld = ({ atMs: thenMs }) => thenMs < atMs - WINDOW_MS;
    while (this.#answers.length > LEAST_ANSWERS && isOld(this.#answers[0])) this.#answers.shift();
  }

  /** Since the last pause, which does not count as slowness. */
  reset() {
    this.#answers = [];
  }

  /** Answers a second; null before there are two. */
  get perSecond() {
    const count = this.#answers.length;
    if (count < 2) return null;
    const spanMs = this.#answers[count - 1].atMs - this.#answers[0].atMs;
    return spanMs > 0 ? (1000 * (count - 1)) / spanMs : null;
  }

  /** Median time from a frame's capture to its showing; null before there is one. */
  get latencyMs() {
    const sorted = this.#answers.map((answer) => answer.latencyMs).sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }
}
