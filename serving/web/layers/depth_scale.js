/* The scale of depth that a colour bar shows: round numbers between the nearest and the farthest. */

const DECADE_STEPS = [1, 2, 5];
const MAX_TICKS = 6;
const WIDE_RATIO = 8; // beyond it, equal steps would crowd at the far end of a logarithmic bar
const MIN_GAP = 0.08; // of the bar's length, between two ticks' numbers
const EDGE = 0.14; // kept free at either end, where the range's own numbers stand

/** 1, 2 and 5 of each power of ten. */
function* decades(near, far) {
  for (let power = Math.floor(Math.log10(near)); 10 ** power <= far; power++) {
    for (const step of DECADE_STEPS) yield step * 10 ** power;
  }
}

/** The multiples of the smallest round step that gives few enough. */
function* multiples(near, far) {
  const rough = (far - near) / MAX_TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((candidate) => candidate * power >= rough);
  for (let n = Math.ceil(near / step); n * step <= far; n++) yield Number((n * step).toPrecision(6));
}

/** Round depths strictly between `near` and `far`, [{ depth, place }]; `place(depth)` is in [0, 1] along the bar. */
export function depthTicks(near, far, place) {
  if (!(near > 0 && far > near)) return [];
  const ticks = [];
  for (const depth of far / near > WIDE_RATIO ? decades(near, far) : multiples(near, far)) {
    const at = place(depth);
    const last = ticks.at(-1)?.place ?? -1;
    if (at > EDGE && at < 1 - EDGE && at - last > MIN_GAP) ticks.push({ depth, place: at });
  }
  return ticks;
}
