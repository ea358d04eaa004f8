/* The timing panel: each stage's time as a waterfall, and what sharing the encoder saved in this very answer. */

import { el, setVars, titleOf } from "../page/dom.js";

/** 0.42 → "0.4 ms", 1090 → "1,090 ms". */
export function formatMs(ms) {
  const digits = ms < 9.95 ? 1 : 0;
  const number = ms.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${number}\u00a0ms`;
}

/** One pass, from `encoder_ms`, which covers all of them. */
const onePassMs = (timing) => timing.encoder_ms / Math.max(1, timing.encoder_passes);

/** The stages in their order, each { key, label, ms }; a head's key is "head". */
function stagesOf(timing) {
  const passes = timing.encoder_passes;
  return [
    { key: "other", label: "Decode", ms: timing.decode_ms },
    { key: "other", label: "Preprocess", ms: timing.preprocess_ms },
    { key: "other", label: "Queue", ms: timing.queue_ms }, // for the accelerator, with the picture ready
    { key: "encoder", label: passes > 1 ? `Encoder, ${passes} passes` : "Encoder", ms: timing.encoder_ms },
    ...Object.entries(timing.heads_ms).map(([task, ms]) => ({ key: "head", label: titleOf(task), ms })),
    { key: "other", label: "Postprocess", ms: timing.postprocess_ms },
  ];
}

/**
 * The tasks' cost together and apart, from one answer's stage times:
 * together = all encoder passes + all heads; apart = an encoder pass and a head for each task.
 * Null for fewer than two tasks: nothing was shared.
 */
function sharingOf(timing, tasks) {
  const timed = tasks.filter((task) => task in timing.heads_ms);
  if (timed.length < 2) return null;
  const headsMs = timed.reduce((sum, task) => sum + timing.heads_ms[task], 0);
  const togetherMs = timing.encoder_ms + headsMs;
  const apartMs = onePassMs(timing) * timed.length + headsMs;
  return { tasks: timed, togetherMs, apartMs, savedMs: apartMs - togetherMs, ratio: apartMs / togetherMs };
}

const tint = (key, headIndex) => (key === "head" ? `head-${headIndex % 4}` : key);

function waterfall(timing) {
  const stages = stagesOf(timing);
  const scaleMs = Math.max(timing.total_ms, stages.reduce((sum, stage) => sum + stage.ms, 0), 1e-3);
  let startMs = 0;
  let heads = 0;
  const rows = stages.map(({ key, label, ms }) => {
    const bar = setVars(el("span", { class: `bar ${tint(key, key === "head" ? heads++ : 0)}` }), {
      start: startMs / scaleMs,
      length: ms / scaleMs,
    });
    startMs += ms;
    return el(
      "li",
      {},
      el("span", { class: "stage-name", text: label }),
      el("span", { class: "track", "aria-hidden": "true" }, bar),
      el("span", { class: "ms", text: formatMs(ms) }),
    );
  });
  rows.push(
    el(
      "li",
      { class: "total" },
      el("span", { class: "stage-name", text: "Total" }),
      el("span", { class: "track", "aria-hidden": "true" }),
      el("span", { class: "ms", text: formatMs(timing.total_ms) }),
    ),
  );
  return el("ol", { class: "waterfall" }, ...rows);
}

function comparison(timing, sharing) {
  const encoder = { css: "encoder", ms: onePassMs(timing) };
  const heads = sharing.tasks.map((task) => ({
    css: tint("head", Object.keys(timing.heads_ms).indexOf(task)),
    ms: timing.heads_ms[task],
  }));
  const together = [...Array(timing.encoder_passes).fill(encoder), ...heads];
  const apart = heads.flatMap((head) => [encoder, head]);
  const row = (name, parts, ms) =>
    el(
      "div",
      { class: "compare-row" },
      el("span", { class: "stage-name", text: name }),
      el(
        "span",
        { class: "track", "aria-hidden": "true" },
        ...parts.map((part) =>
          setVars(el("span", { class: `part ${part.css}` }), { length: part.ms / sharing.apartMs }),
        ),
      ),
      el("span", { class: "ms", text: formatMs(ms) }),
    );
  const passes = timing.encoder_passes === 1 ? "1 encoder pass" : `${timing.encoder_passes} encoder passes`;
  return el(
    "div",
    { class: "sharing" },
    el(
      "p",
      { class: "sharing-line" },
      el("span", { text: `${passes} for ${sharing.tasks.length} tasks: ` }),
      el("strong", { text: formatMs(sharing.togetherMs) }),
      el("span", { text: ` instead of ${formatMs(sharing.apartMs)} ` }),
      el("span", {
        class: "ratio",
        text: `${sharing.ratio.toFixed(2)}× · ${formatMs(sharing.savedMs)} saved`,
      }),
    ),
    row("Shared", together, sharing.togetherMs),
    row("Apart", apart, sharing.apartMs),
    el("p", { class: "hint", text: explained(timing, sharing) }),
  );
}

/** What "apart" stands for: nobody ran it. */
function explained({ encoder_passes: passes, batch_size: pictures }, { tasks }) {
  const own = passes === 1 ? "the encoder" : "one of the encoder passes";
  const batch =
    pictures > 1 ? ` ${pictures} pictures shared this pass; the times are those of the whole batch.` : "";
  return (
    "Shared was measured. Apart was not run: it is computed from this request’s own times, as if each of the " +
    `${tasks.length} tasks ran ${own} again before its head.${batch}`
  );
}

/** The whole panel for one answer; `roundTripMs` is what the browser saw. */
export function timingPanel(answer, roundTripMs) {
  const { timing } = answer;
  const sharing = sharingOf(timing, Object.keys(answer.results));
  const facts = [
    ["Seen from this browser", formatMs(roundTripMs)],
    ["Encoder passes", String(timing.encoder_passes)],
    ["Batch size", String(timing.batch_size)],
    ...(answer.request_id ? [["Request", answer.request_id]] : []), // frames of a stream have none
  ];
  return [
    sharing
      ? comparison(timing, sharing)
      : el("p", { class: "hint", text: "Choose two tasks or more to see what sharing the encoder saves." }),
    waterfall(timing),
    el(
      "dl",
      { class: "facts" },
      ...facts.map(([term, value]) => el("div", {}, el("dt", { text: term }), el("dd", { text: value }))),
    ),
  ];
}
