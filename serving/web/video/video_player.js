/* The page around a live video: its buttons, its numbers, and what they do to the loop in live_video.js. */

import { readableProblem } from "../api.js";
import { layerOf } from "../layers/layers.js";
import { el, icon, titleOf } from "../page/dom.js";
import { liveCards } from "../panels/live_findings.js";
import { formatMs, timingPanel } from "../panels/timing.js";
import { FrameRate } from "./frame_rate.js";
import { LiveVideo } from "./live_video.js";
import { VideoView } from "./video_view.js";

const TELL_MS = 250; // numbers that change faster can't be read
const TIMING_EVERY = 4; // of these
const SAID = {
  playing: "Playing",
  paused: "Paused",
  ended: "The clip is over",
  stopped: "Stopped",
  failed: "The video stopped",
};
const CAMERA_LEFT = "The camera was switched off when you left this tab.";

const byId = (id) => document.getElementById(id);

/** Says something below the video. It is spoken, so that it is not written anew for each frame. */
function note(text) {
  if (byId("player-note").textContent !== text) byId("player-note").textContent = text;
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export class VideoPlayer {
  #page;
  #view = new VideoView(byId("panes"));
  #live = null;
  #rate = new FrameRate();
  #layers = new Map(); // of the last answer, by task
  #last = null; // { answer, latencyMs }
  #skipped = 0; // frames that were on show and not sent
  #dropped = 0; // frames that were sent and not answered
  #told = 0;
  #telling = null;
  #resumes = false; // when the tab is looked at again

  /**
   * `announce(text)` speaks to screen readers, `showProblem(problem, onRetry)`, `clearProblem()`, `labelsOf(task)`,
   * `shownViews()` are the views to show, [{ key, title }], `onAnswer(answer, file)` now and then, with the clip's file.
   */
  constructor(page) {
    this.#page = page;
    byId("play").addEventListener("click", () => this.toggle());
    byId("stop").addEventListener("click", () => this.#live.stop());
    byId("seek").addEventListener("input", () => {
      this.#live.source.position = Number(byId("seek").value);
    });
    byId("sent-side").addEventListener("change", () => {
      this.#live.sentSide = Number(byId("sent-side").value);
    });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#leave() : this.#comeBack()));
    window.addEventListener("pagehide", () => this.#live?.stop());
  }

  get isOpen() {
    return this.#live !== null;
  }

  /** What the bare picture is called. */
  get title() {
    return this.#live.source.isCamera ? "Camera" : "Clip";
  }

  /** Plays a source from now on; `ask` and `showViews` follow. */
  open(source) {
    this.close();
    const live = new LiveVideo(source, {
      onAnswer: (answer, bitmap, latencyMs) => this.#take(live, answer, bitmap, latencyMs),
      onSkip: (presented, sent) => {
        this.#skipped = Math.max(0, presented - sent);
      },
      onState: (state) => this.#showState(state),
      onProblem: (problem) => this.#page.showProblem(problem, () => this.#play()),
    });
    this.#live = live;
    live.sentSide = Number(byId("sent-side").value);
    byId("player").hidden = false;
    byId("live").hidden = false;
    byId("seek-holder").hidden = source.duration === null || source.isCamera;
    byId("seek").max = source.duration ?? 0;
    this.#telling = setInterval(() => this.#tell(), TELL_MS);
    this.#tell();
    this.#play();
  }

  /** Asks this, { tasks, options }, from now on. */
  ask(asked) {
    this.#live.ask(asked);
  }

  /** A canvas of what is shown; null before the first answer. */
  toPicture() {
    return this.#view.toPicture();
  }

  showViews() {
    const { width, height } = this.#live.source;
    this.#view.show(this.#page.shownViews(), width / height || 16 / 9);
    if (this.#last) this.#view.describe(this.#last.answer.errors ?? {});
  }

  close() {
    if (!this.#live) return;
    clearInterval(this.#telling);
    this.#live.close();
    this.#live = null;
    this.#view.clear();
    this.#layers = new Map();
    this.#last = null;
    this.#skipped = 0;
    this.#dropped = 0;
    this.#resumes = false;
    this.#rate.reset();
    byId("progress").hidden = true;
    byId("player").hidden = true;
    byId("live").hidden = true;
  }

  #play() {
    this.#page.clearProblem();
    note("");
    this.#live.play();
  }

  /** Plays what is paused, and the other way round. */
  toggle() {
    if (this.#live.state === "playing") this.#live.pause();
    else this.#play();
  }

  #leave() {
    if (this.#live?.state !== "playing") return;
    if (this.#live.source.isCamera) {
      this.#live.stop();
      note(CAMERA_LEFT);
    } else {
      this.#live.suspend();
      this.#resumes = true;
    }
  }

  #comeBack() {
    if (this.#resumes) this.#live?.play();
    this.#resumes = false;
  }

  #showState(state) {
    const { isCamera } = this.#live.source;
    const isPlaying = state === "playing";
    const isOff = state === "stopped" || state === "failed";
    const doing = isPlaying ? "Pause" : state === "ended" ? "Play again" : isCamera && isOff ? "Start camera" : "Play";
    byId("play").replaceChildren(icon(isPlaying ? "pause" : "play"), el("span", { text: doing }));
    byId("stop").disabled = isOff;
    byId("progress").hidden = !isPlaying || this.#last !== null;
    if (isPlaying) this.#rate.reset();
    this.#page.announce(SAID[state]);
    this.#tell();
  }

  async #take(live, answer, bitmap, latencyMs) {
    const layers = new Map();
    const image = answer.image ?? bitmap;
    for (const [task, result] of Object.entries(answer.results ?? {})) {
      layers.set(task, await layerOf(result, this.#page.labelsOf(task), image, this.#layers.get(task)));
    }
    if (this.#live !== live) {
      bitmap.close();
      return;
    }
    if (!this.#last) this.#page.announce(`Live: ${Object.keys(answer.results ?? {}).map(titleOf).join(", ")}`);
    this.#last = { answer, latencyMs };
    this.#layers = layers;
    this.#dropped += answer.dropped_since_last;
    this.#rate.add(latencyMs);
    this.#view.draw(bitmap, layers);
    byId("progress").hidden = true;
    note(answer.error ? readableProblem(answer.error, "A frame failed").detail : "");
  }

  /** Writes the numbers. */
  #tell() {
    const { source } = this.#live;
    const { perSecond, latencyMs } = this.#rate;
    byId("live-rate").textContent = perSecond === null ? "–" : perSecond.toFixed(perSecond < 9.95 ? 1 : 0);
    byId("live-latency").textContent = latencyMs === null ? "–" : formatMs(latencyMs);
    byId("live-skipped").textContent = String(this.#skipped);
    byId("live-dropped").textContent = String(this.#dropped);
    byId("seek").value = source.position;
    byId("clock").textContent = source.isCamera
      ? ""
      : `${clock(source.position)} / ${source.duration === null ? "–" : clock(source.duration)}`;
    if (!this.#last || this.#last.isTold) return;
    const { answer } = this.#last;
    this.#last.isTold = true;
    this.#view.describe(answer.errors ?? {});
    this.#page.onAnswer(answer, source.file);
    byId("findings").replaceChildren(...liveCards(answer.results ?? {}, this.#layers));
    if (this.#told++ % TIMING_EVERY === 0 && answer.timing) {
      byId("timing-body").replaceChildren(...timingPanel(answer, this.#last.latencyMs));
      byId("timing").hidden = false;
    }
  }
}
