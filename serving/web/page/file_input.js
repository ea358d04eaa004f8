/* The ways in which a file comes onto the page: chosen, taken with the device's camera, pasted, or dropped. */

const MOVING = /^video\//;

export const isVideo = (file) => MOVING.test(file.type);

const firstUsable = (files) =>
  [...files].find((file) => file.type.startsWith("image/") || isVideo(file)) ?? files[0];

/**
 * Calls `onFile(file)` for every file that comes. `inputs` are pairs of a data-action and the file input that the
 * buttons with that action open; `dropzone` opens the first one, `veil` is shown while a file is dragged over the page.
 */
export function listenForFiles({ inputs, dropzone, veil, onFile }) {
  const take = (files) => {
    const file = firstUsable(files);
    if (file) onFile(file);
  };
  for (const [action, input] of inputs) {
    for (const button of document.querySelectorAll(`[data-action=${action}]`)) {
      button.addEventListener("click", () => input.click());
    }
    input.addEventListener("change", () => {
      take(input.files);
      input.value = ""; // the same file may be chosen again
    });
  }
  dropzone.addEventListener("click", (event) => {
    if (!event.target.closest("button")) inputs[0][1].click();
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));

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
    take(event.dataTransfer.files);
  });
}
