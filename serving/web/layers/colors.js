/* Colours: those that tell instances and tracks of one class apart, and the depth ramp. All are made in OKLab. */

const toLinear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const toGamma = (c) => (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055);
const toByte = (c) => Math.round(255 * Math.min(1, Math.max(0, toGamma(Math.max(0, c)))));

/** sRGB bytes to OKLab (https://bottosson.github.io/posts/oklab/). */
function toOklab([red, green, blue]) {
  const [r, g, b] = [red, green, blue].map((byte) => toLinear(byte / 255));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function fromOklab([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    toByte(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    toByte(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    toByte(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

const SHADE_STEPS = [
  { lightness: 0, turn: 0 },
  { lightness: 0.13, turn: 0.3 },
  { lightness: -0.12, turn: -0.3 },
  { lightness: 0.07, turn: -0.55 },
  { lightness: -0.07, turn: 0.55 },
  { lightness: 0.2, turn: -0.15 },
  { lightness: -0.19, turn: 0.15 },
];

/** The class colour for its first instance, then lighter, darker and slightly turned ones. RGB bytes. */
export function instanceShade(rgb, ordinal) {
  const step = SHADE_STEPS[ordinal % SHADE_STEPS.length];
  const [lightness, a, b] = toOklab(rgb);
  const cos = Math.cos(step.turn);
  const sin = Math.sin(step.turn);
  return fromOklab([
    Math.min(0.95, Math.max(0.25, lightness + step.lightness)),
    a * cos - b * sin,
    a * sin + b * cos,
  ]);
}

const GOLDEN_ANGLE = 2.399963; // steps of it around the colour wheel never meet

/**
 * A track's colour, the same in every frame: the class colour for track 1, then around the wheel, every other one
 * darker. Shades of one colour would run out: a stream counts its tracks up. RGB bytes.
 */
export function trackColor(rgb, trackId) {
  const [lightness, a, b] = toOklab(rgb);
  const chroma = Math.max(0.1, Math.hypot(a, b));
  const angle = Math.atan2(b, a) + (trackId - 1) * GOLDEN_ANGLE;
  const level = Math.min(0.8, Math.max(0.5, lightness)) - (trackId % 2 === 0 ? 0.13 : 0);
  return fromOklab([level, chroma * Math.cos(angle), chroma * Math.sin(angle)]);
}

/** A steady hue for a label that came without a colour: golden-angle steps around the wheel. RGB bytes. */
export function colorForLabel(labelId) {
  const angle = labelId * GOLDEN_ANGLE;
  return fromOklab([0.68, 0.14 * Math.cos(angle), 0.14 * Math.sin(angle)]);
}

/* Near is light and warm, far is dark and cool; lightness falls all the way, so it also reads in grey. */
const DEPTH_STOPS = [
  [255, 241, 189],
  [253, 190, 104],
  [240, 122, 84],
  [194, 66, 110],
  [122, 47, 126],
  [58, 38, 110],
  [18, 20, 56],
].map(toOklab);

/** Depth ramp colour at t in [0, 1], 0 = near. RGB bytes. */
export function depthColor(t) {
  const place = Math.min(1, Math.max(0, t)) * (DEPTH_STOPS.length - 1);
  const low = Math.min(Math.floor(place), DEPTH_STOPS.length - 2);
  const mix = place - low;
  return fromOklab(DEPTH_STOPS[low].map((value, i) => value + (DEPTH_STOPS[low + 1][i] - value) * mix));
}

/** RGB bytes as one pixel of a canvas' Uint32 view (little-endian: ABGR). */
export function pixel([red, green, blue], alpha = 255) {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

export const cssColor = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
