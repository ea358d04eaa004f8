/* A depth map as a layer over the photo: look-up in its unit, painting, and its colour bar. */

import { makeCanvas } from "./canvas.js";
import { cssColor, depthColor, pixel } from "./colors.js";
import { depthTicks } from "./depth_scale.js";
import { bytesFromBase64, decodePng16 } from "./png16.js";

const SETTLE_MS = 1000; // in which a video's colours follow a new range, so that they don't flicker
const RAMP_STEPS = 1024;
const RAMP = Uint32Array.from({ length: RAMP_STEPS }, (_, i) => pixel(depthColor(i / (RAMP_STEPS - 1))));

export class DepthLayer {
  defaultOpacity = 1;

  /** In a video, the colours' range comes slowly from that of the layer before. */
  static async fromResult(result, previous = null) {
    const { width, height, values } = await decodePng16(bytesFromBase64(result.png16));
    const pace = previous ? 1 - Math.exp((previous.madeMs - performance.now()) / SETTLE_MS) : 1;
    const follow = (name) => (previous ? previous[name] + pace * (result[name] - previous[name]) : result[name]);
    return new DepthLayer({ ...result, min: follow("min"), max: follow("max") }, width, height, values);
  }

  constructor({ unit, min, max, scale }, width, height, values) {
    Object.assign(this, { unit, min, max, scale, width, height, values, madeMs: performance.now() });
    // Colours follow the logarithm: equal ratios look alike, so near things keep their detail beside far ones.
    const far = max > 0 ? max : 1;
    this.logNear = Math.log(Math.max(min, far / 500));
    this.logSpan = Math.max(Math.log(far) - this.logNear, 1e-6);
  }

  get summary() {
    return `${this.format(this.min, false)} to ${this.format(this.max)}`;
  }

  format(depth, withUnit = true) {
    const digits = depth < 10 ? 2 : depth < 100 ? 1 : 0;
    return withUnit && this.unit ? `${depth.toFixed(digits)}\u00a0${this.unit}` : depth.toFixed(digits);
  }

  /** Where a depth lies on the colour bar, in [0, 1]. */
  place(depth) {
    return Math.min(1, Math.max(0, (Math.log(Math.max(depth, 1e-9)) - this.logNear) / this.logSpan));
  }

  /** Depth at a point, u and v in [0, 1) from the top left; null where the map has none (0). */
  at(u, v) {
    const value = this.values[Math.floor(v * this.height) * this.width + Math.floor(u * this.width)];
    return value > 0 ? value * this.scale : null;
  }

  /** What is at a point, in words; null where the map has no depth. */
  describeAt(u, v) {
    const depth = this.at(u, v);
    return depth === null ? null : this.format(depth);
  }

  paint(canvas) {
    const { width, height } = canvas;
    const colors = new Uint32Array(65536).fill(RAMP[0]); // one colour per stored value
    const lowest = Math.max(1, Math.floor(this.min / this.scale));
    const highest = Math.min(65535, Math.ceil(this.max / this.scale));
    for (let value = lowest; value <= highest; value++) {
      colors[value] = RAMP[Math.round(this.place(value * this.scale) * (RAMP_STEPS - 1))];
    }
    colors.fill(RAMP[RAMP_STEPS - 1], highest + 1);
    colors[0] = 0; // no depth stays clear
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const columns = Uint32Array.from({ length: width }, (_, x) => Math.floor(((x + 0.5) * this.width) / width));
    for (let y = 0, i = 0; y < height; y++) {
      const row = Math.floor(((y + 0.5) * this.height) / height) * this.width;
      for (let x = 0; x < width; x++, i++) pixels[i] = colors[this.values[row + columns[x]]];
    }
    context.putImageData(image, 0, 0);
  }

  /** Round depths for the bar's scale: [{ depth, place }]. */
  ticks() {
    return depthTicks(Math.exp(this.logNear), this.max, (depth) => this.place(depth));
  }

  /** Median depth of each segment of a SegmentLayer, from a sample of its pixels; null for one without depth. */
  medianBySegment(segmentLayer) {
    const width = Math.min(segmentLayer.width, 320);
    const height = Math.max(1, Math.round((width * segmentLayer.height) / segmentLayer.width));
    const samples = segmentLayer.segments.map(() => []);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const u = (x + 0.5) / width;
        const v = (y + 0.5) / height;
        const segment = segmentLayer.at(u, v);
        const depth = segment && this.at(u, v);
        if (depth) samples[segment.index].push(depth);
      }
    }
    return samples.map((depths) => {
      if (depths.length === 0) return null;
      return depths.sort((a, b) => a - b)[depths.length >> 1];
    });
  }
}

/** The colours from near to far, left to right. */
export function depthRamp() {
  const canvas = makeCanvas({ width: 512, height: 1 }, "ramp");
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = cssColor(depthColor(x / (canvas.width - 1)));
    context.fillRect(x, 0, 1, canvas.height);
  }
  return canvas;
}
