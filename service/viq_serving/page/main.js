/** Puts the page together: elements to actions, and what came of them to elements. */

import { borrowed, middled, randomised, shuffled, zeroed } from "./edits.js";
import { byId, choices, element, offer } from "./dom.js";
import * as figures from "./figures.js";
import { curlLines, pythonLines, stemOf } from "./lines.js";
import { clear, tell } from "./notice.js";
import { write } from "./npz.js";
import { BASE, Service } from "./service.js";
import { Stage } from "./stage.js";
import { Status } from "./status.js";
import { costRows, told, views } from "./views.js";
import { Workbench } from "./workbench.js";

const SAMPLES = [
  ["cat.jpg", "Cat"],
  ["coffee.jpg", "Coffee"],
  ["chart.png", "Chart"],
];
const WHICH = [
  ["", "all four codes"],
  ["0", "the first code"],
  ["1", "the second code"],
  ["2", "the third code"],
  ["3", "the fourth code"],
];
const RULES = { zero: zeroed, middle: middled, shuffle: shuffled, random: randomised };

const service = new Service();
const bench = new Workbench(service, render, fail);
const status = new Status(service, loadModels);
const stage = new Stage(byId("stage"), { onPatch: point, onSelect: figures.selection, onDivide: divide });

/** What is shown: the last state that elements were made for. */
const seen = { runs: null, edit: null, codes: null };

async function loadModels() {
  try {
    bench.models = await service.models();
  } catch (error) {
    if (error.code === "unauthenticated") askForKey(error);
    else tell(error, loadModels);
    return;
  }
  byId("access").hidden = !service.hasKey;
  const known = bench.models.map(({ size, untrained }) => [size, untrained ? `${size} (untrained)` : size]);
  choices(byId("size"), known);
  choices(byId("second"), [["", "none"], ...known]);
  byId("second").closest("label").hidden = known.length < 2;
  const [{ size, dtype, device, fingerprint }] = bench.models;
  byId("model").textContent = `${size}, ${dtype} on ${device}`;
  byId("model").title = `fingerprint ${fingerprint}`;
}

function askForKey(error) {
  byId("access").hidden = false;
  byId("key").focus();
  if (service.hasKey) tell(error);
}

function fail(error, again) {
  if (error.code === "unauthenticated") byId("access").hidden = false;
  const anyway = error.code === "fingerprint_mismatch" ? [["Decode anyway", () => again(true)]] : [];
  tell(error, again && (() => again()), anyway);
}

function sizes() {
  const [first, second] = [byId("size").value, byId("second").value];
  return second && second !== first ? [first, second] : [first];
}

/** Open `{name, read, sample}`, see `Workbench.open`. */
function open(wanted) {
  clear();
  if (bench.models.length > 0) bench.open(wanted, sizes());
  else if (service.wantsKey) tell({ code: "unauthenticated", message: "Give the key first, then choose again" });
  else
    tell({ code: "not_ready", message: "The page does not know yet what this service has loaded" }, () =>
      loadModels().then(() => open(wanted)),
    );
}

function openSample(name) {
  const sample = new URL(`page/samples/${name}`, BASE).href;
  open({ name, read: (signal) => service.sample(name, signal), sample });
}

function render() {
  document.body.toggleAttribute("data-busy", bench.busy !== "");
  byId("busy").textContent = bench.busy && `${bench.busy}…`;
  if (bench.runs.length === 0) return;
  byId("work").hidden = false;
  const { source, codes, runs, edit } = bench;
  byId("name").textContent = source.name;
  byId("note").textContent = source.note;
  figures.summary({ file: source.file, kind: source.kind, codes });
  figures.costs(costRows(bench));
  figures.times([
    ...runs.flatMap(({ requests }) => requests),
    ...(edit ? [{ ...edit.request, name: "decode edited" }] : []),
  ]);
  figures.changes(edit?.change ?? null);
  for (const id of ["undo", "reset"]) byId(id).setAttribute("aria-disabled", String(!bench.canUndo));
  byId("save-title").textContent = edit ? "Save the edited" : "Save";
  if (codes !== seen.codes) {
    stage.setCodes(codes, bench.model(codes.size).levels);
    point(stage.patch, false);
  }
  renderViews();
  Object.assign(seen, { runs, edit, codes });
  const work = told(bench, service.hasKey);
  byId("curl").textContent = curlLines(work);
  byId("python").textContent = pythonLines(work);
}

function renderViews() {
  const all = views(bench);
  const options = [...all].map(([key, [label]]) => [key, label]);
  const [first, second] = bench.runs.map(({ codes }) => `viq-${codes.size}`);
  let [left, right] = [byId("left").value, byId("right").value];
  if (bench.edit && bench.edit !== seen.edit) [left, right] = [first, "edited"];
  else if (bench.runs !== seen.runs || bench.edit !== seen.edit)
    [left, right] = second ? [first, second] : [options[0][0], first];
  choices(byId("left"), options, left);
  choices(byId("right"), options, right);
  showViews();
}

