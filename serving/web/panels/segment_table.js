/* A task's segments as a table: the legend of its overlay, and the same in words for who can't see it. */

import { cssColor } from "../layers/colors.js";
import { percent } from "../layers/segment_layer.js";
import { el, setVars } from "../page/dom.js";
import { card } from "./cards.js";

const number = (text) => el("td", { class: "number", text: text ?? "" });

/** A segment's swatch and name, as nodes. */
export const nameOf = (segment) => [
  setVars(el("span", { class: "swatch" }), { color: cssColor(segment.color) }),
  el("span", { class: "name", text: segment.name }),
];

/** One row; `depth` is text (undefined: the table has no such column), `last` a cell of its own. */
export const segmentRow = (segment, name, { depth, last = null } = {}) =>
  el(
    "tr",
    { class: "segment", title: segment.track === null ? null : `Track ${segment.track}` },
    el("th", { scope: "row" }, name),
    depth === undefined ? null : number(depth),
    number(percent(segment.share)),
    number(segment.score === null ? "" : percent(segment.score)),
    last,
  );

/** The card; `lastHead` is the head of the rows' last cells. */
export function segmentCard(title, layer, rows, { withDepth = false, lastHead = null } = {}) {
  const head = (text) => el("th", { scope: "col", class: "number", text });
  const table = el(
    "table",
    {},
    el("caption", { class: "visually-hidden", text: `${title}: ${layer.summary}` }),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col", text: "Label" }),
        withDepth ? head("Depth") : null,
        head("Area"),
        head("Score"),
        lastHead,
      ),
    ),
    el("tbody", {}, ...rows),
  );
  const content = rows.length
    ? el("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": `${title}, table` }, table)
    : el("p", { class: "hint", text: "Nothing was found above the score threshold." });
  const made = card(title, layer.summary, content);
  made.classList.add("segments");
  return made;
}
