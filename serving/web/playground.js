/*
 * The playground page: takes a photo and a choice of tasks, asks the server, and shows the answer.
 *
 *   api.js            requests and their errors          stage.js     the picture and its overlays
 *   rle.js, png16.js  mask and depth decoding            findings.js  legends, lists and numbers
 *   *_layer.js        one task's result over the photo   timing.js    the timing panel
 */

import { curlCommand, fetchTasks, ProblemError, readableProblem, segment } from "./api.js";
import { DepthLayer } from "./depth_layer.js";
import { el, icon, problemCard, titleOf } from "./dom.js";
import { FeatureLayer } from "./feature_layer.js";
import { findingCards } from "./findings.js";
import { percent, SegmentLayer } from "./segment_layer.js";
import { Stage } from "./stage.js";
import { formatMs, timingPanel } from "./timing.js";

const RECONNECT_MS = 4000;
const SETTLE_MS = 250; // several chips in a row make one request
const COPIED_MS = 1600;
const WIDE = window.matchMedia("(min-width: 62rem)");
const PHOTO_VIEW = "(photo)"; // no task has such names
const ALL_VIEWS = "(all)";
const NO_TASK = { title: "Choose at least one task" };
const NO_SERVER_YET = { title: "Waiting for the server", detail: "Your photo is sent as soon as it answers." };

const byId = (id) => document.getElementById(id);
const state = {
  tasks: [], // as GET /tasks lists them
  chosen: new Set(), // task names
  photo: null, // { file, bitmap, width, height }
  answer: null,
  views: [],
  view: null, // the view's key that the person chose; null = whatever suits
  rows: new Map(), // segment → legend row
  request: null, // AbortController of the request under way
};

const announce = (text) => {
  byId("announcer").textContent = text;
};
const stage = new Stage(byId("panes"), { announce, onSpotlight: markRows });

/* ---- The server and its tasks ---- */

async function connect() {
  const server = byId("server");
  try {
    const { bundle, encoder, tasks, default_tasks: defaults } = await fetchTasks();
    state.tasks = tasks;
    state.chosen = new Set(tasks.map((task) => task.name).filter((name) => defaults.includes(name)));
    server.dataset.state = "ready";
    server.textContent = `${bundle} · ${encoder.name}`;
    byId("trunk").replaceChildren(el("span", { text: encoder.name }), " one pass per photo");
    byId("trunk").hidden = false;
    showChips();
    if (state.photo) run();
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    server.dataset.state = "down";
    server.textContent = `${error.problem.title}. Trying again…`;
    setTimeout(connect, RECONNECT_MS);
  }
}

function showChips() {
  byId("heads").classList.toggle("has-branches", state.tasks.length <= 4);
  byId("chips").replaceChildren(
    ...state.tasks.map(({ name, description }) => {
      const box = el("input", { type: "checkbox", value: name, checked: state.chosen.has(name) });
      box.addEventListener("change", () => {
        if (box.checked) state.chosen.add(name);
        else state.chosen.delete(name);
        runSoon();
      });
      return el(
        "label",
        { class: "chip", title: description },
        box,
        el("span", { class: "chip-box", "aria-hidden": "true" }, icon("check")),
        el("span", { class: "chip-name", text: titleOf(name) }),
        description ? el("span", { class: "chip-about", text: description }) : null,
      );
    }),
  );
}

/* ---- The photo ---- */

async function takePhoto(file) {
  if (!file) return;
  let bitmap;
  try {
    // The server answers in the pixels of the upright picture.
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    showNotice({
      title: "This file can’t be opened as a photo",
      detail: file.name ? `Your browser could not read “${file.name}” as a picture.` : "",
      remedy: "Try a JPEG, PNG or WebP file.",
    });
    return;
  }
  state.photo?.bitmap.close();
  state.photo = { file, bitmap, width: bitmap.width, height: bitmap.height };
  state.answer = null;
  state.views = [];
  document.body.classList.remove("is-empty");
  byId("workbench").hidden = false;
  byId("workbench").classList.remove("has-answer", "is-stale");
  byId("findings").replaceChildren(el("div", { class: "card skeleton", "aria-hidden": "true" }));
  byId("timing").hidden = true;
  byId("take-away").hidden = true;
  showViews();
  run();
}

