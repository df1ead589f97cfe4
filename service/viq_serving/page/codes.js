/** The codes of one image, and what they say: levels and colours. */

export const PATCH = 16; // pixels of a side
export const PER_PATCH = 4;
const RAW_BYTES = 2; // of one code

/** `array` holds 4·h·w codes, row by row; `grid` is [h, w] patches, `imageSize` [H, W] pixels. Never changed. */
export class Codes {
  constructor(array, grid, imageSize, size, fingerprint = "") {
    const [h, w] = grid;
    if (!(h > 0 && w > 0) || array.length !== PER_PATCH * h * w)
      throw new Error(`${array.length} codes do not fit a grid of ${h} × ${w} patches`);
    for (const [pixels, patches] of [
      [imageSize[0], h],
      [imageSize[1], w],
    ])
      if (!(PATCH * (patches - 1) < pixels && pixels <= PATCH * patches))
        throw new Error(`a picture of ${imageSize[0]} × ${imageSize[1]} pixels does not fit ${h} × ${w} patches`);
    Object.assign(this, { array, grid, imageSize, size, fingerprint });
  }

  get patches() {
    return this.grid[0] * this.grid[1];
  }

  /** Bytes of the codes by themselves, 16 bits each. */
  get bytes() {
    return RAW_BYTES * this.array.length;
  }

  /** The four codes of a patch. */
  of(patch) {
    return this.array.subarray(PER_PATCH * patch, PER_PATCH * (patch + 1));
  }

  /** The same image with other codes. */
  with(array) {
    return new Codes(array, this.grid, this.imageSize, this.size, this.fingerprint);
  }

  /** 1 for each patch whose codes differ from those of `other`. */
  differs(other) {
    return Uint8Array.from({ length: this.patches }, (_, n) => +this.of(n).some((code, s) => code !== other.of(n)[s]));
  }

  /** One item of an encode reply with its `model` block, or what `Codes.to_dict` of the library writes. */
  static fromJson(item, model = {}) {
    const size = item.size ?? model.size;
    if (typeof size !== "string" || !pair(item.grid)) throw new Error("it names no size or no grid");
    const array = item.codes_b64 === undefined ? fromList(item.codes) : fromBase64(item.codes_b64);
    const imageSize = item.image_size ?? item.grid.map((side) => PATCH * side);
    if (!pair(imageSize)) throw new Error("its image_size is not two numbers");
    return new Codes(array, item.grid, imageSize, size, item.fingerprint ?? model.fingerprint ?? "");
  }

  /** The form that decode takes and that `fromJson` reads. */
  toReply() {
    const { imageSize, grid, size, fingerprint } = this;
    return {
      model: { size, fingerprint },
      results: [{ image_size: imageSize, grid, codes_b64: toBase64(this.array) }],
    };
  }
}

/** Index of each level of a code, from the first dimension on: the code is Σ indexᵢ · L₀⋯Lᵢ₋₁ (viq/fsq.py). */
export function levelsOf(code, levels) {
  return levels.map((count) => {
    const index = code % count;
    code = Math.floor(code / count);
    return index;
  });
}

/** The code whose every level is the middle one, whose value is 0. */
export function middleCode(levels) {
  let weight = 1;
  return levels.reduce((sum, count) => {
    const part = Math.floor(count / 2) * weight;
    weight *= count;
    return sum + part;
  }, 0);
}

/** A code as red, green and blue, 0 to 255: each the mean of every third level. Codes near each other look alike. */
export function colourOf(code, levels) {
  const sums = [0, 0, 0];
  const counts = [0, 0, 0];
  levelsOf(code, levels).forEach((index, dimension) => {
    sums[dimension % 3] += index / (levels[dimension] - 1);
    counts[dimension % 3] += 1;
  });
  return sums.map((sum, channel) => Math.round((255 * sum) / Math.max(1, counts[channel])));
}

/** Bytes of base64 text. */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function pair(value) {
  return Array.isArray(value) && value.length === 2 && value.every((side) => Number.isInteger(side) && side > 0);
}

function fromList(list) {
  if (!Array.isArray(list) || !list.every((code) => Number.isInteger(code) && code >= 0 && code < 65536))
    throw new Error("its codes are no list of whole numbers from 0 to 65535");
  return Uint16Array.from(list);
}

function fromBase64(text) {
  let bytes;
  try {
    bytes = bytesOf(text);
  } catch {
    throw new Error("its codes are no base64");
  }
  if (bytes.length % RAW_BYTES) throw new Error(`${bytes.length} bytes are no whole number of 16-bit codes`);
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / RAW_BYTES }, (_, n) => view.getUint16(RAW_BYTES * n, true));
}

function toBase64(array) {
  const view = new DataView(new ArrayBuffer(RAW_BYTES * array.length));
  array.forEach((code, n) => view.setUint16(RAW_BYTES * n, code, true));
  const letters = Array.from(new Uint8Array(view.buffer), (byte) => String.fromCharCode(byte));
  return btoa(letters.join(""));
}
