/*
 * The picture area: one pane per view (the photo, each task), each a stack of canvases (photo, overlay, spotlight).
 * All panes share one probe (pointer or arrow keys) and one spotlit segment, so that views can be read together.
 */

import { fit, makeCanvas } from "../layers/canvas.js";
import { DepthLayer } from "../layers/depth_layer.js";
import { SegmentLayer } from "../layers/segment_layer.js";
import { el, setVars } from "../page/dom.js";
import { problemCard } from "../page/problem.js";
import { DepthBar } from "./depth_bar.js";
import { opacitySlider } from "./opacity_slider.js";

const SHOWN_MAX_SIDE = 1600;
const SPOTLIGHT_MAX_SIDE = 960; // redrawn as the pointer moves
const SAVED_MAX_SIDE = 4096;
const PROBE_STEP = 0.02;
export const PROBE_MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function drawPhoto(canvas, photo) {
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(photo.bitmap, 0, 0, canvas.width, canvas.height);
}

export class Stage {
  #root;
  #announce;
  #onSpotlight;
  #opacities = new Map(); // by view key; kept from one answer to the next
  #photo = null;
  #views = [];
  #panes = [];
  #spotlit = null; // { layer, segment } under the probe or a legend row
  #pinned = null; // the same, held by a click

  /** `announce(text)` speaks to screen readers; `onSpotlight(segment | null, pinned)` lets a legend follow. */
  constructor(root, { announce, onSpotlight }) {
    this.#root = root;
    this.#announce = announce;
    this.#onSpotlight = onSpotlight;
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.clear();
    });
  }

  /**
   * Shows `keys` of the views. A view is { key, title, layer, problem }: the bare photo has neither layer nor
   * problem. All views' layers answer the probe, shown or not. A held segment stays so while its layer is there.
   */
  show(photo, views, keys) {
    this.#photo = photo;
    this.#views = views;
    this.#spotlit = null;
    if (!views.some(({ layer }) => layer === this.#pinned?.layer)) this.#pinned = null;
    this.#panes = views.filter((view) => keys.includes(view.key)).map((view) => this.#makePane(view));
    this.#root.replaceChildren(...this.#panes.map((pane) => pane.figure));
    setVars(this.#root, { aspect: photo.width / photo.height });
    this.#drawSpotlight(null);
  }

  /** Spotlights a segment in every pane, until the next call; null ends it and the pinned one returns. */
  spotlight(target) {
    this.#spotlit = target;
    this.#drawSpotlight(null);
  }

  /** Holds a segment's spotlight, or lets it go when it is the held one. */
  togglePin(target) {
    const same = target && this.#pinned?.segment === target.segment;
    this.#pinned = same ? null : target;
    this.#spotlit = this.#pinned;
    this.#drawSpotlight(null);
  }

  /** Takes these segments out of a view's layer, and brings all its others back. */
  hide(key, segments) {
    const { layer } = this.#views.find((view) => view.key === key);
    layer.hide(segments);
    for (const { view, overlay } of this.#panes) if (view.key === key) layer.paint(overlay);
    if (segments.has(this.#pinned?.segment)) this.#pinned = null;
    if (segments.has(this.#spotlit?.segment)) this.#spotlit = null;
    this.#drawSpotlight(null);
  }

  clear() {
    this.#pinned = null;
    this.#spotlit = null;
    this.#moveProbe(null, null);
  }

  /** The shown panes as one picture, side by side, at the photo's own size (up to 4096 a side). */
  toPicture() {
    const shown = this.#panes.filter((pane) => !pane.view.problem);
    const size = fit(this.#photo, SAVED_MAX_SIDE / Math.max(1, shown.length));
    const picture = makeCanvas({ width: size.width * shown.length, height: size.height });
    const context = picture.getContext("2d");
    shown.forEach(({ view }, i) => {
      const tile = makeCanvas(size);
      drawPhoto(tile, this.#photo);
      if (view.layer) {
        const overlay = makeCanvas(size);
        view.layer.paint(overlay);
        const tileContext = tile.getContext("2d");
        tileContext.globalAlpha = this.#opacityOf(view);
        tileContext.drawImage(overlay, 0, 0);
      }
      context.drawImage(tile, i * size.width, 0);
    });
    return picture;
  }

  #opacityOf(view) {
    return this.#opacities.get(view.key) ?? view.layer.defaultOpacity;
  }

  #makePane(view) {
    const heading = el("figcaption", { class: "pane-head" }, el("h3", { text: view.title }));
    const figure = el("figure", { class: "pane" }, heading);
    const pane = { view, figure, probe: { u: 0.5, v: 0.5 } };
    if (view.problem) {
      figure.append(el("div", { class: "pane-problem" }, problemCard(view.problem, { level: 4 })));
      return pane;
    }

    const size = fit(this.#photo, SHOWN_MAX_SIDE);
    const base = makeCanvas(size, "base");
    drawPhoto(base, this.#photo);
    pane.spot = makeCanvas(fit(this.#photo, SPOTLIGHT_MAX_SIDE), "spot");
    pane.readout = el("div", { class: "readout", "aria-hidden": "true" });
    pane.cross = el("div", { class: "cross", "aria-hidden": "true" });
    const frame = el(
      "div",
      {
        class: "frame",
        tabindex: "0",
        role: "application",
        "aria-label": `${view.title}. The arrow keys move a probe that reads out what is there.`,
      },
      base,
    );
    if (view.layer) {
      pane.overlay = makeCanvas(size, "overlay");
      view.layer.paint(pane.overlay);
      pane.overlay.style.opacity = this.#opacityOf(view);
      frame.append(pane.overlay);
      heading.append(el("span", { class: "summary", text: view.layer.summary }), this.#makeSlider(pane));
    }
    frame.append(pane.spot, pane.cross, pane.readout);
    figure.append(el("div", { class: "frame-holder" }, frame));
    if (view.layer instanceof DepthLayer) {
      pane.depthBar = new DepthBar();
      pane.depthBar.show(view.layer);
      figure.append(pane.depthBar.element);
    }
    this.#listen(frame, pane);
    return pane;
  }

  #makeSlider({ view, overlay }) {
    return opacitySlider(view.title, this.#opacityOf(view), (opacity) => {
      this.#opacities.set(view.key, opacity);
      overlay.style.opacity = opacity;
    });
  }

  #listen(frame, pane) {
    const pointOf = (event) => {
      const box = frame.getBoundingClientRect();
      const within = (value) => Math.min(0.9999, Math.max(0, value));
      return { u: within((event.clientX - box.left) / box.width), v: within((event.clientY - box.top) / box.height) };
    };
    frame.addEventListener("pointermove", (event) => this.#moveProbe(pointOf(event), pane));
    frame.addEventListener("pointerdown", (event) => this.#moveProbe(pointOf(event), pane));
    frame.addEventListener("pointerleave", (event) => {
      // A lifted finger leaves its reading in place.
      if (event.pointerType !== "touch") this.#moveProbe(null, pane);
    });
    frame.addEventListener("click", (event) => {
      const { u, v } = pointOf(event);
      this.togglePin(this.#segmentAt(u, v, pane));
    });
    frame.addEventListener("keydown", (event) => {
      const move = PROBE_MOVES[event.key];
      if (!move) return;
      event.preventDefault();
      const step = (value, direction) => Math.min(0.999, Math.max(0, value + direction * PROBE_STEP));
      const point = { u: step(pane.probe.u, move[0]), v: step(pane.probe.v, move[1]) };
      this.#moveProbe(point, pane);
      this.#announce(this.#describe(point).join(", ") || "nothing");
    });
    frame.addEventListener("blur", () => this.#moveProbe(null, pane));
  }

  /** The pane's own segments answer first, else the first task that has any. */
  #segmentAt(u, v, pane) {
    const layers = [pane.view.layer, ...this.#views.map((view) => view.layer)];
    const layer = layers.find((candidate) => candidate instanceof SegmentLayer);
    const segment = layer?.at(u, v);
    return segment ? { layer, segment } : null;
  }

  #describe({ u, v }) {
    return this.#views.map((view) => view.layer?.describeAt(u, v)).filter(Boolean);
  }

  #moveProbe(point, source) {
    const lines = point ? this.#describe(point) : [];
    for (const pane of this.#panes) {
      if (pane.view.problem) continue;
      const own = pane === source;
      if (point) pane.probe = point;
      pane.cross.classList.toggle("is-on", Boolean(point));
      pane.readout.classList.toggle("is-on", own && lines.length > 0);
      if (point) {
        setVars(pane.cross, { u: point.u, v: point.v });
        if (own) {
          setVars(pane.readout, { u: point.u, v: point.v });
          pane.readout.classList.toggle("to-left", point.u > 0.5);
          pane.readout.classList.toggle("to-top", point.v > 0.75);
          pane.readout.replaceChildren(...lines.map((text) => el("span", { text })));
        }
      }
      pane.depthBar?.mark(point && pane.view.layer.at(point.u, point.v));
    }
    this.#spotlit = point && source ? this.#segmentAt(point.u, point.v, source) : null;
    this.#drawSpotlight(source);
  }

  /** Draws where it changed. A pane without segments isn't shaded under its own probe: there, colours are read. */
  #drawSpotlight(source) {
    const target = this.#spotlit ?? this.#pinned;
    for (const pane of this.#panes) {
      if (pane.view.problem) continue;
      const quiet = pane === source && !(pane.view.layer instanceof SegmentLayer) && !this.#pinned;
      const drawn = quiet ? null : target;
      if (pane.lit === drawn?.segment) continue;
      pane.lit = drawn?.segment;
      pane.spot.classList.toggle("is-on", Boolean(drawn));
      if (drawn) drawn.layer.paintSpotlight(pane.spot, drawn.segment);
    }
    this.#onSpotlight(target?.segment ?? null, this.#pinned?.segment ?? null);
  }
}
