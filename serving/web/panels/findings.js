/* What the tasks found, as cards beside the picture: segments, classes, and the numbers of embeddings. */

import { DepthLayer } from "../layers/depth_layer.js";
import { percent, SegmentLayer } from "../layers/segment_layer.js";
import { el, setVars, titleOf } from "../page/dom.js";
import { card } from "./cards.js";
import { legend } from "./legend.js";

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

/** Cards for every answered task. Returns { cards, rows }, rows the legend's row of each segment. */
export function findingCards(views, results, stage) {
  const depthLayer = views.find((view) => view.layer instanceof DepthLayer)?.layer ?? null;
  const rows = new Map();
  const cards = views
    .filter((view) => view.layer instanceof SegmentLayer)
    .map((view) => legend(view, depthLayer, stage, rows));
  cards.push(...Object.entries(results).map(([task, result]) => numberCard(task, result)).filter(Boolean));
  return { cards, rows };
}
