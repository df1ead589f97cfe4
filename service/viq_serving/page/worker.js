/** Measures pictures beside the page, which stays responsive meanwhile. */

import { change, psnr, ssim } from "./measures.js";

const KINDS = {
  psnr: ({ a, b }) => psnr(a, b),
  ssim: ({ a, b, width, height }) => ssim(a, b, width, height),
  change: ({ a, b, width, height, edited, grid, patch }) => change(a, b, width, height, edited, grid, patch),
};

addEventListener("message", ({ data: { id, kind, about } }) => {
  try {
    postMessage({ id, result: KINDS[kind](about) });
  } catch (error) {
    postMessage({ id, error: String(error) });
  }
});
