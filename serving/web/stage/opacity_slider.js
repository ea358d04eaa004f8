/* The slider for how much an overlay covers. */

import { el } from "../page/dom.js";

/** Calls `onInput(opacity)`, opacity in [0, 1], as it moves. */
export function opacitySlider(title, opacity, onInput) {
  const slider = el("input", {
    type: "range",
    min: "0",
    max: "100",
    value: Math.round(opacity * 100),
    "aria-label": `${title} opacity`,
    title: "Opacity of the overlay",
    oninput: () => onInput(slider.value / 100),
  });
  return el("label", { class: "opacity" }, el("span", { "aria-hidden": "true", text: "Opacity" }), slider);
}
