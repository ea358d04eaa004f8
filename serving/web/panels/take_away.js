/*
 * What can be taken along: the picture as it is shown, the answer in any form that the API has, and the command line
 * that gets the very same.
 */

import { clipCommand, curlCommand, ProblemError, segmentAs } from "../api.js";
import { el, titleOf } from "../page/dom.js";

const COPIED_MS = 1600;
const MAP_KINDS = new Set(["panoptic", "semantic", "instance", "depth"]); // those that format=png and overlay can show
const JSON_FORM = { value: "json", title: "Answer (JSON)", format: "json", ending: ".json" };
const NPZ_FORM = { value: "npz", title: "All arrays (NumPy npz)", format: "npz", ending: ".npz" };

const byId = (id) => document.getElementById(id);

/** The forms in which the API gives what was answered: { value, title, format, ending }, and tasks if not all asked. */
function formsOf(results) {
  const maps = Object.keys(results).filter((task) => MAP_KINDS.has(results[task].kind));
  return [
    JSON_FORM,
    NPZ_FORM,
    ...maps.flatMap((task) => [
      { value: `map ${task}`, title: `${titleOf(task)}: map (PNG)`, format: "png", ending: `.${task}.png`, tasks: [task] },
      {
        value: `overlay ${task}`,
        title: `${titleOf(task)}: overlay (PNG)`,
        format: "overlay",
        ending: `.${task}.overlay.png`,
        tasks: [task],
      },
    ]),
  ];
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

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

export class TakeAway {
  #hooks;
  #shown = null; // { file, answer, asked } of a photo, { file, answer, tasks } of a clip; a camera has no file
  #forms = [];

  /**
   * `announce(text)` speaks to screen readers, `showProblem(problem, onRetry)`, `clearProblem()`, `toPicture()` is a
   * canvas of what is shown.
   */
  constructor(hooks) {
    this.#hooks = hooks;
    byId("download-picture").addEventListener("click", () => {
      hooks.toPicture().toBlob((blob) => save(blob, this.#nameOf(".shown.png")), "image/png");
    });
    byId("form").addEventListener("change", () => this.#showCommand());
    byId("download-form").addEventListener("click", () => this.#downloadForm());
    byId("copy-command").addEventListener("click", () => this.#copy());
  }

  /** Offers the answer on a photo; `asked` is the request: { tasks, options }. */
  offerPhoto(file, answer, asked) {
    this.#offer({ file, answer, asked }, formsOf(answer.results));
  }

  /** Offers the last answer on a clip (or, without a file, the camera). */
  offerVideo(file, answer, tasks) {
    this.#offer({ file, answer, tasks }, [{ ...JSON_FORM, title: "This frame’s answer (JSON)" }]);
  }

  /** Whether what is shown is worth a picture. */
  set hasPicture(hasPicture) {
    byId("download-picture").disabled = !hasPicture;
  }

  #offer(shown, forms) {
    this.#shown = shown;
    const same = forms.length === this.#forms.length && forms.every(({ title }, i) => title === this.#forms[i].title);
    this.#forms = forms;
    const select = byId("form");
    if (!same) {
      const chosen = select.value;
      select.replaceChildren(...forms.map(({ value, title }) => el("option", { value, text: title })));
      if (forms.some(({ value }) => value === chosen)) select.value = chosen;
    }
    byId("take-away").hidden = false;
    this.#showCommand();
  }

  get #form() {
    return this.#forms[byId("form").selectedIndex];
  }

  #nameOf(ending) {
    const base = this.#shown.file?.name.replace(/\.[^.]+$/, "") || "camera";
    return `${base}.polyhead${ending}`;
  }

  #showCommand() {
    const { file, asked, tasks } = this.#shown;
    const command = asked
      ? curlCommand(file, { ...asked, ...this.#form }, this.#nameOf(this.#form.ending))
      : file && clipCommand(file, tasks);
    byId("command-part").hidden = !command;
    if (byId("command").textContent !== command) byId("command").textContent = command ?? "";
    byId("asks-again").hidden = this.#form.format === "json";
  }

  async #downloadForm() {
    const { file, asked, answer } = this.#shown;
    const form = this.#form;
    const name = this.#nameOf(form.ending);
    if (form.format === "json") {
      save(new Blob([JSON.stringify(answer, null, 2)], { type: "application/json" }), name);
      return;
    }
    const button = byId("download-form");
    button.disabled = true;
    this.#hooks.clearProblem();
    try {
      save(await segmentAs(file, { ...asked, ...form }), name);
      this.#hooks.announce(`${form.title} was downloaded`);
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      this.#hooks.showProblem(error.problem, () => this.#downloadForm());
    } finally {
      button.disabled = false;
    }
  }

  async #copy() {
    await copyText(byId("command").textContent);
    const label = byId("copy-command").querySelector("span");
    label.textContent = "Copied";
    this.#hooks.announce("Copied");
    setTimeout(() => {
      label.textContent = "Copy";
    }, COPIED_MS);
  }
}
