/* What the tasks found, as cards beside the picture: segments, classes, and the numbers of embeddings. */

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
        title: segment.track === null ? null : `Track ${segment.track}`,
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

const card = (title, summary, ...content) =>
  el(
    "section",
    { class: "card" },
    el("div", { class: "card-head" }, el("h2", { text: title }), el("span", { text: summary })),
    ...content,
  );

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
  return card(title, `top ${rows.length}`, el("ul", { class: "classes" }, ...rows));
}

/** A vector's numbers as bars up and down from zero, the farthest from it the full height. */
function vectorStrip(vector) {
  const reach = vector.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) || 1;
  const bars = vector.map((value, i) => `M${i} 0v${(-value / reach).toFixed(3)}h1V0z`).join("");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("class", "strip");
  svg.setAttribute("viewBox", `0 -1 ${vector.length} 2`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", bars);
  svg.append(path);
  return svg;
}

function embeddingCard(title, { dim, vector }) {
  const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
  return card(
    title,
    `${dim} numbers`,
    vectorStrip(vector),
    el("p", { class: "hint", text: `One vector of length ${length.toPrecision(3)}. The answer (JSON) holds it.` }),
  );
}

function denseEmbeddingCard(title, { dim, grid: [rows, columns] }) {
  return card(
    title,
    `${rows} × ${columns} × ${dim}`,
    el("p", {
      class: "hint",
      text:
        `A vector of ${dim} numbers for each cell of a grid. Red, green and blue are the three directions ` +
        "in which this picture’s vectors differ most: like colours mean like vectors.",
    }),
  );
}

const NUMBER_CARDS = {
  classification: (title, { classes }) => classesCard(title, classes),
  embedding: embeddingCard,
  dense_embedding: denseEmbeddingCard,
};

/** The card of a result that is told in numbers; null for one that is a layer only. */
export const numberCard = (task, result) => NUMBER_CARDS[result.kind]?.(titleOf(task), result) ?? null;

/** Cards for every answered task. Returns { cards, rows }, rows the legend's button of each segment. */
export function findingCards(views, results, stage) {
  const depthLayer = views.find((view) => view.layer instanceof DepthLayer)?.layer ?? null;
  const rows = new Map();
  const cards = views
    .filter((view) => view.layer instanceof SegmentLayer)
    .map((view) => segmentCard(view, depthLayer, stage, rows));
  cards.push(...Object.entries(results).map(([task, result]) => numberCard(task, result)).filter(Boolean));
  return { cards, rows };
}
