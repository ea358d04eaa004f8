/* An error on the page: what happened, why, what to do about it, and a button that waits as long as the server asks. */

import { el, icon } from "./dom.js";

const TICK_MS = 250;

/**
 * A button that tries again. With `waitS`, it counts down first and can't be pressed: the server said when another try
 * is worth while.
 */
function retryButton(onRetry, waitS) {
  const button = el("button", { type: "button", class: "button", text: "Try again", onclick: onRetry });
  if (!waitS) return button;
  const readyMs = performance.now() + 1000 * waitS;
  const show = () => {
    const leftS = Math.ceil((readyMs - performance.now()) / 1000);
    button.disabled = leftS > 0;
    button.textContent = leftS > 0 ? `Try again in ${leftS} s` : "Try again";
  };
  const ticking = setInterval(() => {
    show();
    if (!button.disabled || !button.isConnected) clearInterval(ticking);
  }, TICK_MS);
  show();
  return button;
}

/** A problem, { title, detail, remedy, retryAfterS }, as a card. Its words are spoken; the countdown is not. */
export function problemCard(problem, { level = 2, onRetry = null } = {}) {
  return el(
    "div",
    { class: "problem" },
    icon("alert"),
    el(
      "div",
      {},
      el(
        "div",
        { role: "alert" },
        el(`h${level}`, { text: problem.title }),
        problem.detail ? el("p", { text: problem.detail }) : null,
        problem.remedy ? el("p", { class: "remedy", text: problem.remedy }) : null,
      ),
      onRetry ? retryButton(onRetry, problem.retryAfterS) : null,
    ),
  );
}
