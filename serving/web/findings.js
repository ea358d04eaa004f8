/* What the tasks found, as lists beside the picture: segments, classes, and answers without a picture. */

import { DepthLayer } from "./depth_layer.js";
import { el, setVars, titleOf } from "./dom.js";
import { cssColor } from "./colors.js";
import { percent, SegmentLayer } from "./segment_layer.js";

/** The legend of a segment task: rows light up their segment on hover and focus, and hold it on click. */
function segmentCard(view, depthLayer, stage, rows) {
  const { layer } = view;
  const depths = depthLayer ? depthLayer.medianBySegment(layer) : null;
  const items = layer.segments.map((segment) => {
    const target = { layer, segment };
    const depth = depths?.[segment.index] ?? null;
    const spoken = [
      segment.name,
      segment.score === null ? null : `score ${percent(segment.score)}`,
      `${percent(segment.share)} of the picture`,
      depth === null ? null : `median depth ${depthLayer.format(depth)}`,
    ];
    const row = el(
      "button",
      {
        type: "button",
        class: "segment",
        "aria-pressed": "false",
        "aria-label": spoken.filter(Boolean).join(", "),
        onpointerenter: () => stage.spotlight(target),
        onpointerleave: () => stage.spotlight(null),
        onfocus: () => stage.spotlight(target),
        onblur: () => stage.spotlight(null),
        onclick: () => stage.togglePin(target),
      },
      setVars(el("span", { class: "swatch" }), { color: cssColor(segment.color) }),
      el("span", { class: "name", text: segment.name }),
      depths ? el("span", { class: "number", text: depth === null ? "" : depthLayer.format(depth) }) : null,
      el("span", { class: "number", text: percent(segment.share) }),
      el("span", { class: "number", text: segment.score === null ? "" : percent(segment.score) }),
    );
    rows.set(segment, row);
    return el("li", {}, row);
  });
  return el(
    "section",
    { class: `card segments ${depths ? "with-depth" : ""}` },
    el("div", { class: "card-head" }, el("h2", { text: view.title }), el("span", { text: layer.summary })),
    items.length
      ? el(
          "div",
          { class: "columns", "aria-hidden": "true" },
          el("span", { text: "Label" }),
          depths ? el("span", { class: "number", text: "Depth" }) : null,
          el("span", { class: "number", text: "Area" }),
          el("span", { class: "number", text: "Score" }),
        )
      : el("p", { class: "hint", text: "Nothing was found above the score threshold." }),
    el("ul", {}, ...items),
  );
}

function classesCard(title, classes) {
  const rows = classes.map(({ label, score }) =>
    el(
      "li",
      { class: "class-row" },
      el("span", { class: "name", text: label }),
      el("span", { class: "number", text: percent(score) }),
      setVars(el("span", { class: "meter", "aria-hidden": "true" }), { length: score }),
    ),
  );
  return el("section", { class: "card" }, el("div", { class: "card-head" }, el("h2", { text: title })), el("ul", {}, ...rows));
}

function embeddingCard(title, { dim }) {
  return el(
    "section",
    { class: "card" },
    el("div", { class: "card-head" }, el("h2", { text: title }), el("span", { text: `${dim} numbers` })),
    el("p", { class: "hint", text: "The vector is in the downloadable answer." }),
  );
}

/** Cards for every answered task. Returns { cards, rows }, rows the legend's button of each segment. */
export function findingCards(views, results, stage) {
  const depthLayer = views.find((view) => view.layer instanceof DepthLayer)?.layer ?? null;
  const rows = new Map();
  const cards = views
    .filter((view) => view.layer instanceof SegmentLayer)
    .map((view) => segmentCard(view, depthLayer, stage, rows));
  for (const [task, result] of Object.entries(results)) {
    if (result.classes) cards.push(classesCard(titleOf(task), result.classes));
    else if (result.vector) cards.push(embeddingCard(titleOf(task), result));
  }
  return { cards, rows };
}
