/** The .npz file of codes that `viq encode` writes: a zip of .npy arrays, read and written here. */

import { Codes, PER_PATCH } from "./codes.js";

const WIDEST = 8; // bytes of a number
const MAX_HEAD = 4096; // bytes of an array's head
const MEMBERS = ["codes", "image_size", "size", "fingerprint"];
const MAGIC = "\x93NUMPY\x01\x00";
const KINDS = { "<u1": "Uint8", "|u1": "Uint8", "<u2": "Uint16", "<u4": "Uint32", "<i2": "Int16", "<i4": "Int32" };
const WIDE = { "<i8": "getBigInt64", "<u8": "getBigUint64" };

/** The file's bytes, stored and not packed. */
export function write(codes) {
  const [h, w] = codes.grid;
  const values = new DataView(new ArrayBuffer(codes.bytes));
  codes.array.forEach((code, n) => values.setUint16(2 * n, code, true));
  const pixels = new DataView(new ArrayBuffer(8));
  codes.imageSize.forEach((side, n) => pixels.setInt32(4 * n, side, true));
  return zip([
    ["codes.npy", npy("<u2", `(${h}, ${w}, 4)`, values.buffer)],
    ["image_size.npy", npy("<i4", "(2,)", pixels.buffer)],
    ["size.npy", text(codes.size)],
    ["fingerprint.npy", text(codes.fingerprint)],
  ]);
}

/** The codes in a file, of about `maxPatches` at most; throws an Error that says what is wrong with it. */
export async function read(buffer, maxPatches) {
  const members = await unzip(buffer, WIDEST * PER_PATCH * maxPatches + MAX_HEAD);
  const missing = MEMBERS.filter((name) => !members.has(`${name}.npy`));
  if (missing.length) throw new Error(`it has no member ${missing.join(", ")}`);
  const array = (name, text) => parseNpy(members.get(`${name}.npy`), name, text);
  const [codes, imageSize] = ["codes", "image_size"].map((name) => array(name, false));
  const [size, fingerprint] = ["size", "fingerprint"].map((name) => array(name, true));
  if (codes.shape.length !== 3 || codes.shape[2] !== 4)
    throw new Error(`its codes have the shape (${codes.shape.join(", ")}), expected (h, w, 4)`);
  if (codes.values.some((code) => code < 0 || code > 65535)) throw new Error("its codes are not from 0 to 65535");
  if (imageSize.values.length !== 2) throw new Error("its image_size is not two numbers");
  const grid = codes.shape.slice(0, 2);
  return new Codes(Uint16Array.from(codes.values), grid, [...imageSize.values], size.values, fingerprint.values);
}

function npy(descr, shape, data) {
  const about = `{'descr': '${descr}', 'fortran_order': False, 'shape': ${shape}, }`;
  const padded = about.padEnd(Math.ceil((10 + about.length + 1) / 64) * 64 - 11, " ") + "\n";
  const head = new Uint8Array(10 + padded.length);
  head.set(latin(MAGIC));
  new DataView(head.buffer).setUint16(8, padded.length, true);
  head.set(latin(padded), 10);
  return joined([head, new Uint8Array(data)]);
}

/** A numpy string of no dimension: four bytes a character, at least one character. */
function text(value) {
  const points = Array.from(value, (letter) => letter.codePointAt(0));
  const data = new DataView(new ArrayBuffer(4 * Math.max(1, points.length)));
  points.forEach((point, n) => data.setUint32(4 * n, point, true));
  return npy(`<U${data.byteLength / 4}`, "()", data.buffer);
}

function parseNpy(bytes, name, isText) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 12 || fromLatin(bytes.subarray(0, 6)) !== MAGIC.slice(0, 6))
    throw new Error(`its member ${name} is no array`);
  const start = bytes[6] === 1 ? 10 : 12;
  const data = start + (bytes[6] === 1 ? view.getUint16(8, true) : view.getUint32(8, true));
  const about = fromLatin(bytes.subarray(start, Math.min(data, bytes.length)));
  const descr = /'descr':\s*'([^']*)'/.exec(about)?.[1];
  const shape = (/'shape':\s*\(([^)]*)\)/.exec(about)?.[1] ?? "x")
    .split(",")
    .filter((part) => part.trim())
    .map(Number);
  if (!descr || shape.some((side) => !Number.isInteger(side)) || /'fortran_order':\s*True/.test(about))
    throw new Error(`its member ${name} is no plain array`);
  const count = shape.reduce((product, side) => product * side, 1);
  return { shape, values: valuesOf(view, data, count, descr, name, isText) };
}

