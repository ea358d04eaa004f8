/* Where moving pictures come from: a clip or the camera, as a <video> that tells of each new frame. */

import { ProblemError } from "../api.js";
import { fit, makeCanvas, resize } from "../layers/canvas.js";
import { el } from "../page/dom.js";

const JPEG_QUALITY = 0.85;
const SHOWN_MAX_SIDE = 1280;
const CAMERA_WISHES = { audio: false, video: { width: { ideal: 1280 }, height: { ideal: 720 } } };
const CAMERA_PROBLEMS = {
  NotAllowedError: {
    title: "The camera was not allowed",
    detail: "Your browser keeps it from this page, or you said no.",
    remedy: "Allow the camera beside the page’s address, then try again.",
  },
  NotFoundError: {
    title: "No camera was found",
    detail: "Your browser knows of none on this device.",
    remedy: "Connect one and try again, or open a clip.",
  },
  NotReadableError: {
    title: "The camera can’t be read",
    detail: "Another program may be using it.",
    remedy: "Close that program, then try again.",
  },
};
const GONE = {
  title: "The camera is gone",
  detail: "It was unplugged, or taken from this page.",
  remedy: "Check the camera, then try again.",
};
const BROKEN = {
  title: "The clip broke off",
  detail: "Your browser could not play the rest of it.",
  remedy: "The file may be damaged; try another one.",
};
const NOT_SECURE = {
  title: "The camera needs a secure page",
  detail: "Browsers give it to pages over HTTPS, or from this very machine (localhost), only.",
  remedy: "Open this page in one of these ways, or open a clip.",
};

export class VideoSource {
  #video;
  #clipUrl = null;
  #canvas = makeCanvas({ width: 1, height: 1 });
  #closed = false;
  #switched = 0; // counts; the person may take long to allow the camera, and stop it meanwhile

  /** Called for each frame that is on show, with the number of frames that were. */
  onFrame = () => {};
  /** Called when a clip is over (null), or with the problem that ended it. */
  onEnd = () => {};

  /** `file` is the clip's; null for the camera. */
  constructor(file) {
    this.file = file;
    this.#video = el("video", { class: "visually-hidden", muted: true, playsinline: true, "aria-hidden": "true" });
    this.#video.muted = true; // the attribute alone does not do it
    this.#video.addEventListener("ended", () => this.onEnd(null));
    this.#video.addEventListener("error", () => this.onEnd(BROKEN));
    document.body.append(this.#video); // browsers are slow to draw what is not on the page
    this.#watch();
  }

  /** A clip, at its first frame. Throws a ProblemError if it can't be played. */
  static async fromClip(file) {
    const source = new VideoSource(file);
    source.#clipUrl = URL.createObjectURL(file);
    source.#video.src = source.#clipUrl;
    try {
      await loaded(source.#video);
    } catch {
      source.close();
      throw new ProblemError({
        title: "This clip can’t be played",
        detail: `Your browser could not play “${file.name}” as a video.`,
        remedy: "Try an MP4 (H.264) or WebM file.",
      });
    }
    return source;
  }

  /** The camera, switched on. Throws a ProblemError if there is none, or it is not allowed. */
  static async fromCamera() {
    const source = new VideoSource(null);
    try {
      await source.#switchOn();
    } catch (error) {
      source.close();
      throw error;
    }
    return source;
  }

  get isCamera() {
    return this.file === null;
  }

  get width() {
    return this.#video.videoWidth;
  }

  get height() {
    return this.#video.videoHeight;
  }

  /** Seconds. */
  get position() {
    return this.#video.currentTime;
  }

  set position(seconds) {
    this.#video.currentTime = seconds;
  }

  /** Seconds; null where it is not known. */
  get duration() {
    return Number.isFinite(this.#video.duration) ? this.#video.duration : null;
  }

  /** Goes on, or begins again: a clip from its start after its end, a camera by being switched on. */
  async play() {
    if (this.isCamera && !this.#video.srcObject) {
      await this.#switchOn();
      if (!this.#video.srcObject) return; // stopped meanwhile
    }
    try {
      await this.#video.play();
    } catch (error) {
      if (error.name !== "AbortError") throw error; // paused before it began
    }
  }

  pause() {
    this.#video.pause();
  }

  /** A clip goes back to its start; a camera is switched off. */
  stop() {
    this.pause();
    if (!this.isCamera) this.position = 0;
    this.#switchOff();
  }

  /** Ends it for good. */
  close() {
    this.#closed = true;
    this.pause();
    this.#switchOff();
    this.#video.removeAttribute("src");
    this.#video.remove();
    URL.revokeObjectURL(this.#clipUrl);
  }

  /** The frame on show: { bitmap, jpeg }, jpeg no longer than `maxSide` along the longer side. */
  async grab(maxSide) {
    const shown = fit({ width: this.width, height: this.height }, SHOWN_MAX_SIDE);
    const bitmap = await createImageBitmap(this.#video, { resizeWidth: shown.width, resizeHeight: shown.height });
    resize(this.#canvas, fit(bitmap, maxSide));
    this.#canvas.getContext("2d").drawImage(bitmap, 0, 0, this.#canvas.width, this.#canvas.height);
    const jpeg = await new Promise((resolve) => {
      this.#canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY);
    });
    return { bitmap, jpeg };
  }

  #watch() {
    this.#video.requestVideoFrameCallback((_, { presentedFrames }) => {
      if (this.#closed) return;
      this.onFrame(presentedFrames);
      this.#watch();
    });
  }

  async #switchOn() {
    if (!navigator.mediaDevices) throw new ProblemError(NOT_SECURE);
    const turn = ++this.#switched;
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia(CAMERA_WISHES);
    } catch (error) {
      throw new ProblemError(
        CAMERA_PROBLEMS[error.name] ?? { title: "The camera can’t be used", detail: error.message, remedy: "" },
      );
    }
    if (turn !== this.#switched) {
      switchOff(stream);
      return;
    }
    stream.getVideoTracks()[0].addEventListener("ended", () => this.onEnd(GONE)); // not by us
    this.#video.srcObject = stream;
    await loaded(this.#video);
  }

  #switchOff() {
    this.#switched++;
    if (!this.#video.srcObject) return;
    switchOff(this.#video.srcObject);
    this.#video.srcObject = null;
  }
}

/** Its tracks do not send "ended" for this. */
function switchOff(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** Resolves when there is a first frame with a size. */
function loaded(video) {
  return new Promise((resolve, reject) => {
    video.addEventListener("loadeddata", () => (video.videoWidth ? resolve() : reject(new Error("no picture"))), {
      once: true,
    });
    video.addEventListener("error", reject, { once: true });
  });
}
