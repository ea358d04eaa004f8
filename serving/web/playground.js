/*
 * The playground page: takes a photo, a clip or the camera and a choice of tasks, asks the server, and shows what it
 * answers.
 *
 *   api.js    requests and their errors
 *   page/     the page's own: elements, problems, theme, shortcuts, files that come in
 *   layers/   masks, depth and features from an answer to pixels
 *   stage/    the photo under its overlays, and which view is on show
 *   panels/   the cards: legends and numbers, timing, options, what to take away
 *   video/    clips and the camera: frames out, answers in, overlays on the very frame
 */

import { fetchTasks, ProblemError, readableProblem, segment } from "./api.js";
import { layerOf } from "./layers/layers.js";
import { percent } from "./layers/segment_layer.js";
import { el, icon, titleOf } from "./page/dom.js";
import { isVideo, listenForFiles } from "./page/file_input.js";
import { problemCard } from "./page/problem.js";
import { listenForShortcuts } from "./page/shortcuts.js";
import { toggleTheme } from "./page/theme.js";
import { findingCards } from "./panels/findings.js";
import { OptionsPanel } from "./panels/options.js";
import { TakeAway } from "./panels/take_away.js";
import { formatMs, timingPanel } from "./panels/timing.js";
import { PROBE_MOVES, Stage } from "./stage/stage.js";
import { BARE_VIEW, ViewSwitch } from "./stage/view_switch.js";
import { VideoPlayer } from "./video/video_player.js";
import { VideoSource } from "./video/video_source.js";

const RECONNECT_MS = 4000;
const SETTLE_MS = 250; // several chips in a row make one request
const WIDE = window.matchMedia("(min-width: 62rem)");
const LAYER_KINDS = new Set(["panoptic", "semantic", "instance", "depth", "dense_embedding"]);
const NO_TASK = { title: "Choose at least one task" };
const NO_SERVER_YET = { title: "Waiting for the server", detail: "Your picture is sent as soon as it answers." };

const byId = (id) => document.getElementById(id);
const state = {
  tasks: [], // as GET /tasks lists them
  chosen: new Set(), // task names
  photo: null, // { file, bitmap, width, height }
  views: [],
  rows: new Map(), // segment → its row in the legend, and that row's button
  request: null, // AbortController of the request under way
};

const announce = (text) => {
  byId("announcer").textContent = text;
};
const labelsOf = (taskName) => state.tasks.find(({ name }) => name === taskName)?.labels;
const stage = new Stage(byId("panes"), { announce, onSpotlight: markRows });
const views = new ViewSwitch(byId("views"), {
  onChoose: () => (player.isOpen ? player.showViews() : showPanes()),
  isWide: () => WIDE.matches,
});
const player = new VideoPlayer({
  announce,
  showProblem: showNotice,
  clearProblem: clearNotice,
  labelsOf,
  shownViews: videoViews,
  onAnswer: (answer, file) => {
    takeAway.offerVideo(file, answer, chosenTasks());
    takeAway.hasPicture = true;
  },
});
const takeAway = new TakeAway({
  announce,
  showProblem: showNotice,
  clearProblem: clearNotice,
  toPicture: () => (player.isOpen ? player.toPicture() : stage.toPicture()),
});
const options = new OptionsPanel({ button: byId("show-options"), panel: byId("options"), onChange: runSoon });

/* ---- The server and its tasks ---- */

