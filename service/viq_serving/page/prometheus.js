/** The service's own metrics: text to samples, and a quantile of what was observed between two readings. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** All samples of a text as `{name, labels, value}`. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (found === null) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3].replace("Inf", "Infinity")) });
  }
  return samples;
}

/** The sum of all samples of `name` whose labels are `among` those given. */
export function sum(samples, name, among = () => true) {
  return samples.reduce((total, one) => (one.name === name && among(one.labels) ? total + one.value : total), 0);
}

/** Cumulative counts of a histogram by upper bound, in order, all series that are `among` together. */
export function buckets(samples, name, among = () => true) {
  const counts = new Map();
  for (const one of samples) {
    if (one.name !== `${name}_bucket` || !among(one.labels)) continue;
    const bound = Number(one.labels.le.replace("Inf", "Infinity"));
    counts.set(bound, (counts.get(bound) ?? 0) + one.value);
  }
  return [...counts].sort(([a], [b]) => a - b);
}

/**
 * The q-quantile of what came between two readings, as Prometheus reckons it: evenly spread in its bucket.
 * The last bound if it lies beyond, NaN if nothing came.
 */
export function quantile(q, before, after) {
  const earlier = new Map(before);
  const came = after.map(([bound, count]) => [bound, count - (earlier.get(bound) ?? 0)]);
  const rank = q * (came.at(-1)?.[1] ?? 0);
  if (!(rank > 0)) return Number.NaN;
  const at = came.findIndex(([, count]) => count >= rank);
  const [low, below] = at === 0 ? [0, 0] : came[at - 1];
  const [high, count] = came[at];
  return Number.isFinite(high) ? low + ((high - low) * (rank - below)) / (count - below) : low;
}
