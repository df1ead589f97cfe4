/** What JPEG and PNG make of a picture in as many bytes as its codes, written by this browser's own encoders. */

import { psnr } from "./measures.js";
import { fileOf, Picture } from "./picture.js";

const SCALES = [1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125];
const BEST = 100; // quality

/** The best JPEG of at most `bytes`, its pixels fewer where that is better; null if none is so small. */
export async function jpegWithin(picture, bytes) {
  let best = null;
  for (const scale of SCALES) {
    const canvas = picture.scaled(...sides(picture, scale));
    const quality = await largest(0, BEST, async (q) => (await fileOf(canvas, "image/jpeg", q / BEST)).size <= bytes);
    if (quality === null) continue;
    const made = await shown(picture, await fileOf(canvas, "image/jpeg", quality / BEST), scale, quality);
    if (best !== null && made.psnr < best.psnr) break; // smaller ones are worse still
    best = made;
  }
  return best;
}

/** The largest PNG of at most `bytes`: it loses nothing, so only pixels can be given up; null if none is so small. */
export async function pngWithin(picture, bytes) {
  const file = (width) => fileOf(picture.scaled(...sides(picture, width / picture.width)), "image/png");
  const width = await largest(1, picture.width, async (one) => (await file(one)).size <= bytes);
  return width === null ? null : shown(picture, await file(width), width / picture.width, null);
}

/** The largest whole number from `low` to `high` that `fits`, if smaller ones than one that fits do, too; or null. */
async function largest(low, high, fits) {
  if (await fits(high)) return high;
  if (!(await fits(low))) return null;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (await fits(middle)) low = middle;
    else high = middle;
  }
  return low;
}

function sides({ width, height }, scale) {
  return [width, height].map((side) => Math.max(1, Math.round(side * scale)));
}

/** The file as it looks in the picture's own number of pixels. */
async function shown(picture, blob, scale, quality) {
  const small = await Picture.of(blob);
  const large = new Picture(small.scaled(picture.width, picture.height));
  return { picture: large, bytes: blob.size, scale, quality, psnr: psnr(picture.data, large.data) };
}
