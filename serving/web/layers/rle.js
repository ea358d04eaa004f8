/* COCO run-length masks: pycocotools' compressed string, column-major, runs of 0 and 1 in turn beginning with 0. */

/**
 * Run lengths of a compressed string, as pycocotools' `rleFrString`: little-endian groups of 5 bits, offset 48,
 * bit 6 = more follow, sign in the last group; from the fourth run on, the difference to the run two before.
 */
function runLengths(counts) {
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = counts.charCodeAt(at++) - 48;
      value |= (group & 0x1f) << shift;
      shift += 5;
    } while (group & 0x20 && at < counts.length);
    if (group & 0x10 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Writes `value` into the column-major `map` wherever the mask is 1. */
export function paintRle(counts, map, value) {
  let start = 0;
  runLengths(counts).forEach((length, index) => {
    if (index % 2 === 1) map.fill(value, start, start + length);
    start += length;
  });
}
