/* What the tasks find in a live video, as cards that change too often to be pointed at. */

import { SegmentLayer } from "../layers/segment_layer.js";
import { el, titleOf } from "../page/dom.js";
import { numberCard } from "./findings.js";
import { nameOf, segmentCard, segmentRow } from "./segment_table.js";

const byName = new Intl.Collator("en", { numeric: true }).compare;

/** By name, so that rows keep their place while the things in the picture grow and shrink. */
function liveSegments(title, layer) {
  const rows = [...layer.segments]
    .sort((a, b) => byName(a.name, b.name))
    .map((segment) => segmentRow(segment, el("span", {}, ...nameOf(segment))));
  const made = segmentCard(title, layer, rows);
  made.classList.add("is-live");
  return made;
}

/** Cards for one answer's results; `layers` by task. */
export function liveCards(results, layers) {
  return Object.entries(results)
    .map(([task, result]) => {
      const layer = layers.get(task);
      return layer instanceof SegmentLayer ? liveSegments(titleOf(task), layer) : numberCard(task, result);
    })
    .filter(Boolean);
}
