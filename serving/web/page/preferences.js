/* What the person chose for good, kept in this browser; where it keeps nothing (private windows), for this page only. */

const PREFIX = "polyhead.";

/** The value kept under a name; null if there is none. */
export function recall(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** Keeps a text under a name; null forgets it. */
export function remember(name, text) {
  try {
    if (text === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, text);
  } catch {
    // not kept
  }
}
