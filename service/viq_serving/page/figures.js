/** The tables: what a picture costs and what survives, where time went, what an edit changed, what a patch holds. */

import { colourOf, levelsOf } from "./codes.js";
import { byId, element, row } from "./dom.js";
import { bytes, count, counted, decimal, percent } from "./numerals.js";

const STAGES = ["preprocess", "queue", "transfer", "compute", "postprocess"];
const PLACES = ["Edited patches", "1 patch away", "2 patches away", "Further away"];

/** Patches, codes and bytes of the picture at hand. */
export function summary({ file, codes, kind }) {
  const [height, width] = codes.imageSize;
  const [h, w] = codes.grid;
  const facts = [
    ["Picture", `${width} × ${height} pixels`],
    ["Patches", `${w} × ${h} = ${count(codes.patches)}`],
    ["Codes", `${count(codes.array.length)}, ${bytes(codes.bytes)}`],
  ];
  if (kind === "picture") facts.push(["Against the file", against(file.size, codes.bytes)]);
  byId("facts").replaceChildren(
    ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function against(original, coded) {
  const ratio = original / coded;
  return ratio >= 1 ? `${ratio.toFixed(1)} × smaller` : `${(1 / ratio).toFixed(1)} × larger`;
}

/** One row for each way to keep the picture: `{name, bytes, psnr, ssim, note}`; what is not known yet is undefined. */
export function costs(rows) {
  const cell = (value, digits, unit) =>
    value === undefined ? "…" : `${decimal(value, digits)}${value === null ? "" : unit}`;
  byId("costs").replaceChildren(
    ...rows.map((one) => {
      const head = one.note ? element("span", {}, one.name, element("small", {}, one.note)) : one.name;
      return row(
        head,
        one.bytes === undefined ? "…" : bytes(one.bytes),
        cell(one.psnr, 2, " dB"),
        cell(one.ssim, 3, ""),
      );
    }),
  );
}

/** Milliseconds of each stage; a request each: `{name, timings, wholeMs}`. */
export function times(requests) {
  byId("timed").replaceChildren(
    element("th", { scope: "col" }, "ms"),
    ...requests.map(({ name }) => element("th", { scope: "col" }, name)),
  );
  const most = Math.max(...requests.flatMap(({ timings }) => STAGES.map((stage) => timings[stage])), 1);
  byId("times").replaceChildren(
    ...STAGES.map((stage) => row(stage, ...requests.map(({ timings }) => barred(timings[stage], most)))),
    row("whole request", ...requests.map(({ wholeMs }) => decimal(wholeMs, 1))),
  );
}

function barred(ms, most) {
  const bar = element("i", { class: "bar", "aria-hidden": "true" });
  bar.style.width = `${(100 * ms) / most}%`;
  return element("span", { class: "barred" }, decimal(ms, 1), bar);
}

/** What an edit changed, by distance from the edited patches; null hides it. */
export function changes(measured) {
  byId("changes").hidden = measured === null;
  if (measured === null) return;
  const { rows, outside } = measured;
  const cells = ({ pixels, share, mean, largest }) =>
    pixels ? [percent(share), decimal(mean, mean < 1 ? 3 : 1), decimal(largest, 0)] : ["–", "–", "–"];
  byId("changed").replaceChildren(
    ...rows.map((one, place) => row(PLACES[place], ...cells(one))),
    row("All outside", ...cells(outside)),
  );
}

/** A patch's four codes and their levels, as a table and in words. */
export function patch(codes, number, levels) {
  const [h, w] = codes.grid;
  const place = `Patch: row ${Math.floor(number / w) + 1} of ${h}, column ${(number % w) + 1} of ${w}`;
  byId("place").textContent = place;
  byId("dimensions").replaceChildren(
    element("th", { scope: "col" }, "Code"),
    element("th", { scope: "colgroup", colspan: levels.length }, `Levels, of ${levels.join(" · ")}`),
  );
  const four = [...codes.of(number)];
  byId("four").replaceChildren(
    ...four.map((code) =>
      row(swatched(code, levels), ...levelsOf(code, levels).map((index, n) => stepped(index, levels[n]))),
    ),
  );
  return `${place}. Codes ${four.map((code) => `${code}, levels ${levelsOf(code, levels).join(" ")}`).join("; ")}.`;
}

function swatched(code, levels) {
  const swatch = element("i", { class: "swatch", "aria-hidden": "true" });
  swatch.style.backgroundColor = `rgb(${colourOf(code, levels).join(" ")})`;
  return element("span", { class: "swatched" }, swatch, String(code));
}

function stepped(index, levels) {
  const bar = element("i", { class: "bar", "aria-hidden": "true" });
  bar.style.width = `${(100 * index) / (levels - 1)}%`;
  return element("span", { class: "barred" }, String(index), bar);
}

/** How many patches are selected, as the edit box says it. */
export function selection(number) {
  byId("selected").textContent = number
    ? `${counted(number, "patch", "patches")} selected`
    : "No patch selected: choose Codes above the picture, then drag over it";
}
