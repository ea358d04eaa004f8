/*
 * A reader for 16-bit grey PNG (not interlaced), the form of depth maps.
 * A browser's canvas keeps 8 bits per channel, so the file is unpacked here. Spec: https://www.w3.org/TR/png-3/
 */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const BYTES_PER_PIXEL = 2;

async function inflate(chunks) {
  const stream = new Blob(chunks).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The Paeth predictor of the PNG specification, section 9.4. */
function paeth(left, up, upLeft) {
  const estimate = left + up - upLeft;
  const toLeft = Math.abs(estimate - left);
  const toUp = Math.abs(estimate - up);
  const toUpLeft = Math.abs(estimate - upLeft);
  if (toLeft <= toUp && toLeft <= toUpLeft) return left;
  return toUp <= toUpLeft ? up : upLeft;
}

/** Undoes one scan line's filter in place; `row` and `above` are the lines' bytes. */
function unfilter(kind, row, above) {
  const n = row.length;
  if (kind > 4) throw new Error(`PNG filter ${kind} does not exist`);
  for (let i = 0; kind !== 0 && i < n; i++) {
    const left = i < BYTES_PER_PIXEL ? 0 : row[i - BYTES_PER_PIXEL];
    const up = above[i];
    if (kind === 1) row[i] += left;
    else if (kind === 2) row[i] += up;
    else if (kind === 3) row[i] += (left + up) >> 1;
    else row[i] += paeth(left, up, i < BYTES_PER_PIXEL ? 0 : above[i - BYTES_PER_PIXEL]);
  }
}

/**
 * Decodes the bytes of a PNG file.
 * Returns { width, height, values }, values a row-major Uint16Array. Throws on any other kind of PNG.
 */
export async function decodePng16(bytes) {
  if (SIGNATURE.some((byte, i) => bytes[i] !== byte)) throw new Error("not a PNG file");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const packed = [];
  let width = 0;
  let height = 0;
  for (let at = SIGNATURE.length; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const body = at + 8;
    if (type === "IHDR") {
      width = view.getUint32(body);
      height = view.getUint32(body + 4);
      const [bitDepth, colorType, , , interlace] = bytes.subarray(body + 8, body + 13);
      if (bitDepth !== 16 || colorType !== 0 || interlace !== 0) {
        throw new Error("the depth map is not a plain 16-bit grey PNG");
      }
    } else if (type === "IDAT") {
      packed.push(bytes.subarray(body, body + length));
    }
    at = body + length + 4;
  }

  const raw = await inflate(packed);
  const stride = width * BYTES_PER_PIXEL;
  if (raw.length < (stride + 1) * height) throw new Error("the depth map's PNG is cut short");
  const values = new Uint16Array(width * height);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const start = y * (stride + 1);
    const row = raw.subarray(start + 1, start + 1 + stride);
    unfilter(raw[start], row, above);
    for (let x = 0; x < width; x++) values[y * width + x] = (row[2 * x] << 8) | row[2 * x + 1];
    above = row;
  }
  return { width, height, values };
}

/** Base64 text to bytes. */
export function bytesFromBase64(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}
