/** What the workbench holds, as tables, choices and lines want it. */

import { stemOf } from "./lines.js";
import { bytes, percent } from "./numerals.js";
import { BASE } from "./service.js";

/** The rows of the table of costs, for `figures.costs`. */
export function costRows(bench) {
  const { source, runs, rivals, original } = bench;
  const rows = [];
  if (source.kind === "picture") rows.push({ name: "Original file", bytes: source.file.size, psnr: null, ssim: null });
  for (const { codes, psnr, ssim } of runs) rows.push({ name: `ViQ ${codes.size}`, bytes: codes.bytes, psnr, ssim });
  if (original === null) return rows;
  rows.push(rival("JPEG at equal bytes", rivals.jpeg), rival("PNG at equal bytes", rivals.png));
  rows.push({ name: "PNG, all pixels", bytes: rivals.whole, psnr: rivals.whole && Infinity, ssim: rivals.whole && 1 });
  return rows;
}

function rival(name, made) {
  if (made === undefined) return { name };
  if (made === null) return { name, bytes: null, psnr: null, ssim: null, note: "none is so small" };
  const { bytes: size, psnr, ssim, scale, quality } = made;
  const notes = [quality === null ? "" : `quality ${quality}`, scale === 1 ? "" : `${percent(scale)} of the width`];
  return { name, bytes: size, psnr, ssim, note: notes.filter(Boolean).join(", ") };
}

/** The pictures to choose from, by key. */
export function views(bench) {
  const { original, runs, edit, rivals } = bench;
  const all = new Map();
  if (original) all.set("original", ["Original", original]);
  for (const { codes, picture } of runs) all.set(`viq-${codes.size}`, [`ViQ ${codes.size}`, picture]);
  if (edit) all.set("edited", ["Edited codes", edit.picture]);
  if (edit) all.set("change", ["Change, 8 × as bright", edit.change.map]);
  if (rivals.jpeg) all.set("jpeg", [`JPEG, ${bytes(rivals.jpeg.bytes)}`, rivals.jpeg.picture]);
  if (rivals.png) all.set("png", [`PNG, ${bytes(rivals.png.bytes)}`, rivals.png.picture]);
  return all;
}

/** The work done so far as `lines.js` wants it. */
export function told(bench, keyed) {
  const { source, runs, edit } = bench;
  return {
    base: BASE.href.replace(/\/$/, ""),
    file: source.name,
    kind: source.kind,
    sample: source.sample,
    sizes: runs.map(({ codes }) => codes.size),
    stem: stemOf(source.name),
    edited: edit !== null,
    anyFingerprint: source.anyFingerprint,
    keyed,
  };
}
