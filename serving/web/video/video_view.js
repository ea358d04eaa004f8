/* The stage of a live video: a pane per view, in each the last answered frame under what the task found in it. */

import { fit, makeCanvas, resize } from "../layers/canvas.js";
import { DepthLayer } from "../layers/depth_layer.js";
import { SegmentLayer } from "../layers/segment_layer.js";
import { el, setVars } from "../page/dom.js";
import { DepthBar } from "../stage/depth_bar.js";
import { opacitySlider } from "../stage/opacity_slider.js";

const SHOWN_MAX_SIDE = 1280;
const LABEL_MIN_SHARE = 0.004;
const LABEL_SIZE_PX = 13;
const LABEL_MOVES = [0, 1, -1, 2, -2]; // plate heights

export class VideoView {
  #root;
  #opacities = new Map(); // by view key
  #panes = [];
  #bitmap = null;
  #layers = new Map(); // by view key

  constructor(root) {
    this.#root = root;
  }

  /** Shows these views, [{ key, title }]; one without a layer shows the bare picture. `aspect` is width by height. */
  show(views, aspect) {
    this.#panes = views.map((view) => this.#makePane(view));
    this.#root.replaceChildren(...this.#panes.map((pane) => pane.figure));
    setVars(this.#root, { aspect });
    this.redraw();
  }

  /** The next frame and its layers by view key. The bitmap is the view's from now on. */
  draw(bitmap, layers) {
    this.#bitmap?.close();
    this.#bitmap = bitmap;
    this.#layers = layers;
    setVars(this.#root, { aspect: bitmap.width / bitmap.height });
    this.redraw();
  }

  redraw() {
    if (this.#bitmap) for (const pane of this.#panes) this.#drawPane(pane);
  }

  /** Writes what changes too fast to be read at every frame: each pane's summary and scale. */
  describe(problems) {
    for (const { key, summary, depthBar } of this.#panes) {
      const layer = this.#layers.get(key);
      summary.textContent = problems[key]?.title ?? layer?.summary ?? "";
      if (layer instanceof DepthLayer) depthBar?.show(layer);
    }
  }

  /** The shown panes as one picture, side by side, as they are on the screen; null before the first frame. */
  toPicture() {
    const canvases = this.#panes.map((pane) => pane.canvas);
    if (!this.#bitmap || canvases.length === 0) return null;
    const width = canvases.reduce((sum, canvas) => sum + canvas.width, 0);
    const picture = makeCanvas({ width, height: canvases[0].height });
    const context = picture.getContext("2d");
    let left = 0;
    for (const canvas of canvases) {
      context.drawImage(canvas, left, 0);
      left += canvas.width;
    }
    return picture;
  }

  clear() {
    this.#bitmap?.close();
    this.#bitmap = null;
    this.#layers = new Map();
    this.#panes = [];
  }

  #makePane({ key, title }) {
    const summary = el("span", { class: "summary" });
    const heading = el("figcaption", { class: "pane-head" }, el("h3", { text: title }), summary);
    const canvas = el("canvas", { class: "base", role: "img", "aria-label": `Live picture: ${title}` });
    const frame = el("div", { class: "frame is-live" }, canvas);
    const figure = el("figure", { class: "pane" }, heading, el("div", { class: "frame-holder" }, frame));
    return { key, title, figure, heading, canvas, summary, overlay: makeCanvas({ width: 1, height: 1 }) };
  }

  #drawPane(pane) {
    const { canvas, overlay } = pane;
    resize(canvas, sharpSize(this.#bitmap, canvas));
    const context = canvas.getContext("2d");
    context.drawImage(this.#bitmap, 0, 0, canvas.width, canvas.height);
    const layer = this.#layers.get(pane.key);
    if (!layer) return;
    this.#equip(pane, layer);
    resize(overlay, fit(layer.width ? layer : this.#bitmap, SHOWN_MAX_SIDE));
    layer.paint(overlay);
    context.globalAlpha = this.#opacities.get(pane.key) ?? layer.defaultOpacity;
    context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    if (layer instanceof SegmentLayer) writeNames(canvas, layer);
  }

  /** Gives a pane its slider, and its scale if it shows depth, once the first layer says which it is. */
  #equip(pane, layer) {
    if (pane.isEquipped) return;
    pane.isEquipped = true;
    const opacity = this.#opacities.get(pane.key) ?? layer.defaultOpacity;
    pane.heading.append(
      opacitySlider(pane.title, opacity, (value) => {
        this.#opacities.set(pane.key, value);
        this.redraw();
      }),
    );
    if (!(layer instanceof DepthLayer)) return;
    pane.depthBar = new DepthBar();
    pane.depthBar.show(layer);
    pane.figure.append(pane.depthBar.element);
  }
}

/** The size of a frame, or a larger one of the same shape, so that names are sharp on a small frame too. */
function sharpSize({ width, height }, canvas) {
  const shown = (canvas.clientWidth * window.devicePixelRatio) / width;
  const ratio = Math.max(1, Math.min(shown, SHOWN_MAX_SIDE / Math.max(width, height)));
  return { width: Math.round(width * ratio), height: Math.round(height * ratio) };
}

/** The segments' names on dark plates, at the size of text on the page; where one would cover another, it moves. */
function writeNames(canvas, layer) {
  const context = canvas.getContext("2d");
  const size = (LABEL_SIZE_PX * canvas.width) / Math.max(1, canvas.clientWidth);
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  const height = size * 1.5;
  const plates = [];
  for (const { segment, u, v } of layer.anchors(LABEL_MIN_SHARE)) {
    const width = context.measureText(segment.name).width + size * 0.9;
    const x = within(u * canvas.width, width / 2, canvas.width - width / 2);
    const plate = LABEL_MOVES.map((move) => ({
      x,
      y: within(v * canvas.height + move * height, height / 2, canvas.height - height / 2),
      width,
    })).find((candidate) => !plates.some((other) => meet(candidate, other, height)));
    if (!plate) continue; // no room; the list beside the picture has it
    plates.push(plate);
    context.fillStyle = "rgb(16 19 22 / 78%)";
    context.beginPath();
    context.roundRect(x - width / 2, plate.y - height / 2, width, height, size * 0.35);
    context.fill();
    context.fillStyle = "#fff";
    context.fillText(segment.name, x, plate.y);
  }
}

const within = (value, least, most) => Math.min(Math.max(value, least), most);

const meet = (a, b, height) =>
  Math.abs(a.x - b.x) < (a.width + b.width) / 2 && Math.abs(a.y - b.y) < height;
