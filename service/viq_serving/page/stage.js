/** The picture: two of them with a divider, the codes drawn over it, and patches to point at and select. */

import { colourOf, PATCH } from "./codes.js";

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** `onPatch(patch, spoken)` is told of the patch pointed at, `onSelect(count)` how many are selected. */
export class Stage {
  #root;
  #left;
  #right;
  #overlay;
  #colours = null;
  #levels = [];
  #which = null;
  #codes = null;
  #mode = "compare";
  #strength = 0.5;
  #cursor = 0;
  #hover = null;
  #anchor = null;
  #before = new Set();
  #tapped = false;
  selected = new Set();

  constructor(root, { onPatch, onSelect, onDivide }) {
    this.#root = root;
    [this.#right, this.#left, this.#overlay] = root.querySelectorAll("canvas");
    Object.assign(this, { onPatch, onSelect, onDivide });
    root.addEventListener("pointerdown", (event) => this.#press(event));
    root.addEventListener("pointermove", (event) => this.#move(event));
    root.addEventListener("pointerup", () => this.#release());
    root.addEventListener("pointercancel", () => this.#release());
    root.addEventListener("pointerleave", () => this.#point(null));
    root.addEventListener("keydown", (event) => this.#key(event));
    root.addEventListener("focus", () => this.#point(this.#cursor, true));
    root.addEventListener("blur", () => this.#point(null));
    new ResizeObserver(() => this.#draw()).observe(root);
  }

  /** The patch last pointed at. */
  get patch() {
    return this.#hover ?? this.#cursor;
  }

  /** Show two pictures of one size, the left one left of the divider. */
  show(left, right) {
    const { width, height } = right;
    for (const [canvas, picture] of [
      [this.#left, left],
      [this.#right, right],
    ]) {
      Object.assign(canvas, { width, height });
      canvas.getContext("2d").drawImage(picture.canvas, 0, 0, width, height);
    }
    this.#root.style.setProperty("--aspect", `${width} / ${height}`);
    this.#root.style.setProperty("--widest", `calc(var(--tallest) * ${width / height})`);
    this.#root.classList.toggle("small", Math.max(width, height) <= 160);
    this.#draw();
  }

  /** Draw these codes, of a codebook of `levels`. What is selected stays so while the grid is the same. */
  setCodes(codes, levels) {
    const same = this.#codes?.grid.join() === codes.grid.join();
    this.#codes = codes;
    this.#levels = levels;
    this.#colours = coloured(codes, levels, this.#which);
    if (!same) {
      [this.#cursor, this.#hover, this.#anchor, this.#tapped] = [0, null, null, false]; // they are of another grid
      this.#choose(new Set());
    }
    this.#draw();
  }

  /** "compare": drag the divider; "codes": see codes and select patches. */
  setMode(mode) {
    this.#mode = mode;
    this.#root.dataset.mode = mode;
    this.#root.tabIndex = mode === "codes" ? 0 : -1;
    this.#draw();
  }

  setDivider(percent) {
    this.#root.style.setProperty("--at", `${percent}%`);
  }

  /** Colour each patch by one of its four codes, or by all of them side by side if `which` is null. */
  setWhich(which) {
    this.#which = which;
    if (this.#codes !== null) this.#colours = coloured(this.#codes, this.#levels, which);
    this.#draw();
  }

  setStrength(percent) {
    this.#strength = percent / 100;
    this.#draw();
  }

  #press(event) {
    if (event.button !== 0 || this.#codes === null) return;
    this.#root.setPointerCapture(event.pointerId);
    if (this.#mode === "compare") {
      this.#anchor = "divider";
      this.#divide(event);
      return;
    }
    const patch = this.#at(event);
    const adds = event.shiftKey || event.ctrlKey || event.metaKey || event.pointerType === "touch";
    this.#before = adds ? new Set(this.selected) : new Set();
    this.#tapped = this.selected.has(patch) && (adds || this.selected.size === 1);
    this.#anchor = this.#cursor = patch;
    this.#choose(new Set([...this.#before, patch]));
  }

  #move(event) {
    if (this.#codes === null) return;
    if (this.#anchor === "divider") {
      this.#divide(event);
      return;
    }
    const patch = this.#at(event);
    if (this.#anchor !== null && patch !== this.#cursor) {
      this.#tapped = false;
      this.#cursor = patch;
      this.#choose(new Set([...this.#before, ...this.#rectangle(this.#anchor, patch)]));
    }
    this.#point(patch);
  }

  #release() {
    if (this.#tapped) this.#choose(new Set([...this.selected].filter((patch) => patch !== this.#cursor)));
    this.#tapped = false;
    this.#anchor = null;
  }

  #divide(event) {
    const box = this.#root.getBoundingClientRect();
    this.onDivide(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
  }

  #key(event) {
    if (this.#codes === null || event.altKey) return;
    const [h, w] = this.#codes.grid;
    const [row, column] = [Math.floor(this.#cursor / w), this.#cursor % w];
    const whole = event.ctrlKey || event.metaKey;
    if (event.key in STEPS && !whole) {
      const [down, right] = STEPS[event.key];
      this.#go(clamped(row + down, h) * w + clamped(column + right, w), event.shiftKey);
    } else if (event.key === "Home" || event.key === "End")
      this.#go(row * w + (event.key === "Home" ? 0 : w - 1), event.shiftKey);
    else if (event.key === " " || event.key === "Enter") this.#toggle();
    else if (event.key === "a" && whole) this.#choose(new Set(Array.from({ length: h * w }, (_, n) => n)));
    else if (event.key === "Escape") this.#choose(new Set());
    else return;
    event.preventDefault();
  }

  /** Move the cursor; while shift is held, select all between where it was pressed and here. */
  #go(patch, extends_) {
    if (extends_ && this.#anchor === null) {
      this.#anchor = this.#cursor;
      this.#before = new Set(this.selected);
    }
    if (!extends_) this.#anchor = null;
    this.#cursor = patch;
    if (extends_) this.#choose(new Set([...this.#before, ...this.#rectangle(this.#anchor, patch)]));
    this.#point(patch, true);
  }

  #toggle() {
    const selected = new Set(this.selected);
    if (!selected.delete(this.#cursor)) selected.add(this.#cursor);
    this.#anchor = null;
    this.#choose(selected);
  }

  #choose(selected) {
    this.selected = selected;
    this.onSelect(selected.size);
    this.#draw();
  }

  #point(patch, spoken = false) {
    if (this.#codes === null) return;
    const held = patch === null && document.activeElement === this.#root ? this.#cursor : patch;
    if (held === this.#hover && !spoken) return;
    this.#hover = held;
    if (held !== null) this.onPatch(held, spoken);
    this.#draw();
  }

  #at(event) {
    const box = this.#root.getBoundingClientRect();
    const [h, w] = this.#codes.grid;
    const [height, width] = this.#codes.imageSize;
    const row = Math.floor((((event.clientY - box.top) / box.height) * height) / PATCH);
    const column = Math.floor((((event.clientX - box.left) / box.width) * width) / PATCH);
    return clamped(row, h) * w + clamped(column, w);
  }

  #rectangle(one, other) {
    const [, w] = this.#codes.grid;
    const [top, bottom] = [Math.floor(one / w), Math.floor(other / w)].sort((a, b) => a - b);
    const [left, right] = [one % w, other % w].sort((a, b) => a - b);
    const across = right - left + 1;
    return Array.from(
      { length: across * (bottom - top + 1) },
      (_, n) => (top + Math.floor(n / across)) * w + left + (n % across),
    );
  }

  #draw() {
    const box = this.#root.getBoundingClientRect();
    if (this.#codes === null || box.width === 0) return;
    const sharpness = Math.max(1, window.devicePixelRatio);
    Object.assign(this.#overlay, {
      width: Math.round(box.width * sharpness),
      height: Math.round(box.height * sharpness),
    });
    const pen = this.#overlay.getContext("2d");
    const [height, width] = this.#codes.imageSize;
    const [x, y] = [this.#overlay.width / width, this.#overlay.height / height];
    if (this.#mode === "codes") {
      pen.imageSmoothingEnabled = false;
      pen.globalAlpha = this.#strength;
      pen.drawImage(this.#colours, 0, 0, this.#codes.grid[1] * PATCH * x, this.#codes.grid[0] * PATCH * y);
      pen.globalAlpha = 1;
      this.#outline(pen, x, y, sharpness);
    }
    if (this.#hover !== null) this.#frame(pen, x, y, sharpness);
  }

  /** A line around the selected patches, white on black to be seen on any picture. */
  #outline(pen, x, y, sharpness) {
    const [, w] = this.#codes.grid;
    pen.beginPath();
    for (const patch of this.selected) {
      const [row, column] = [Math.floor(patch / w), patch % w];
      const [left, top, right, bottom] = [
        column * PATCH * x,
        row * PATCH * y,
        (column + 1) * PATCH * x,
        (row + 1) * PATCH * y,
      ];
      const line = (...points) => (pen.moveTo(points[0], points[1]), pen.lineTo(points[2], points[3]));
      if (!this.selected.has(patch - w)) line(left, top, right, top);
      if (!this.selected.has(patch + w)) line(left, bottom, right, bottom);
      if (column === 0 || !this.selected.has(patch - 1)) line(left, top, left, bottom);
      if (column === w - 1 || !this.selected.has(patch + 1)) line(right, top, right, bottom);
    }
    stroke(pen, sharpness, 4, 2);
  }

  #frame(pen, x, y, sharpness) {
    const [, w] = this.#codes.grid;
    pen.beginPath();
    pen.rect((this.#hover % w) * PATCH * x, Math.floor(this.#hover / w) * PATCH * y, PATCH * x, PATCH * y);
    stroke(pen, sharpness, 3, 1);
  }
}

function stroke(pen, sharpness, wide, narrow) {
  for (const [colour, width] of [
    ["#000", wide],
    ["#fff", narrow],
  ]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * sharpness;
    pen.stroke();
  }
}

/** The codes as a small picture: a patch is 2×2 pixels, a code each in their order, or all of them `which`. */
function coloured(codes, levels, which) {
  const [h, w] = codes.grid;
  const canvas = Object.assign(document.createElement("canvas"), { width: 2 * w, height: 2 * h });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(2 * w, 2 * h);
  for (let patch = 0; patch < codes.patches; patch += 1)
    codes.of(patch).forEach((_, s, four) => {
      const [y, x] = [2 * Math.floor(patch / w) + (s >> 1), 2 * (patch % w) + (s & 1)];
      image.data.set([...colourOf(four[which ?? s], levels), 255], 4 * (y * 2 * w + x));
    });
  pen.putImageData(image, 0, 0);
  return canvas;
}

function clamped(value, limit) {
  return Math.min(limit - 1, Math.max(0, value));
}
