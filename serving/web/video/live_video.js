/*
 * The loop of live video: frames of a source go to the server at the pace at which answers come back, and each answer
 * is handed on together with the very frame that it belongs to.
 */

import { ProblemError } from "../api.js";
import { VideoSocket } from "./video_socket.js";

const IN_FLIGHT = 2; // one before the encoder, one on its way
const SLOW_MS = 500; // beyond it, a second frame on its way would only grow old there

export class LiveVideo {
  #hooks;
  #asked = { tasks: [], options: {} };
  #socket = null;
  #inFlight = new Map(); // frame id → { bitmap, capturedMs }
  #sent = 0;
  #latencyMs = Infinity; // of the last answer
  #isFresh = false; // a frame is on show that was not sent yet
  #isGrabbing = false;
  #shown = Promise.resolve(); // answers are shown one after the other
  #wishes = 0; // counts what the person asked for; playing takes time to begin, and the latest wish wins

  /** "playing", "paused", "ended" (a clip is over), "failed", or "stopped". */
  state = "stopped";
  /** Pixels along the longer side of the frames that are sent. */
  sentSide = 640;

  /**
   * `onAnswer(answer, bitmap, latencyMs)` may return a promise, and closes the bitmap; `onSkip(presented, sent)` when
   * the numbers changed; `onState(state)`; `onProblem(problem)`.
   */
  constructor(source, hooks) {
    this.source = source;
    this.#hooks = hooks;
    source.onFrame = (presented) => {
      this.#isFresh = true;
      this.#hooks.onSkip(presented, this.#sent);
      this.#offer();
    };
    source.onEnd = (problem) => (problem ? this.#fail(problem) : this.#setState("ended"));
  }

  /** Asks this, { tasks, options }, from now on. If it is other than before, the stream's state begins anew. */
  ask(asked) {
    if (JSON.stringify(asked) === JSON.stringify(this.#asked)) return;
    this.#asked = asked;
    this.#hangUp();
    this.#isFresh = true; // also a frame that stands still is asked again
    this.#offer();
  }

  async play() {
    const wish = ++this.#wishes;
    try {
      await this.source.play();
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      if (wish === this.#wishes) this.#fail(error.problem);
      return;
    }
    if (wish !== this.#wishes) return;
    this.#setState("playing");
    this.#offer();
  }

  pause() {
    this.#wishes++;
    this.source.pause();
    this.#setState("paused");
  }

  /** Pauses and leaves the stream; the server forgets its state. */
  suspend() {
    this.#hangUp();
    this.pause();
  }

  stop() {
    this.#wishes++;
    this.#hangUp();
    this.source.stop();
    this.#isFresh = false;
    this.#setState("stopped");
  }

  /** Ends it for good. */
  close() {
    this.#wishes++;
    this.#hooks = { onAnswer: (_, bitmap) => bitmap.close(), onSkip() {}, onState() {}, onProblem() {} };
    this.#hangUp();
    this.source.close();
  }

  /** Sends the frame on show, if there is a new one, and room for it. */
  async #offer() {
    if (this.#asked.tasks.length === 0 || this.state === "stopped" || this.state === "failed") return;
    const room = this.#latencyMs > SLOW_MS ? 1 : IN_FLIGHT;
    if (!this.#isFresh || this.#isGrabbing || this.#inFlight.size >= room) return;
    if (!this.#socket) this.#call();
    if (!this.#socket.isStarted) return;
    const socket = this.#socket;
    this.#isFresh = false;
    this.#isGrabbing = true;
    const capturedMs = performance.now();
    try {
      const { bitmap, jpeg } = await this.source.grab(this.sentSide);
      if (socket !== this.#socket) {
        bitmap.close();
        this.#isFresh = true;
      } else {
        this.#inFlight.set(++this.#sent, { bitmap, capturedMs });
        socket.send(this.#sent, performance.timeOrigin + capturedMs, jpeg);
      }
    } catch (error) {
      if (error.name !== "InvalidStateError") throw error; // the source was closed meanwhile
    } finally {
      this.#isGrabbing = false;
    }
    this.#offer();
  }

  #call() {
    const { tasks, options } = this.#asked;
    this.#socket = new VideoSocket(
      { tasks, ...options, drop_policy: "latest", max_in_flight: IN_FLIGHT },
      {
        onStart: () => this.#offer(),
        onAnswer: (answer) => {
          this.#shown = this.#shown.then(() => this.#take(answer));
        },
        onEnd: (problem) => {
          if (this.state === "playing" || this.#isFresh || this.#inFlight.size > 0) this.#fail(problem);
          else this.#hangUp(); // paused for so long that the server ended it; the next frame opens another
        },
      },
    );
  }

  #hangUp() {
    this.#socket?.close();
    this.#socket = null;
    for (const { bitmap } of this.#inFlight.values()) bitmap.close();
    this.#inFlight.clear();
  }

  async #take(answer) {
    const frame = this.#inFlight.get(answer.frame_id);
    if (!frame) return; // asked before the stream began anew
    for (const [id, { bitmap }] of this.#inFlight) {
      if (id > answer.frame_id) break;
      this.#inFlight.delete(id);
      if (id < answer.frame_id) bitmap.close(); // dropped by the server
    }
    this.#latencyMs = performance.now() - frame.capturedMs;
    this.#offer();
    await this.#hooks.onAnswer(answer, frame.bitmap, this.#latencyMs);
    this.#rest();
  }

  /** A clip that is over needs no stream any more. */
  #rest() {
    if (this.state === "ended" && this.#inFlight.size === 0 && !this.#isFresh && !this.#isGrabbing) this.#hangUp();
  }

  #setState(state) {
    if (this.state === state) return;
    this.state = state;
    this.#hooks.onState(state);
    this.#rest();
  }

  #fail(problem) {
    this.#wishes++;
    this.#hangUp();
    if (this.source.isCamera) this.source.stop();
    else this.source.pause();
    this.#setState("failed");
    this.#hooks.onProblem(problem);
  }
}
