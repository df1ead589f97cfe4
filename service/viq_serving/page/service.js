/** The service behind this page. Every address is relative to the page, so that any path prefix will do. */

export const BASE = new URL(".", document.baseURI);
BASE.username = BASE.password = ""; // browsers ask for no address that holds them, and no line to copy should

const KEPT = "viq-key";

/** What went wrong, as the service says it or as the browser found it. */
export class ServiceError extends Error {
  constructor(code, message, { status = 0, requestId = "", waitMs = null } = {}) {
    super(message);
    Object.assign(this, { code, status, requestId, waitMs });
  }
}

/** Requests to the service, with the key if one was given. The key is kept in memory, or in this tab if so asked. */
export class Service {
  #key = storage()?.getItem(KEPT) ?? "";
  limits = {};
  wantsKey = false; // it has refused what it was asked, and was given no other key since

  get hasKey() {
    return this.#key !== "";
  }

  useKey(key, keep) {
    this.#key = key;
    this.wantsKey = false;
    storage()?.removeItem(KEPT);
    if (keep && key) storage()?.setItem(KEPT, key);
  }

  /** The loaded sizes, the default first; notes the limits. */
  async models() {
    const { models } = await (await this.#ask("v1/models")).json();
    this.limits = models[0]?.limits ?? {};
    return models;
  }

  /** Codes of an image file as `size` makes them, as JSON, and how long it took. */
  async encode(file, size, signal) {
    await this.check(file);
    return this.#timed(`v1/encode?codes=base64&size=${encodeURIComponent(size)}`, binary(file, signal));
  }

  /** The picture of codes (JSON as encode answers it), as JSON with a base64 PNG. */
  decode(reply, anyFingerprint, signal) {
    const query = anyFingerprint ? "&any_fingerprint=1" : "";
    const headers = { "Content-Type": "application/json" };
    return this.#timed(`v1/decode?format=json${query}`, {
      method: "POST",
      body: JSON.stringify(reply),
      headers,
      signal,
    });
  }

  /** An image file through codes and back with PSNR and SSIM, for files this browser cannot show. */
  reconstruct(file, size, signal) {
    return this.#timed(`v1/reconstruct?format=json&size=${encodeURIComponent(size)}`, binary(file, signal));
  }

  /** Whether it is ready; if not, in its own words why. */
  async readiness(signal) {
    try {
      await this.#ask("readyz", { signal });
      return { ready: true, told: "ready" };
    } catch (error) {
      if (error.code !== "not_ready") throw error;
      return { ready: false, told: error.message.replace(/^the service is /, "") };
    }
  }

  /** Its metrics in the Prometheus text form. */
  async metrics(signal) {
    return (await this.#ask("metrics", { signal })).text();
  }

  /** One of the pictures that come with this page, as a file. */
  async sample(name, signal) {
    const reply = await this.#ask(`page/samples/${name}`, { signal });
    return new File([await reply.blob()], name);
  }

  /** Refuses a file that cannot be read or that is larger than a body may be, before anything is sent. */
  async check(file) {
    const limit = this.limits.max_body_bytes;
    if (limit !== undefined && file.size > limit)
      throw new ServiceError("too_large", `The file has ${file.size} bytes, the limit is ${limit}.`, { status: 413 });
    await file
      .slice(0, 1)
      .arrayBuffer()
      .catch(() => {
        throw new ServiceError("invalid_input", "The file cannot be read: it is a folder, or was changed or removed");
      });
  }

  async #timed(path, request) {
    const begun = performance.now();
    const body = await (await this.#ask(path, request)).json();
    const [result] = body.results;
    return { body, result, model: body.model, timings: body.timings_ms, wholeMs: performance.now() - begun };
  }

  async #ask(path, { headers = {}, ...request } = {}) {
    const all = this.#key ? { ...headers, Authorization: `Bearer ${this.#key}` } : headers;
    let reply;
    try {
      reply = await fetch(new URL(path, BASE), { ...request, headers: all, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (error.name === "TimeoutError") throw new ServiceError("deadline_exceeded", "no answer");
      throw new ServiceError("unreachable", "The service cannot be reached. Is it still running?");
    }
    if (reply.ok) return reply;
    const error = await refusal(reply);
    if (error.code === "unauthenticated") this.wantsKey = true;
    throw error;
  }
}

/** What this tab may keep, or null where people let pages keep nothing. */
function storage() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

function binary(file, signal) {
  return { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal };
}

/** The error of a reply; also of one that something between the service and here has made. */
async function refusal(reply) {
  const known = { status: reply.status, requestId: reply.headers.get("X-Request-ID") ?? "", waitMs: waitOf(reply) };
  const body = await reply.json().catch(() => null);
  const { code, message } = body?.error ?? {};
  if (typeof message === "string") return new ServiceError(code ?? "unknown", message, known);
  return new ServiceError("unknown", `Answered with status ${reply.status}, and not by the service itself.`, known);
}

function waitOf(reply) {
  const [ms, s] = ["Retry-After-Ms", "Retry-After"].map((name) => Number.parseFloat(reply.headers.get(name)));
  return Number.isFinite(ms) ? ms : Number.isFinite(s) ? 1000 * s : null;
}
