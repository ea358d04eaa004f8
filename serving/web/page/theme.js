/* Light or dark: the system's, until the person chooses the other one. Loaded before the page is first drawn. */

import { recall, remember } from "./preferences.js";

const NAME = "theme";
const root = document.documentElement;
const system = window.matchMedia("(prefers-color-scheme: dark)");

const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

function apply(theme) {
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  else delete root.dataset.theme;
  show();
}

/** Lets the button and the browser's own frame follow. */
function show() {
  document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
  const page = getComputedStyle(document.body).backgroundColor;
  for (const meta of document.querySelectorAll("meta[name=theme-color]")) meta.content = page;
}

/** Changes to the other theme. Where that is the system's, the system is followed again. */
export function toggleTheme() {
  const chosen = isDark() ? "light" : "dark";
  const theme = chosen === (system.matches ? "dark" : "light") ? null : chosen;
  remember(NAME, theme);
  apply(theme);
}

system.addEventListener("change", show);
document.getElementById("theme").addEventListener("click", toggleTheme);
apply(recall(NAME));
