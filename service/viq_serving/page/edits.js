/** Other codes for some patches of an image. Each takes codes and the patches, and gives new codes. */

import { middleCode, PER_PATCH } from "./codes.js";

/** Code number 0 everywhere. */
export function zeroed(codes, patches) {
  return replaced(codes, patches, () => 0);
}

/** The code whose levels are all the middle ones. */
export function middled(codes, patches, { levels }) {
  const middle = middleCode(levels);
  return replaced(codes, patches, () => middle);
}

/** Any codes. */
export function randomised(codes, patches, { codebookSize }) {
  return replaced(codes, patches, () => Math.floor(Math.random() * codebookSize));
}

/** The patches' own codes, each patch's four together, in another order. */
export function shuffled(codes, patches) {
  const order = [...patches];
  for (let n = order.length - 1; n > 0; n -= 1) {
    const other = Math.floor(Math.random() * (n + 1));
    [order[n], order[other]] = [order[other], order[n]];
  }
  const from = new Map(patches.map((patch, n) => [patch, order[n]]));
  return replaced(codes, patches, (patch, s) => codes.of(from.get(patch))[s]);
}

/** The codes of another picture at the same places; a smaller picture is repeated. */
export function borrowed(codes, patches, { other }) {
  const [, w] = codes.grid;
  const [otherH, otherW] = other.grid;
  const place = (patch) => (Math.floor(patch / w) % otherH) * otherW + ((patch % w) % otherW);
  return replaced(codes, patches, (patch, s) => other.of(place(patch))[s]);
}

function replaced(codes, patches, code) {
  const array = Uint16Array.from(codes.array);
  for (const patch of patches) for (let s = 0; s < PER_PATCH; s += 1) array[PER_PATCH * patch + s] = code(patch, s);
  return codes.with(array);
}