const firstPicture = (files) => [...files].find((file) => file.type.startsWith("image/")) ?? files[0];

function listenForPhotos() {
  for (const [action, inputId] of [["choose", "file-input"], ["camera", "camera-input"]]) {
    const input = byId(inputId);
    for (const button of document.querySelectorAll(`[data-action=${action}]`)) {
      button.addEventListener("click", () => input.click());
    }
    input.addEventListener("change", () => {
      takePhoto(input.files[0]);
      input.value = ""; // the same file may be chosen again
    });
  }
  byId("dropzone").addEventListener("click", (event) => {
    if (!event.target.closest("button")) byId("file-input").click();
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) takePhoto(firstPicture(event.clipboardData.files));
  });

  const veil = byId("drop-veil");
  const carriesFiles = (event) => event.dataTransfer.types.includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true;
  });
  window.addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    takePhoto(firstPicture(event.dataTransfer.files));
  });
}

/* ---- Asking ---- */

const chosenTasks = () => state.tasks.map((task) => task.name).filter((name) => state.chosen.has(name));

let settling;
function runSoon() {
  clearTimeout(settling);
  settling = setTimeout(run, SETTLE_MS);
}

async function run() {
  state.request?.abort();
  state.request = null;
  clearNotice();
  const tasks = chosenTasks();
  if (!state.photo || tasks.length === 0) {
    setWaiting(false);
    if (state.photo) giveUp(state.tasks.length ? NO_TASK : NO_SERVER_YET);
    return;
  }

  const { photo } = state;
  const request = new AbortController();
  state.request = request;
  setWaiting(true);
  const startedMs = performance.now();
  try {
    const answer = await segment(photo.file, tasks, request.signal);
    const roundTripMs = performance.now() - startedMs;
    const views = await viewsOf(answer, tasks);
    if (state.request !== request) return; // a newer photo or choice has taken over
    showAnswer(answer, views, tasks, roundTripMs);
  } catch (error) {
    if (error.name === "AbortError" || state.request !== request) return;
    if (!(error instanceof ProblemError)) throw error;
    giveUp(error.problem, run);
  } finally {
    if (state.request === request) {
      state.request = null;
      setWaiting(false);
    }
  }
}

let ticking;
function setWaiting(isWaiting) {
  clearInterval(ticking);
  byId("workbench").setAttribute("aria-busy", String(isWaiting));
  byId("progress").hidden = !isWaiting;
  const waiting = byId("waiting");
  waiting.hidden = !isWaiting;
  waiting.textContent = "";
  if (!isWaiting) return;
  const startedMs = performance.now();
  ticking = setInterval(() => {
    const seconds = (performance.now() - startedMs) / 1000;
    if (seconds > 0.5) waiting.textContent = `Looking… ${seconds.toFixed(1)} s`;
  }, 100);
}

/** Says why there is no new answer; the previous one stays, dimmed. */
function giveUp(problem, onRetry = null) {
  showNotice(problem, onRetry);
  byId("workbench").classList.add("is-stale");
  byId("findings").querySelector(".skeleton")?.remove();
}

function showNotice(problem, onRetry = null) {
  byId("notice").replaceChildren(problemCard(problem, { onRetry }));
}

const clearNotice = () => byId("notice").replaceChildren();

/* ---- Showing ---- */

/** The layer that shows a result over the photo; null for one that is no picture. */
async function layerOf(task, result, image) {
  switch (result.kind) {
    case "depth":
      return DepthLayer.fromResult(result);
    case "panoptic":
    case "semantic":
    case "instance":
      return new SegmentLayer(result, state.tasks.find(({ name }) => name === task)?.labels, image);
    case "dense_embedding":
      return new FeatureLayer(result);
    default:
      return null;
  }
}

/** One view per task that has something to show: its layer, or its problem. */
async function viewsOf(answer, tasks) {
  const views = [];
  for (const task of tasks) {
    const view = { key: task, title: titleOf(task), layer: null, problem: null };
    if (answer.errors?.[task]) {
      view.problem = readableProblem(answer.errors[task], `${view.title} failed`);
    } else {
      try {
        view.layer = await layerOf(task, answer.results[task], answer.image);
      } catch (error) {
        view.problem = { title: `${view.title} can’t be shown`, detail: error.message, remedy: "" };
      }
    }
    if (view.layer || view.problem) views.push(view);
  }
  return views;
}