async function connect() {
  const server = byId("server");
  try {
    const { bundle, encoder, tasks, default_tasks: defaults } = await fetchTasks();
    state.tasks = tasks;
    state.chosen = new Set(tasks.map((task) => task.name).filter((name) => defaults.includes(name)));
    server.dataset.state = "ready";
    server.textContent = `${bundle} · ${encoder.name}`;
    byId("trunk").replaceChildren(el("span", { text: encoder.name }), " one pass per picture");
    byId("trunk").hidden = false;
    showChips();
    if (state.photo || player.isOpen) run();
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

/* ---- The photo, the clip, or the camera ---- */

let taking = 0; // counts what was given to the page; opening takes time, and the latest wins

function takeFile(file) {
  if (isVideo(file)) takeVideo(() => VideoSource.fromClip(file));
  else takePhoto(file);
}

async function takePhoto(file) {
  const turn = ++taking;
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
  if (turn !== taking) {
    bitmap.close();
    return;
  }
  clearWorkbench();
  state.photo = { file, bitmap, width: bitmap.width, height: bitmap.height };
  showViews();
  run();
}

async function takeVideo(open) {
  const turn = ++taking;
  clearNotice();
  let source;
  try {
    source = await open();
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    if (turn === taking) showNotice(error.problem, open === VideoSource.fromCamera ? () => takeVideo(open) : null);
    return;
  }
  if (turn !== taking) {
    source.close();
    return;
  }
  clearWorkbench();
  player.open(source);
  run();
}

/** Ends what was there before. */
function clearWorkbench() {
  state.request?.abort();
  state.request = null;
  setWaiting(false);
  player.close();
  state.photo?.bitmap.close();
  state.photo = null;
  state.answer = null;
  state.views = [];
  document.body.classList.remove("is-empty");
  byId("workbench").hidden = false;
  byId("workbench").classList.remove("has-answer", "is-stale");
  byId("findings").replaceChildren(el("div", { class: "card skeleton", "aria-hidden": "true" }));
  byId("timing").hidden = true;
  byId("take-away").hidden = true;
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
  const asked = { tasks: chosenTasks(), options: options.values };
  const { tasks } = asked;
  if (player.isOpen) {
    player.ask(asked);
    showViews();
    if (tasks.length === 0) showNotice(state.tasks.length ? NO_TASK : NO_SERVER_YET);
    return;
  }
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
    const answer = await segment(photo.file, asked, request.signal);
    const roundTripMs = performance.now() - startedMs;
    const answered = await viewsOf(answer, tasks);
    if (state.request !== request) return; // a newer photo or choice has taken over
    showAnswer(answer, answered, asked, roundTripMs);
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

function clearNotice() {
  byId("notice").replaceChildren();
}

/* ---- Showing ---- */

/** One view per task that has something to show: its layer, or its problem. */
async function viewsOf(answer, tasks) {
  const found = [];
  for (const task of tasks) {
    const view = { key: task, title: titleOf(task), layer: null, problem: null };
    if (answer.errors?.[task]) {
      view.problem = readableProblem(answer.errors[task], `${view.title} failed`);
    } else {
      try {
        view.layer = await layerOf(answer.results[task], labelsOf(task), answer.image);
      } catch (error) {
        view.problem = { title: `${view.title} can’t be shown`, detail: error.message, remedy: "" };
      }
    }
    if (view.layer || view.problem) found.push(view);
  }
  return found;
}

function showAnswer(answer, answered, asked, roundTripMs) {
  state.views = answered;
  const findings = findingCards(answered, answer.results, stage);
  state.rows = findings.rows;
  byId("workbench").classList.add("has-answer");
  byId("workbench").classList.remove("is-stale");
  byId("findings").replaceChildren(...findings.cards);
  byId("timing-body").replaceChildren(...timingPanel(answer, roundTripMs));
  byId("timing").hidden = false;
  takeAway.offerPhoto(state.photo.file, answer, asked);
  showViews();
  const found = answered.filter((view) => view.layer).map((view) => `${view.title}: ${view.layer.summary}`);
  for (const [task, { classes }] of Object.entries(answer.results)) {
    if (classes?.length) found.push(`${titleOf(task)}: ${classes[0].label} ${percent(classes[0].score)}`);
  }
  announce(`Done in ${formatMs(roundTripMs)}. ${found.join(". ")}`);
}

function showViews() {
  if (player.isOpen) {
    views.offer(player.title, videoTasks());
    player.showViews();
  } else {
    views.offer("Photo", state.views);
    showPanes();
  }
}

const videoTasks = () =>
  state.tasks
    .filter(({ name, kind }) => state.chosen.has(name) && LAYER_KINDS.has(kind))
    .map(({ name }) => ({ key: name, title: titleOf(name) }));

function videoViews() {
  return [{ key: BARE_VIEW, title: player.title }, ...videoTasks()].filter(({ key }) => views.keys.includes(key));
}

function showPanes() {
  const all = [{ key: BARE_VIEW, title: "Photo", layer: null, problem: null }, ...state.views];
  stage.show(state.photo, all, views.keys);
  takeAway.hasPicture = all.some((view) => views.keys.includes(view.key) && view.layer);
}

function markRows(segment, pinned) {
  for (const [candidate, { row, button }] of state.rows) {
    row.classList.toggle("is-lit", candidate === segment);
    row.classList.toggle("is-pinned", candidate === pinned);
    button.setAttribute("aria-pressed", String(candidate === pinned));
  }
}

WIDE.addEventListener("change", () => {
  if (state.photo || player.isOpen) showViews();
});
listenForFiles({
  inputs: [
    ["choose", byId("file-input")],
    ["take-photo", byId("camera-input")],
  ],
  dropzone: byId("dropzone"),
  veil: byId("drop-veil"),
  onFile: takeFile,
});
for (const button of document.querySelectorAll("[data-action=camera]")) {
  button.addEventListener("click", () => takeVideo(VideoSource.fromCamera));
}
listenForShortcuts([
  { keys: ["o"], says: "Open a photo or a clip", act: () => byId("file-input").click() },
  { keys: ["c"], says: "Use the camera", act: () => takeVideo(VideoSource.fromCamera) },
  { keys: ["p"], says: "Play or pause the video", act: () => player.isOpen && player.toggle() },
  { keys: ["1", "2", "3", "4", "5", "6", "7", "8", "9"], says: "Show this view", act: (key) => views.choose(key - 1) },
  { keys: ["a"], says: "Options", act: () => byId("workbench").hidden || options.toggle() },
  { keys: ["t"], says: "Light or dark", act: toggleTheme },
  { keys: Object.keys(PROBE_MOVES), says: "On a picture: move the probe" },
  { keys: ["Escape"], says: "Let go of the probe and of a held segment" },
]);
connect();