function showViews() {
  const all = views(bench);
  const [left, right] = ["left", "right"].map((id) => all.get(byId(id).value)?.[1]);
  if (left && right && left.width === right.width && left.height === right.height) stage.show(left, right);
  else if (right) stage.show(right, right);
}

function point(patch, spoken) {
  const words = figures.patch(bench.codes, patch, bench.model(bench.codes.size).levels);
  if (spoken) byId("spoken").textContent = words;
}

function divide(percentage) {
  byId("divider").value = percentage;
  stage.setDivider(percentage);
}

function edit(rule) {
  if (bench.busy) return;
  const patches = selected();
  if (patches.length === 0) {
    tell({
      code: "invalid_input",
      message:
        "No patch is selected: choose Codes above the picture and drag over it, or go there by Tab and press Space",
    });
    return;
  }
  clear();
  const lender = byId("other").value;
  if (rule !== "other") bench.replace(RULES[rule], patches);
  else if (lender) bench.replace(borrowed, patches, (signal) => service.sample(lender, signal));
  else byId("other-file").click();
}

function selected() {
  return [...stage.selected].sort((a, b) => a - b);
}

function save(what) {
  const { codes, source, edit, runs } = bench;
  const stem = `${stemOf(source.name)}${edit ? "-edited" : ""}`;
  const { size, fingerprint, grid, imageSize } = codes;
  if (what === "npz") offer(write(codes), `${stem}.npz`, "application/x-npz");
  if (what === "png") offer((edit ?? runs[0]).blob, `${stem}-${size}.png`, "image/png");
  if (what !== "json") return;
  const results = [{ image_size: imageSize, grid, codes: [...codes.array] }];
  offer(JSON.stringify({ model: { size, fingerprint }, results }), `${stem}.json`, "application/json");
}

async function copy(id) {
  const text = byId(id).textContent;
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(byId(id)); // without TLS browsers only let people copy what is selected
    copied = document.execCommand("copy");
  }
  byId("copied").textContent = copied ? "Copied" : "The lines are selected: copy them with Ctrl+C";
  setTimeout(() => (byId("copied").textContent = ""), 3000);
}

function setMode(mode) {
  stage.setMode(mode);
  byId("dividing").hidden = mode !== "compare";
  byId("left-side").hidden = mode !== "compare";
  byId("right-side").textContent = mode === "compare" ? "Right" : "Picture";
  for (const id of ["colouring", "patch", "keys"]) byId(id).hidden = mode !== "codes";
}

function take(files) {
  const [file] = files;
  if (file) open({ name: file.name || "pasted.png", read: async () => file });
}

function listen() {
  const on = (id, event, act) => byId(id).addEventListener(event, act);
  on("file", "change", ({ target }) => (take(target.files), (target.value = "")));
  on("other-file", "change", ({ target }) => {
    const [file] = target.files;
    if (file && !bench.busy) bench.replace(borrowed, selected(), async () => file);
    target.value = "";
  });
  for (const id of ["size", "second"])
    on(id, "change", () => (clear(), bench.resize(sizes())));
  for (const id of ["left", "right"]) on(id, "change", showViews);
  on("divider", "input", ({ target }) => stage.setDivider(target.value));
  on("which", "change", ({ target }) => stage.setWhich(target.value === "" ? null : Number(target.value)));
  on("strength", "input", ({ target }) => stage.setStrength(target.value));
  for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => setMode(radio.value));
  for (const button of document.querySelectorAll("[data-edit]"))
    button.addEventListener("click", () => edit(button.dataset.edit));
  for (const button of document.querySelectorAll("[data-save]"))
    button.addEventListener("click", () => save(button.dataset.save));
  for (const button of document.querySelectorAll("[data-copy]"))
    button.addEventListener("click", () => copy(button.dataset.copy));
  on("undo", "click", () => bench.canUndo && !bench.busy && bench.undo());
  on("reset", "click", () => bench.canUndo && !bench.busy && bench.undo(true));
  on("access", "submit", (event) => {
    event.preventDefault();
    clear();
    service.useKey(byId("key").value.trim(), byId("keep").checked);
    loadModels().then(() => status.refresh());
  });
  addEventListener("dragover", (event) => (event.preventDefault(), document.body.toggleAttribute("data-drop", true)));
  addEventListener(
    "dragleave",
    (event) => event.relatedTarget === null && document.body.toggleAttribute("data-drop", false),
  );
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.toggleAttribute("data-drop", false);
    take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => take(event.clipboardData.files));
}

function addSamples() {
  for (const [name, label] of SAMPLES) {
    const picture = element("img", { src: `page/samples/${name}`, alt: "", width: 72, height: 56 });
    const button = element("button", { type: "button", class: "sample" }, picture, label);
    button.addEventListener("click", () => openSample(name));
    byId("samples").append(button);
  }
  choices(byId("other"), [...SAMPLES.map(([name, label]) => [name, label]), ["", "a file…"]], SAMPLES[1][0]);
  choices(byId("which"), WHICH, "0");
}

addSamples();
listen();
setMode("compare");
divide(50);
stage.setStrength(byId("strength").value);
stage.setWhich(0);
figures.selection(0);
status.refresh();