function valuesOf(view, start, count, descr, name, isText) {
  const [, kind, width] = /^[<|]([uiU])(\d+)$/.exec(descr) ?? [];
  if (isText ? kind !== "U" : !KINDS[descr] && !WIDE[descr])
    throw new Error(`its member ${name} holds ${descr}, expected ${isText ? "a text" : "whole numbers"}`);
  const bytes = isText ? 4 * width * count : width * count;
  if (start + bytes !== view.byteLength) throw new Error(`its member ${name} is ${descr} of another length`);
  if (isText) {
    const points = Array.from({ length: bytes / 4 }, (_, n) => view.getUint32(start + 4 * n, true));
    return String.fromCodePoint(...points.slice(0, 1024)).replace(/\0+$/, "");
  }
  const step = Number(width);
  if (WIDE[descr]) return Array.from({ length: count }, (_, n) => Number(view[WIDE[descr]](start + step * n, true)));
  return Array.from({ length: count }, (_, n) => view[`get${KINDS[descr]}`](start + step * n, true));
}

function zip(members) {
  const files = [];
  const directory = [];
  let offset = 0;
  for (const [name, data] of members) {
    const about = new DataView(new ArrayBuffer(26)); // what local and central header share
    about.setUint16(0, 20, true);
    about.setUint16(8, (1 << 5) | 1, true); // 1 January 1980: equal codes give equal bytes
    about.setUint32(10, crc32(data), true);
    about.setUint32(14, data.length, true);
    about.setUint32(18, data.length, true);
    about.setUint16(22, name.length, true);
    const shared = new Uint8Array(about.buffer);
    const end = new DataView(new ArrayBuffer(14));
    end.setUint32(6, 0o644 << 16, true);
    end.setUint32(10, offset, true);
    files.push(latin("PK\x03\x04"), shared, latin(name), data);
    directory.push(latin("PK\x01\x02\x14\x03"), shared, new Uint8Array(end.buffer), latin(name));
    offset += 4 + 26 + name.length + data.length;
  }
  const listed = joined(directory);
  const last = new DataView(new ArrayBuffer(18));
  last.setUint16(4, members.length, true);
  last.setUint16(6, members.length, true);
  last.setUint32(8, listed.length, true);
  last.setUint32(12, offset, true);
  return joined([...files, listed, latin("PK\x05\x06"), new Uint8Array(last.buffer)]);
}

async function unzip(buffer, maxBytes) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const members = new Map();
  try {
    let end = bytes.length - 22;
    while (end > bytes.length - 22 - 65535 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
    let entry = view.getUint32(end + 16, true);
    const count = view.getUint16(end + 10, true);
    if (count > 64) throw new Error(`it has ${count} members, expected 4`);
    for (let n = 0; n < count; n += 1) {
      const [named, extra, comment] = [28, 30, 32].map((at) => view.getUint16(entry + at, true));
      const [packed, unpacked] = [20, 24].map((at) => view.getUint32(entry + at, true));
      const name = fromLatin(bytes.subarray(entry + 46, entry + 46 + named));
      if (MEMBERS.includes(name.replace(/\.npy$/, ""))) {
        const local = view.getUint32(entry + 42, true);
        const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
        const kept = bytes.slice(start, start + packed);
        const data = unpacked > maxBytes ? null : await unpack(kept, view.getUint16(entry + 10, true), maxBytes);
        if (data === null) throw new Error(`it unpacks to more than ${maxBytes} bytes, too many for this service`);
        if (crc32(data) !== view.getUint32(entry + 16, true)) throw new Error(`its member ${name} is damaged`);
        members.set(name, data);
      }
      entry += 46 + named + extra + comment;
    }
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError) throw new Error("it is no whole zip archive");
    throw error;
  }
  return members;
}

/** The bytes of a member, or null if they are more than `maxBytes`. */
async function unpack(data, method, maxBytes) {
  if (method === 0) return data.length > maxBytes ? null : data;
  if (method !== 8) throw new Error(`a member is packed by method ${method}, expected 0 or 8`);
  const parts = [];
  let length = 0;
  const unpacked = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  for (const reader = unpacked.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return joined(parts);
    parts.push(value);
    length += value.length;
    if (length > maxBytes) {
      await reader.cancel();
      return null;
    }
  }
}

function crc32(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

function latin(letters) {
  return Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
}

function fromLatin(bytes) {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}
