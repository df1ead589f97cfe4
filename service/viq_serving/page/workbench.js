/** The picture or codes at hand and all that was made of them. Every action ends in `changed()`. */

import { bytesOf, Codes } from "./codes.js";
import { changed as measureChange, likeness } from "./measuring.js";
import { read } from "./npz.js";
import { fileOf, Picture } from "./picture.js";
import { jpegWithin, pngWithin } from "./rivals.js";
import { ServiceError } from "./service.js";

const CODES_FILE = /\.(npz|json)$/i;

/** `runs` holds for each size `{codes, picture, blob, requests, psnr, ssim}`; edits are of the first. */
export class Workbench {
  #service;
  #changed;
  #failed;
  #abort = new AbortController();
  models = [];
  source = null; // {name, read, file, kind: "picture" | "npz" | "json", sample, anyFingerprint, note}
  original = null; // as this browser shows it; null if it cannot, or if there are codes only
  runs = [];
  rivals = {};
  edit = null; // {codes, picture, blob, request, change}
  #past = [];
  #coming = null; // what will be the source if it is no worse than it looks
  busy = "";

  constructor(service, changed, failed) {
    this.#service = service;
    this.#changed = changed;
    this.#failed = failed;
  }

  /** What is known of a size. */
  model(size) {
    return this.models.find((one) => one.size === size);
  }

  /** The codes to look at and to save. */
  get codes() {
    return this.edit?.codes ?? this.runs[0]?.codes ?? null;
  }

  /** Take the file `name` that `read(signal)` gives, a picture or codes, in place of what there was. */
  async open({ name, read, sample = null, anyFingerprint = false }, sizes) {
    const again = (any = anyFingerprint) => this.open({ name, read, sample, anyFingerprint: any }, sizes);
    const kind = CODES_FILE.exec(name)?.[1].toLowerCase() ?? "picture";
    const coming = (this.#coming = { name, read, kind, sample, anyFingerprint });
    await this.#work(kind === "picture" ? "Encoding and decoding" : "Decoding", again, async (signal) => {
      const file = await read(signal);
      const made =
        kind === "picture"
          ? await this.#tokenise(file, sizes, signal)
          : await this.#decodeFile(file, kind, anyFingerprint, signal);
      signal.throwIfAborted();
      Object.assign(this, { rivals: {}, edit: null, ...made });
      this.source = { ...coming, file, read: async () => file, note: made.note ?? "" };
      this.#past = [];
      this.#compare();
    });
    if (this.#coming === coming) this.#coming = null;
  }

  /** The picture on its way, or else the one at hand, by other sizes; codes have theirs. */
  resize(sizes) {
    const wanted = this.#coming ?? this.source;
    if (wanted?.kind === "picture") this.open(wanted, sizes);
  }

