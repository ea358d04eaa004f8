/* The sliders under "Options": thresholds that go with every request. One that was not moved is the bundle's own. */

import { el } from "../page/dom.js";

const UNSET = "as bundled";
const THRESHOLDS = [
  { name: "score_threshold", title: "Score", says: "Least probability of a segment’s class." },
  { name: "mask_threshold", title: "Mask", says: "Probability from which a pixel belongs to a mask." },
  { name: "overlap_threshold", title: "Overlap", says: "Least part of a mask that better ones leave over." },
];

export class OptionsPanel {
  #button;
  #panel;
  #rows;
  #onChange;

  /** What is set, by the API's names. */
  values = {};

  /** `button` opens and closes `panel`; `onChange()` after a slider came to rest. */
  constructor({ button, panel, onChange }) {
    this.#button = button;
    this.#panel = panel;
    this.#onChange = onChange;
    this.#rows = THRESHOLDS.map((threshold) => this.#makeRow(threshold));
    const reset = el("button", {
      type: "button",
      class: "button small",
      text: "Back to the bundle’s own",
      onclick: () => this.#reset(),
    });
    panel.replaceChildren(
      el("h2", { class: "visually-hidden", text: "Options" }),
      el("div", { class: "option-rows" }, ...this.#rows.map(({ row }) => row)),
      el("div", { class: "option-foot" }, el("p", { class: "hint", text: "For tasks that find segments." }), reset),
    );
    button.addEventListener("click", () => this.toggle());
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.toggle();
      button.focus();
    });
  }

  toggle() {
    this.#panel.hidden = !this.#panel.hidden;
    this.#button.setAttribute("aria-expanded", String(!this.#panel.hidden));
    if (!this.#panel.hidden) this.#rows[0].slider.focus();
  }

  #makeRow({ name, title, says }) {
    const told = el("output", { for: `option-${name}` });
    const slider = el("input", {
      type: "range",
      id: `option-${name}`,
      min: "0",
      max: "1",
      step: "0.01",
      "aria-describedby": `says-${name}`,
    });
    const show = () => {
      const value = this.values[name];
      slider.value = value ?? 0.5;
      slider.classList.toggle("is-unset", value === undefined);
      slider.setAttribute("aria-valuetext", value === undefined ? UNSET : value.toFixed(2));
      told.textContent = value === undefined ? UNSET : value.toFixed(2);
    };
    slider.addEventListener("input", () => {
      this.values = { ...this.values, [name]: Number(slider.value) };
      show();
    });
    slider.addEventListener("change", () => this.#onChange());
    show();
    const row = el(
      "div",
      { class: "option" },
      el("label", { for: `option-${name}`, text: title }),
      told,
      slider,
      el("p", { class: "hint", id: `says-${name}`, text: says }),
    );
    return { row, slider, show };
  }

  #reset() {
    if (Object.keys(this.values).length === 0) return;
    this.values = {};
    for (const { show } of this.#rows) show();
    this.#onChange();
  }
}
