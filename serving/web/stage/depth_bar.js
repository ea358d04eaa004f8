/* The colour bar below a depth map: its ticks, and a marker at the depth under the pointer. */

import { depthRamp } from "../layers/depth_layer.js";
import { el, setVars } from "../page/dom.js";

export class DepthBar {
  #marker = el("div", { class: "marker", hidden: true });
  #ticks = el("div", { class: "ticks" });
  #layer = null;

  constructor() {
    this.element = el(
      "div",
      { class: "depth-bar", role: "img" },
      el("div", { class: "ramp-holder" }, depthRamp(), this.#marker),
      this.#ticks,
    );
  }

  /** Tells a DepthLayer's range. */
  show(layer) {
    this.#layer = layer;
    this.element.setAttribute("aria-label", `Colour scale, near to far: ${layer.summary}`);
    const tick = (text, place, edge = "") => setVars(el("span", { class: `tick ${edge}`, text }), { at: place });
    this.#ticks.replaceChildren(
      tick(layer.format(layer.min), 0, "first"),
      ...layer.ticks().map(({ depth, place }) => tick(String(Number(depth.toPrecision(3))), place)),
      tick(layer.format(layer.max), 1, "last"),
    );
  }

  /** Marks a depth; null takes the marker away. */
  mark(depth) {
    this.#marker.hidden = depth === null;
    if (depth === null) return;
    this.#marker.textContent = this.#layer.format(depth);
    setVars(this.#marker, { at: this.#layer.place(depth) });
  }
}