  /** Replace the codes of `patches` by what `rule` makes of them, and decode; `read` gives a picture to borrow from. */
  replace(rule, patches, read = null) {
    const again = () => this.replace(rule, patches, read);
    return this.#work("Decoding the edited codes", again, async (signal) => {
      const { levels, codebook_size: codebookSize } = this.model(this.codes.size);
      const other = read && (await this.#encode(await read(signal), this.codes.size, signal)).codes;
      const before = this.codes;
      await this.#take(rule(before, patches, { levels, codebookSize, other }), signal);
      this.#past.push(before);
    });
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  /** Back to the codes before the last edit, or before all of them. */
  undo(all = false) {
    return this.#work(
      "Decoding",
      () => this.undo(all),
      async (signal) => {
        const past = all ? [] : this.#past.slice(0, -1);
        const codes = all ? this.runs[0].codes : this.#past.at(-1);
        if (codes === this.runs[0].codes) this.edit = null;
        else await this.#take(codes, signal);
        this.#past = past;
      },
    );
  }

  /** One action at a time; a new file takes the place of one that is on its way. */
  async #work(busy, again, act) {
    this.#abort.abort();
    const { signal } = (this.#abort = new AbortController());
    this.busy = busy;
    this.#changed();
    try {
      await act(signal);
    } catch (error) {
      if (!signal.aborted) this.#failed(error, again);
    }
    if (signal.aborted) return;
    this.busy = "";
    this.#changed();
  }

  async #tokenise(file, sizes, signal) {
    const runs = [];
    for (const size of sizes) {
      const encoded = await this.#encode(file, size, signal);
      const decoded = await this.#decode(encoded.codes, false, signal);
      runs.push({ ...decoded, codes: encoded.codes, requests: [encoded.request, decoded.request] });
    }
    const original = await Picture.of(file).catch(() => null);
    const [{ picture }] = runs;
    if (original?.width === picture.width && original.height === picture.height) return { runs, original };
    for (const run of runs) {
      const { result } = await this.#service.reconstruct(file, run.codes.size, signal);
      Object.assign(run, { psnr: result.psnr ?? Infinity, ssim: result.ssim });
    }
    const why = original ? "turns this picture otherwise" : "cannot show files of this type";
    return { runs, original: null, note: `This browser ${why}. PSNR and SSIM are the service's.` };
  }

  async #encode(file, size, signal) {
    const reply = await this.#service.encode(file, size, signal);
    const request = { name: `encode ${size}`, timings: reply.timings, wholeMs: reply.wholeMs };
    return { codes: Codes.fromJson(reply.result, reply.model), request };
  }

  async #decode(codes, anyFingerprint, signal) {
    const reply = await this.#service.decode(codes.toReply(), anyFingerprint, signal);
    const blob = new Blob([bytesOf(reply.result.image_b64)], { type: "image/png" });
    const request = { name: `decode ${codes.size}`, timings: reply.timings, wholeMs: reply.wholeMs };
    return { picture: await Picture.of(blob), blob, request };
  }

  async #decodeFile(file, kind, anyFingerprint, signal) {
    await this.#service.check(file);
    const most = this.#service.limits.max_patches;
    const { codes, note } = await codesIn(file, kind, most);
    if (codes.patches > most)
      throw new ServiceError("too_large", `The codes are of ${codes.patches} patches, the limit is ${most}.`);
    const decoded = await this.#decode(codes, anyFingerprint, signal);
    return { runs: [{ ...decoded, codes, requests: [decoded.request], psnr: null, ssim: null }], original: null, note };
  }

  async #take(codes, signal) {
    const [first] = this.runs;
    const decoded = await this.#decode(codes, this.source.anyFingerprint, signal);
    const change = await measureChange(first.picture, decoded.picture, codes.differs(first.codes), codes.grid);
    signal.throwIfAborted();
    this.edit = { ...decoded, codes, change };
  }

  /** Figures that take a while come one by one, for as long as this picture is at hand. */
  async #compare() {
    const { original, runs, rivals } = this;
    if (original === null) return;
    const later = async (work, otherwise, into) => {
      const made = await work().catch((error) => (this.runs === runs && this.#failed(error, null), otherwise));
      Object.assign(into, made);
      if (this.runs === runs) this.#changed();
      return this.runs === runs;
    };
    const { bytes } = runs[0].codes;
    const steps = [
      ...runs.map((run) => [() => likeness(original, run.picture), { psnr: null, ssim: null }, run]),
      [async () => ({ whole: (await fileOf(original.canvas, "image/png")).size }), { whole: null }, rivals],
      [async () => ({ jpeg: await measured(original, await jpegWithin(original, bytes)) }), { jpeg: null }, rivals],
      [async () => ({ png: await measured(original, await pngWithin(original, bytes)) }), { png: null }, rivals],
    ];
    for (const step of steps) if (!(await later(...step))) return;
  }
}

async function measured(original, rival) {
  return rival && { ...rival, ...(await likeness(original, rival.picture)) };
}

async function codesIn(file, kind, maxPatches) {
  try {
    if (kind === "npz") return { codes: await read(await file.arrayBuffer(), maxPatches), note: "" };
    const body = JSON.parse(await file.text());
    if (typeof body !== "object" || body === null) throw new Error("it is no object");
    const items = body.results ?? [body];
    if (typeof items[0] !== "object" || items[0] === null) throw new Error("it has no result");
    const note = items.length > 1 ? `The file holds ${items.length} results, this is the first.` : "";
    return { codes: Codes.fromJson(items[0], body.model), note };
  } catch (error) {
    throw new ServiceError("invalid_input", `The file holds no codes: ${error.message}`);
  }
}
