/* The page's single-key shortcuts, and the dialog that lists them and can switch them off (WCAG 2.1.4). */

import { el } from "./dom.js";
import { recall, remember } from "./preferences.js";

const NAME = "shortcuts";
const byId = (id) => document.getElementById(id);

/** In these a key is text or chooses something. */
const takesText = (target) =>
  target.closest("textarea, select, [contenteditable]") ||
  (target.matches("input") && !["range", "checkbox", "radio"].includes(target.type));

/**
 * Listens for keys. `shortcuts` are { keys, says, act(key) }: `keys` are the values of KeyboardEvent.key, `says` what
 * the dialog tells; one without `act` is told only, because what has the focus hears it.
 */
export function listenForShortcuts(shortcuts) {
  const dialog = byId("help");
  const all = [...shortcuts, { keys: ["?"], says: "This help", act: () => dialog.showModal() }];
  byId("shortcuts").replaceChildren(
    ...all.map(({ keys, says }) =>
      el(
        "div",
        {},
        el("dt", {}, ...(keys.length > 4 ? [keys[0], "–", keys.at(-1)] : keys).map(keyCap)),
        el("dd", { text: says }),
      ),
    ),
  );

  const areOn = byId("shortcuts-on");
  areOn.checked = recall(NAME) !== "off";
  areOn.addEventListener("change", () => remember(NAME, areOn.checked ? null : "off"));
  byId("show-help").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside its content, which fills it
  });

  document.addEventListener("keydown", (event) => {
    if (!areOn.checked || dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.defaultPrevented || takesText(event.target)) return;
    const shortcut = all.find(({ keys, act }) => act && keys.includes(event.key));
    if (!shortcut) return;
    event.preventDefault();
    shortcut.act(event.key);
  });
}

const CAPS = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };
const keyCap = (key) => (key === "–" ? " – " : el("kbd", { text: CAPS[key] ?? key }));
