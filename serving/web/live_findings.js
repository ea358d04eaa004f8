/* What the tasks find in a live video, as cards that change too often to be pointed at. */

import { cssColor } from "./colors.js";
import { el, setVars, titleOf } from "./dom.js";
import { numberCard } from "./findings.js";
import { percent, SegmentLayer } from "./segment_layer.js";

const byName = new Intl.Collator("en", { numeric: true }).compare;

/** By name, so that rows keep their place while the things in the picture grow and shrink. */
function segmentCard(title, layer) {
  const rows = [...layer.segments]
    .sort((a, b) => byName(a.name, b.name))
    .map((segment) =>
      el(
        "li",
        { class: "segment is-live" },
        setVars(el("span", { class: "swatch" }), { color: cssColor(segment.color) }),
        el("span", { class: "name", text: segment.name }),
        el("span", { class: "number", text: percent(segment.share) }),
        el("span", { class: "number", text: segment.score === null ? "" : percent(segment.score) }),
      ),
    );
  return el(
    "section",
    { class: "card segments" },
    el("div", { class: "card-head" }, el("h2", { text: title }), el("span", { text: layer.summary })),
    rows.length
      ? el(
          "div",
          { class: "columns", "aria-hidden": "true" },
          el("span", { text: "Label" }),
          el("span", { class: "number", text: "Area" }),
          el("span", { class: "number", text: "Score" }),
        )
      : el("p", { class: "hint", text: "Nothing was found above the score threshold." }),
    el("ul", {}, ...rows),
  );
}

/** Cards for one answer's results; `layers` by task. */
export function liveCards(results, layers) {
  return Object.entries(results)
    .map(([task, result]) => {
      const layer = layers.get(task);
      return layer instanceof SegmentLayer ? segmentCard(titleOf(task), layer) : numberCard(task, result);
    })
    .filter(Boolean);
}
