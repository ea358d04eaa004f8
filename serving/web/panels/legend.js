/*
 * The legend of a segment task: rows light up their segment on hover and focus, hold it on click, and hide it with the
 * eye at their end.
 */

import { el, icon } from "../page/dom.js";
import { nameOf, segmentCard, segmentRow } from "./segment_table.js";

/** An eye that is open while what it stands for is shown. */
function eye(label, onToggle) {
  const button = el(
    "button",
    {
      type: "button",
      class: "eye",
      "aria-label": label,
      title: label,
      onclick: (event) => {
        event.stopPropagation(); // the row's click holds the spotlight
        onToggle();
      },
    },
    icon("eye"),
  );
  const show = (isShown) => button.setAttribute("aria-pressed", String(isShown));
  show(true);
  return { button, show };
}

/**
 * The card of a view, { key, title, layer }; `stage` spotlights and hides. Adds to `rows` what lets the stage mark a
 * segment's row: segment → { row, button }.
 */
export function legend({ key, title, layer }, depthLayer, stage, rows) {
  const depths = depthLayer ? depthLayer.medianBySegment(layer) : null;
  const hidden = new Set();
  const eyes = new Map();
  const all = eye("Show all", () => {
    if (hidden.size === 0) layer.segments.forEach((segment) => hidden.add(segment));
    else hidden.clear();
    apply();
  });
  const apply = () => {
    stage.hide(key, hidden);
    all.show(hidden.size === 0);
    for (const [segment, { row, show }] of eyes) {
      show(!hidden.has(segment));
      row.classList.toggle("is-hidden", hidden.has(segment));
    }
  };

  const made = layer.segments.map((segment) => {
    const target = { layer, segment };
    const depth = depths?.[segment.index] ?? null;
    const { button: last, show } = eye(`Show ${segment.name}`, () => {
      if (!hidden.delete(segment)) hidden.add(segment);
      apply();
    });
    const button = el(
      "button",
      {
        type: "button",
        "aria-pressed": "false",
        onfocus: () => stage.spotlight(target),
        onblur: () => stage.spotlight(null),
      },
      ...nameOf(segment),
    );
    const row = segmentRow(segment, button, {
      depth: depths ? (depth === null ? "" : depthLayer.format(depth)) : undefined,
      last: el("td", {}, last),
    });
    row.addEventListener("pointerenter", () => stage.spotlight(target));
    row.addEventListener("pointerleave", () => stage.spotlight(null));
    row.addEventListener("click", () => stage.togglePin(target)); // the button's click comes here too
    rows.set(segment, { row, button });
    eyes.set(segment, { row, show });
    return row;
  });
  return segmentCard(title, layer, made, {
    withDepth: depths !== null,
    lastHead: el("th", { scope: "col" }, all.button),
  });
}
