/** Numbers as people read them. */

const whole = new Intl.NumberFormat("en");
const NONE = "–";

export function count(value) {
  return whole.format(value);
}

/** `1 patch`, `2 patches`. */
export function counted(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 10_000) return `${count(value)} B`;
  return value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
}

/** A number with so many decimals, an infinity sign, or a dash if there is none. */
export function decimal(value, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  return Number.isFinite(value) ? value.toFixed(digits) : "∞";
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(share === 1 || share === 0 ? 0 : 1)} %`;
}

/** Seconds or milliseconds. */
export function seconds(value) {
  if (Number.isNaN(value)) return NONE;
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;
}
