/* Segments of one task (panoptic, instance or semantic) as a layer over the photo: look-up, painting, spotlight. */

import { colorForLabel, instanceShade, pixel, trackColor } from "./colors.js";
import { paintRle } from "./rle.js";

const SPOTLIGHT_SHADE = pixel([8, 10, 14], 150);
const SPOTLIGHT_EDGE = pixel([255, 255, 255]);
const COUNTED_AS = {
  panoptic: ["segment", "segments"],
  semantic: ["class", "classes"],
  instance: ["instance", "instances"],
};

/** 0.347 → "35%", 0.0042 → "0.4%". */
export function percent(fraction) {
  const value = fraction * 100;
  return `${value > 0 && value < 9.95 ? value.toFixed(1) : Math.round(value)}%`;
}

export class SegmentLayer {
  defaultOpacity = 0.62;

  /** `result` has segments or instances; `labels` are the task's from GET /tasks. */
  constructor({ kind, segments, instances }, labels, { width, height }) {
    this.kind = kind;
    this.width = width;
    this.height = height;
    // Instances come best first and stay so; a map's segments are listed by size.
    const items = instances ?? [...segments].sort((a, b) => b.area - a.area);
    this.segments = describe(items, labels ?? [], width * height);
    this.hidden = new Set();
    this.#map();
  }

  /** Takes these segments out of the layer, and brings all others back. */
  hide(segments) {
    this.hidden = new Set(segments);
    this.#map();
  }

  #map() {
    this.map = new Uint16Array(this.width * this.height); // column-major like the masks; 0 = nothing, else index + 1
    // Instances may overlap: the best is painted last.
    for (const segment of [...this.segments].reverse()) {
      if (!this.hidden.has(segment)) paintRle(segment.counts, this.map, segment.index + 1);
    }
    this.sampled = { width: 0, height: 0, map: null };
  }

  get summary() {
    const n = this.segments.length;
    const [one, many] = COUNTED_AS[this.kind];
    return `${n} ${n === 1 ? one : many}`;
  }

  /** The segment on show at a point, u and v in [0, 1) from the top left; null where there is none. */
  at(u, v) {
    const x = Math.floor(u * this.width);
    const y = Math.floor(v * this.height);
    return this.segments[this.map[x * this.height + y] - 1] ?? null;
  }

  /** What is at a point, in words; null where nothing is. */
  describeAt(u, v) {
    const segment = this.at(u, v);
    return segment && (segment.score === null ? segment.name : `${segment.name} ${percent(segment.score)}`);
  }

  /** The map at another size, row-major, nearest neighbour. The last size is kept. */
  sample(width, height) {
    if (this.sampled.width === width && this.sampled.height === height) return this.sampled.map;
    this.sampled = { width, height, map: resample(this.map, this, width, height) };
    return this.sampled.map;
  }

  /** Fills the canvas with the segments' colours, a thin lighter line where two meet. */
  paint(canvas) {
    const { width, height } = canvas;
    const map = this.sample(width, height);
    const fills = Uint32Array.from([0, ...this.segments.map((segment) => pixel(segment.color))]);
    const edges = Uint32Array.from([
      0,
      ...this.segments.map((segment) => pixel(segment.color.map((c) => Math.round(c + (255 - c) * 0.6)))),
    ]);
    paintPixels(canvas, (pixels) => {
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          const id = map[i];
          const meets = (x + 1 < width && map[i + 1] !== id) || (y + 1 < height && map[i + width] !== id);
          pixels[i] = meets ? edges[id] : fills[id];
        }
      }
    });
  }

  /**
   * Where to write the segments' names: [{ segment, u, v }], u and v in [0, 1), in the middle of the longest run of a
   * segment's pixels in the row of its centre; those with a smaller share of the picture than `minShare` have none.
   */
  anchors(minShare) {
    const { width, height } = this;
    const map = this.sample(width, height);
    const sums = this.segments.map(() => ({ y: 0, count: 0 }));
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const sum = sums[map[i] - 1];
        if (!sum) continue;
        sum.y += y;
        sum.count += 1;
      }
    }
    return this.segments.flatMap((segment) => {
      const { y, count } = sums[segment.index];
      if (count === 0 || count < minShare * width * height) return [];
      const row = Math.round(y / count);
      const [start, length] = longestRun(map.subarray(row * width, (row + 1) * width), segment.index + 1);
      return length ? [{ segment, u: (start + length / 2) / width, v: (row + 0.5) / height }] : [];
    });
  }

  /** Shades all but one segment, and outlines that one: the whole of it, also where a better instance covers it. */
  paintSpotlight(canvas, segment) {
    const { width, height } = canvas;
    const whole = new Uint8Array(this.width * this.height);
    paintRle(segment.counts, whole, 1);
    const mask = resample(whole, this, width, height);
    const reach = Math.max(1, Math.round(width / 640));
    paintPixels(canvas, (pixels) => {
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          if (mask[i]) continue; // stays clear
          const touches =
            (x >= reach && mask[i - reach]) ||
            (x + reach < width && mask[i + reach]) ||
            (y >= reach && mask[i - reach * width]) ||
            (y + reach < height && mask[i + reach * width]);
          pixels[i] = touches ? SPOTLIGHT_EDGE : SPOTLIGHT_SHADE;
        }
      }
    });
  }
}

/** The longest run of `value`: [start, length]. */
function longestRun(values, value) {
  let best = [0, 0];
  let start = 0;
  values.forEach((candidate, i) => {
    if (candidate !== value) start = i + 1;
    else if (i + 1 - start > best[1]) best = [start, i + 1 - start];
  });
  return best;
}

/** A column-major map of the size `from` at another size, row-major, nearest neighbour. */
function resample(map, from, width, height) {
  const sampled = new map.constructor(width * height);
  const columns = Uint32Array.from(
    { length: width },
    (_, x) => Math.floor(((x + 0.5) * from.width) / width) * from.height,
  );
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * from.height) / height);
    for (let x = 0; x < width; x++, i++) sampled[i] = map[columns[x] + row];
  }
  return sampled;
}

/**
 * The answer's items with colour, a name that is unique ("person 2") and the share of the picture.
 * A tracked one's name ("person #7") and colour follow its track, so that they stay from frame to frame.
 */
function describe(items, labels, pictureArea) {
  const labelById = new Map(labels.map((label) => [label.label_id, label]));
  const ofLabel = new Map();
  for (const item of items) ofLabel.set(item.label_id, (ofLabel.get(item.label_id) ?? 0) + 1);

  const seen = new Map();
  return items.map((item, index) => {
    const ordinal = seen.get(item.label_id) ?? 0;
    seen.set(item.label_id, ordinal + 1);
    const base = labelById.get(item.label_id)?.color ?? colorForLabel(item.label_id);
    const several = ofLabel.get(item.label_id) > 1;
    const track = item.track_id ?? null;
    return {
      index,
      name: track !== null ? `${item.label} #${track}` : several ? `${item.label} ${ordinal + 1}` : item.label,
      track,
      score: item.score ?? null,
      share: item.area / pictureArea,
      color: track === null ? instanceShade(base, ordinal) : trackColor(base, track),
      counts: item.rle.counts,
    };
  });
}

function paintPixels(canvas, fill) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  fill(new Uint32Array(image.data.buffer));
  context.putImageData(image, 0, 0);
}
