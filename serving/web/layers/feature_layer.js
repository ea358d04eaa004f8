/*
 * A grid of feature vectors as a layer over the photo, in false colours: the three directions in which this photo's
 * vectors differ most (their principal components) are red, green and blue. Like colours mean like features.
 */

import { pixel } from "./colors.js";
import { bytesFromBase64 } from "./png16.js";

const COMPONENTS = 3;
const FITTED_VECTORS = 1024; // enough to find the directions; all vectors are then coloured
const ROUNDS = 16;
const TRIMMED = 0.02; // of the values at either end share the end's colour

export class FeatureLayer {
  defaultOpacity = 0.9;

  /** In a video, the directions follow those of the layer before: found from scratch, they might change their sign. */
  constructor({ dim, grid: [rows, columns], vectors16 }, previous = null) {
    Object.assign(this, { rows, columns });
    const vectors = centered(Float32Array.from(new Uint16Array(bytesFromBase64(vectors16).buffer), fromHalf), dim);
    this.directions = principalDirections(vectors, dim, previous?.directions ?? someDirections(dim));
    const channels = this.directions.map((direction) => spread(project(vectors, direction)));
    this.colors = Uint32Array.from({ length: rows * columns }, (_, i) => pixel(channels.map((channel) => channel[i])));
  }

  get summary() {
    return `${this.rows} × ${this.columns}`;
  }

  /** A vector can't be told in a word. */
  describeAt() {
    return null;
  }

  paint(canvas) {
    const small = document.createElement("canvas");
    small.width = this.columns;
    small.height = this.rows;
    const context = small.getContext("2d");
    const image = context.createImageData(this.columns, this.rows);
    new Uint32Array(image.data.buffer).set(this.colors);
    context.putImageData(image, 0, 0);
    const shown = canvas.getContext("2d");
    shown.imageSmoothingEnabled = false; // a cell is one vector; nothing is known in between
    shown.drawImage(small, 0, 0, canvas.width, canvas.height);
  }
}

/** A float16's bits as a number (IEEE 754 binary16); the server sends no infinities. */
export function fromHalf(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  const size = exponent === 0 ? fraction * 2 ** -14 : (1 + fraction) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -size : size;
}

/** Vectors (rows of `dim` numbers) less their mean, in place. */
function centered(vectors, dim) {
  const mean = new Float64Array(dim);
  const count = vectors.length / dim;
  for (let i = 0; i < vectors.length; i++) mean[i % dim] += vectors[i] / count;
  for (let i = 0; i < vectors.length; i++) vectors[i] -= mean[i % dim];
  return vectors;
}

/** Where to begin; the same at every call. */
function someDirections(dim) {
  return Array.from({ length: COMPONENTS }, (_, k) =>
    Float64Array.from({ length: dim }, (_, i) => Math.cos((k + 1) * (i + 1))),
  );
}

/** The first principal components of centred vectors, by subspace iteration. */
function principalDirections(vectors, dim, start) {
  const stride = dim * Math.ceil(vectors.length / dim / FITTED_VECTORS);
  let directions = start;
  for (let round = 0; round < ROUNDS; round++) {
    const next = directions.map((direction) => {
      const sum = new Float64Array(dim);
      for (let start = 0; start < vectors.length; start += stride) {
        let along = 0;
        for (let i = 0; i < dim; i++) along += vectors[start + i] * direction[i];
        for (let i = 0; i < dim; i++) sum[i] += vectors[start + i] * along;
      }
      return sum;
    });
    directions = orthonormal(next);
  }
  return directions;
}

/** Gram-Schmidt, in place. */
function orthonormal(directions) {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  directions.forEach((direction, k) => {
    for (const earlier of directions.slice(0, k)) {
      const shared = dot(direction, earlier);
      direction.forEach((_, i) => (direction[i] -= shared * earlier[i]));
    }
    const length = Math.sqrt(dot(direction, direction)) || 1;
    direction.forEach((_, i) => (direction[i] /= length));
  });
  return directions;
}

/** Each vector's part along a direction. */
function project(vectors, direction) {
  const dim = direction.length;
  const along = new Float32Array(vectors.length / dim);
  for (let i = 0; i < vectors.length; i++) along[Math.floor(i / dim)] += vectors[i] * direction[i % dim];
  return along;
}

/** Values spread over the bytes, but for a few at either end. */
function spread(values) {
  const sorted = values.slice().sort();
  const last = sorted.length - 1;
  const low = sorted[Math.round(TRIMMED * last)];
  const range = sorted[Math.round((1 - TRIMMED) * last)] - low || 1;
  return values.map((value) => Math.round(255 * Math.min(1, Math.max(0, (value - low) / range))));
}
