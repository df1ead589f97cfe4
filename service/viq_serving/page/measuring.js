/** Asks the worker to measure pictures. */

import { PATCH } from "./codes.js";
import { Picture } from "./picture.js";

const waiting = new Map();
let worker = null;
let next = 0;

/** PSNR and SSIM of two pictures; null where there is none, as their sizes differ or are too small. */
export async function likeness(a, b) {
  if (a === null || a.width !== b.width || a.height !== b.height) return { psnr: null, ssim: null };
  const about = { a: a.data, b: b.data, width: a.width, height: a.height };
  const [psnr, ssim] = await Promise.all([ask("psnr", about), ask("ssim", about)]);
  return { psnr, ssim: Number.isNaN(ssim) ? null : ssim };
}

/** What editing `edited` patches changed, by distance from them, and a picture of it. */
export async function changed(before, after, edited, grid) {
  const { width, height } = before;
  const about = { a: before.data, b: after.data, width, height, edited, grid, patch: PATCH };
  const { rows, outside, map } = await ask("change", about);
  return { rows, outside, map: Picture.ofPixels(map, width, height) };
}

function ask(kind, about) {
  if (worker === null) {
    worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data: { id, result, error } }) => {
      const { resolve, reject } = waiting.get(id);
      waiting.delete(id);
      if (error) reject(new Error(error));
      else resolve(result);
    });
  }
  next += 1;
  worker.postMessage({ id: next, kind, about });
  return new Promise((resolve, reject) => waiting.set(next, { resolve, reject }));
}
