// Pictures to a model's pixels: uint8, rows of [height][width][channels].

const BITS = 22; // Of a weight's fraction, in fixed point.
const UNIT = 1 << BITS;
const HALF = UNIT >> 1;

/**
 * Brings an image to a size as kdjax does in training: the shorter side resized, the
 * longer one cut at both ends.
 *
 * A triangle filter as wide as a target pixel, or as a source pixel where the image
 * grows; first along rows, rounded, then along columns. That is Pillow's BILINEAR, to
 * the bit.
 *
 * @param {{data: Uint8Array, width: number, height: number,
 *   channels: number}} image
 */
export function fit(image, width, height) {
  if (image.width === width && image.height === height) return image;
  const scale = Math.max(width / image.width, height / image.height);
  const wide = Math.max(round(scale * image.width), width);
  const high = Math.max(round(scale * image.height), height);
  const resized = alongColumns(alongRows(image, wide), high);
  return cut(resized, (wide - width) >> 1, (high - height) >> 1, width, height);
}

/** RGBA to the channels of a model: RGB, or grey by ITU-R 601-2 as in Pillow. */
export function fromRGBA({ data, width, height }, channels) {
  const out = new Uint8Array(width * height * channels);
  for (let i = 0, j = 0; i < data.length; i += 4, j += channels) {
    if (channels === 3) {
      out.set(data.subarray(i, i + 3), j);
    } else {
      const sum = data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471;
      out[j] = (sum + 0x8000) >> 16;
    }
  }
  return { data: out, width, height, channels };
}

/** Grey models have learnt light on dark: a picture with a light border is inverted. */
export function onDark(image) {
  const { data, width, height } = image;
  let sum = 0;
  let count = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (x && y && x < width - 1 && y < height - 1) continue;
      sum += data[y * width + x];
      count++;
    }
  }
  if (sum / count < 128) return image;
  return { ...image, data: data.map((v) => 255 - v) };
}

function round(x) {
  // Half to even, as Python does.
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 ? low + 1 : low;
}

function alongRows(image, width) {
  const { data, height, channels } = image;
  const taps = filter(image.width, width);
  const out = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        const { first, weights } = taps[x];
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k] * data[(y * image.width + first + k) * channels + c];
        }
        out[(y * width + x) * channels + c] = (sum + HALF) >> BITS;
      }
    }
  }
  return { data: out, width, height, channels };
}

function alongColumns(image, height) {
  const { data, width, channels } = image;
  const taps = filter(image.height, height);
  const row = width * channels;
  const out = new Uint8Array(height * row);
  for (let y = 0; y < height; y++) {
    const { first, weights } = taps[y];
    for (let i = 0; i < row; i++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) {
        sum += weights[k] * data[(first + k) * row + i];
      }
      out[y * row + i] = (sum + HALF) >> BITS;
    }
  }
  return { data: out, width, height, channels };
}

/** For each target pixel: the first source pixel, and weights of it and the next. */
function filter(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.floor(centre - support + 0.5), 0);
    const last = Math.min(Math.floor(centre + support + 0.5), from);
    const weights = [];
    for (let x = first; x < last; x++) {
      weights.push(Math.max(1 - Math.abs((x - centre + 0.5) / support), 0));
    }
    const total = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((w) => Math.round((w / total) * UNIT)) };
  });
}

function cut({ data, width: wide, channels }, left, top, width, height) {
  const out = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * wide + left) * channels;
    out.set(data.subarray(start, start + width * channels), y * width * channels);
  }
  return { data: out, width, height, channels };
}