function showAnswer(answer, views, tasks, roundTripMs) {
  state.answer = answer;
  state.views = views;
  const findings = findingCards(views, answer.results, stage);
  state.rows = findings.rows;
  byId("workbench").classList.add("has-answer");
  byId("workbench").classList.remove("is-stale");
  byId("findings").replaceChildren(...findings.cards);
  byId("timing-body").replaceChildren(...timingPanel(answer, Object.keys(answer.results), roundTripMs));
  byId("timing").hidden = false;
  byId("curl").textContent = curlCommand(state.photo.file, tasks);
  byId("take-away").hidden = false;
  showViews();
  const found = views.filter((view) => view.layer).map((view) => `${view.title}: ${view.layer.summary}`);
  for (const [task, { classes }] of Object.entries(answer.results)) {
    if (classes?.length) found.push(`${titleOf(task)}: ${classes[0].label} ${percent(classes[0].score)}`);
  }
  announce(`Done in ${formatMs(roundTripMs)}. ${found.join(". ")}`);
}

/** The view to show: the one chosen, while the answer has it, else all side by side, else the first task. */
function currentView(keys) {
  if (keys.includes(state.view)) return state.view;
  if (keys.includes(ALL_VIEWS)) return ALL_VIEWS;
  return keys[1] ?? PHOTO_VIEW;
}

function showViews() {
  const options = [{ key: PHOTO_VIEW, title: "Photo" }, ...state.views];
  if (WIDE.matches && state.views.length > 1) options.push({ key: ALL_VIEWS, title: "Side by side" });
  const current = currentView(options.map((option) => option.key));

  const focused = byId("views").contains(document.activeElement);
  const radios = options.map(({ key, title }) => {
    const radio = el("input", { type: "radio", name: "view", value: key, checked: key === current });
    radio.addEventListener("change", () => {
      state.view = key;
      showPanes(key);
    });
    return el("label", { class: "view" }, radio, el("span", { text: title }));
  });
  byId("views").replaceChildren(byId("views").querySelector("legend"), ...radios);
  byId("views").hidden = options.length < 2;
  if (focused) byId("views").querySelector(":checked").focus();
  showPanes(current);
}

function showPanes(key) {
  const views = [{ key: PHOTO_VIEW, title: "Photo", layer: null, problem: null }, ...state.views];
  const keys = key === ALL_VIEWS ? state.views.map((view) => view.key) : [key];
  stage.show(state.photo, views, keys);
  byId("download-png").disabled = !views.some((view) => keys.includes(view.key) && view.layer);
}

function markRows(segment, pinned) {
  for (const [candidate, row] of state.rows) {
    row.classList.toggle("is-lit", candidate === segment);
    row.setAttribute("aria-pressed", String(candidate === pinned));
  }
}

/* ---- Taking away ---- */

function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const baseName = () => state.photo.file.name.replace(/\.[^.]+$/, "") || "photo";

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without HTTPS, beyond localhost, browsers only offer the old way.
  const area = el("textarea", { class: "visually-hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  return undefined;
}

function listenForTakeAway() {
  byId("download-json").addEventListener("click", () => {
    const text = JSON.stringify(state.answer, null, 2);
    download(new Blob([text], { type: "application/json" }), `${baseName()}.polyhead.json`);
  });
  byId("download-png").addEventListener("click", () => {
    stage.toPicture().toBlob((blob) => download(blob, `${baseName()}.polyhead.png`), "image/png");
  });
  const copy = byId("copy-curl");
  copy.addEventListener("click", async () => {
    await copyText(byId("curl").textContent);
    const label = copy.querySelector("span");
    label.textContent = "Copied";
    announce("Copied");
    setTimeout(() => {
      label.textContent = "Copy as curl";
    }, COPIED_MS);
  });
}

WIDE.addEventListener("change", () => {
  if (state.photo) showViews();
});
listenForPhotos();
listenForTakeAway();
connect();
