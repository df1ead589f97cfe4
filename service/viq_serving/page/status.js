/** The strip at the top: readiness, and what the service's own metrics say of the last minute. */

import { byId } from "./dom.js";
import { count, decimal, seconds } from "./numerals.js";
import { buckets, parse, quantile, sum } from "./prometheus.js";

const EVERY_MS = 2000;
const PATIENCE_MS = 5000; // with one answer
const WINDOW_MS = 60_000; // of p99
const RATE_MS = 10_000; // of images/s
const WORK = ["encode", "decode", "embed", "reconstruct"];
const UNKNOWN = "–";

/** Asks every two seconds while the page is seen. `onReady` is told when the service becomes ready. */
export class Status {
  #service;
  #onReady;
  #readings = [];
  #ready = false;
  #timer = 0;

  constructor(service, onReady) {
    this.#service = service;
    this.#onReady = onReady;
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  /** Look now, and from now on. */
  async refresh() {
    clearTimeout(this.#timer);
    const answers = await this.#look();
    // Without its key it is not asked for more, lest it count a refusal for each look.
    const measured = answers && !this.#service.wantsKey && (await this.#measure().catch(() => false));
    if (!measured) this.#figures(UNKNOWN, UNKNOWN, UNKNOWN);
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.refresh(), EVERY_MS);
  }

  /** Whether it answers. Readiness goes by `/readyz` alone: proxies often let nobody see `/metrics`. */
  async #look() {
    try {
      const { ready, told } = await this.#service.readiness(AbortSignal.timeout(PATIENCE_MS));
      this.#state(ready ? "good" : "waiting", told);
      if (ready && !this.#ready) this.#onReady();
      this.#ready = ready;
      return true;
    } catch (error) {
      this.#ready = false;
      this.#state("bad", error.code === "unreachable" ? "unreachable" : error.message);
      return false;
    }
  }

  async #measure() {
    const samples = parse(await this.#service.metrics(AbortSignal.timeout(PATIENCE_MS)));
    const now = {
      time: performance.now(),
      images: sum(samples, "viq_images_total"),
      durations: buckets(samples, "viq_request_duration_seconds", ({ method }) => WORK.includes(method)),
    };
    if (this.#readings.at(-1)?.images > now.images) this.#readings = []; // it was started anew
    this.#readings = [...this.#readings.filter(({ time }) => now.time - time <= WINDOW_MS), now];
    const [waiting, patches] = ["viq_queue_requests", "viq_queue_patches"].map((name) => sum(samples, name));
    const before = this.#readings.find(({ time }) => now.time - time <= RATE_MS);
    const rate = before !== now ? (1000 * (now.images - before.images)) / (now.time - before.time) : Number.NaN;
    const p99 = quantile(0.99, this.#readings[0].durations, now.durations);
    this.#figures(waiting ? `${count(waiting)} (${count(patches)} patches)` : "empty", decimal(rate, 1), seconds(p99));
    return true;
  }

  #state(kind, told) {
    const shown = byId("state");
    if (shown.textContent !== told) shown.textContent = told;
    shown.dataset.kind = kind;
  }

  #figures(queue, rate, p99) {
    byId("queue").textContent = queue;
    byId("rate").textContent = rate;
    byId("p99").textContent = p99;
  }
}
