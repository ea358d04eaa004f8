/* The row of radios that chooses what the stage shows: the bare picture, one task, or all tasks side by side. */

import { el } from "../page/dom.js";

export const BARE_VIEW = "(bare)"; // no task has such names
const ALL_VIEWS = "(all)";

export class ViewSwitch {
  #root;
  #onChoose;
  #isWide;
  #tasks = [];
  #chosen = null; // the key that the person chose; null = whatever suits
  current = BARE_VIEW;

  /** `onChoose()` is called when the person changes the view; `isWide()` says if there is room for all at once. */
  constructor(root, { onChoose, isWide }) {
    this.#root = root;
    this.#onChoose = onChoose;
    this.#isWide = isWide;
  }

  /** Offers the bare picture, called `bareTitle`, and a view for each of `tasks`: [{ key, title }]. */
  offer(bareTitle, tasks) {
    this.#tasks = tasks;
    const options = [{ key: BARE_VIEW, title: bareTitle }, ...tasks];
    if (this.#isWide() && tasks.length > 1) options.push({ key: ALL_VIEWS, title: "Side by side" });
    this.current = this.#suitable(options.map((option) => option.key));

    const focused = this.#root.contains(document.activeElement);
    const radios = options.map(({ key, title }) => {
      const radio = el("input", { type: "radio", name: "view", value: key, checked: key === this.current });
      radio.addEventListener("change", () => {
        this.#chosen = key;
        this.current = key;
        this.#onChoose();
      });
      return el("label", { class: "view" }, radio, el("span", { text: title }));
    });
    this.#root.replaceChildren(this.#root.querySelector("legend"), ...radios);
    this.#root.hidden = options.length < 2;
    if (focused) this.#root.querySelector(":checked").focus();
  }

  /** Shows the view with this number, counted from 0, if there is one. */
  choose(number) {
    this.#root.querySelectorAll("input")[number]?.click();
  }

  /** The keys of the views to show now. */
  get keys() {
    return this.current === ALL_VIEWS ? this.#tasks.map((task) => task.key) : [this.current];
  }

  /** The view to show: the one chosen, while it is there, else all side by side, else the first task. */
  #suitable(keys) {
    if (keys.includes(this.#chosen)) return this.#chosen;
    if (keys.includes(ALL_VIEWS)) return ALL_VIEWS;
    return keys[1] ?? BARE_VIEW;
  }
}
