/* The frame of a card beside the picture. */

import { el } from "../page/dom.js";

/** A section with a heading and a word about how much is in it. */
export const card = (title, summary, ...content) =>
  el(
    "section",
    { class: "card", "aria-label": title },
    el("div", { class: "card-head" }, el("h2", { text: title }), el("span", { text: summary })),
    ...content,
  );
