/* The server's WS /video as this page uses it: JPEG frames out, answers in. The protocol: serving/gateways/ws_gateway.py. */

import { readableProblem } from "../api.js";

const HEADER_BYTES = 16;
const LOST = {
  title: "The connection was lost",
  detail: "The server ended the stream without a word, or can’t be reached.",
  remedy: "Check that it is running (polyhead serve), then try again.",
};

export class VideoSocket {
  #socket;
  #problem = null;
  isStarted = false;

  /**
   * Opens a stream. `onStart()`, then `onAnswer(answer)` for each; `onEnd(problem)` once if the stream ends other than
   * by `close`.
   */
  constructor(config, { onStart, onAnswer, onEnd }) {
    const url = new URL("video", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    this.#socket = new WebSocket(url);
    this.#socket.onopen = () => this.#socket.send(JSON.stringify(config));
    this.#socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.problem) {
        this.#problem = readableProblem(message.problem, "The stream failed");
      } else if (message.started) {
        this.isStarted = true;
        onStart();
      } else {
        onAnswer(message);
      }
    };
    this.#socket.onclose = () => onEnd(this.#problem ?? LOST);
  }

  /** `capturedMs` is since 1970. */
  send(frameId, capturedMs, jpeg) {
    const header = new DataView(new ArrayBuffer(HEADER_BYTES));
    header.setBigUint64(0, BigInt(frameId), true);
    header.setBigUint64(8, BigInt(Math.round(capturedMs * 1000)), true);
    this.#socket.send(new Blob([header, jpeg]));
  }

  /** Leaves; nothing is called any more. */
  close() {
    this.#socket.onopen = null;
    this.#socket.onmessage = null;
    this.#socket.onclose = null;
    this.#socket.close();
  }
}
