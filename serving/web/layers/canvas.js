/* Canvases and their sizes. */

import { el } from "../page/dom.js";

/** The size of a picture, or a smaller one of the same shape whose longer side is `maxSide`. */
export function fit({ width, height }, maxSide) {
  const ratio = Math.min(1, maxSide / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * ratio)), height: Math.max(1, Math.round(height * ratio)) };
}

export function makeCanvas({ width, height }, className) {
  const canvas = el("canvas", { class: className, "aria-hidden": "true" });
  resize(canvas, { width, height });
  return canvas;
}

/** Sets a canvas' size where it differs; setting it always would clear the canvas. */
export function resize(canvas, { width, height }) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}
