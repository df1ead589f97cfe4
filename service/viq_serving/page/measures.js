/** How alike two pictures are, and where they differ. Plain arithmetic on RGBA pixels, fit for a worker. */

const CHANNELS = 3;
const PEAK = 255;
const WINDOW = 11; // of SSIM, and its standard deviation: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004
const DEVIATION = 1.5;
const [C1, C2] = [(0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2];
const BAND_ROWS = 64; // computed at a time
export const RINGS = 3; // places told apart: inside, 1 patch away, 2 patches away, further

const WEIGHTS = (() => {
  const bell = Array.from({ length: WINDOW }, (_, n) =>
    Math.exp(-((n - (WINDOW - 1) / 2) ** 2) / (2 * DEVIATION ** 2)),
  );
  const sum = bell.reduce((total, weight) => total + weight, 0);
  return bell.map((weight) => weight / sum);
})();

/** Peak signal-to-noise ratio in dB over all channels; Infinity if nothing differs. */
export function psnr(a, b) {
  let squares = 0;
  for (let n = 0; n < a.length; n += 4)
    for (let channel = 0; channel < CHANNELS; channel += 1) squares += (a[n + channel] - b[n + channel]) ** 2;
  return squares === 0 ? Infinity : 10 * Math.log10((PEAK ** 2 * CHANNELS * (a.length / 4)) / squares);
}

/** Mean structural similarity, at most 1; NaN if a side is shorter than the window. */
export function ssim(a, b, width, height) {
  const [across, down] = [width - WINDOW + 1, height - WINDOW + 1];
  if (across < 1 || down < 1) return Number.NaN;
  let total = 0;
  for (let top = 0; top < down; top += BAND_ROWS) {
    const rows = Math.min(BAND_ROWS, down - top) + WINDOW - 1;
    for (let channel = 0; channel < CHANNELS; channel += 1)
      total += summed(a, b, 4 * width * top + channel, width, rows);
  }
  return total / (CHANNELS * across * down);
}

function summed(a, b, start, width, rows) {
  const planes = Array.from({ length: 4 }, () => new Float64Array(width * rows));
  const [x, y, products, squares] = planes;
  for (let n = 0; n < x.length; n += 1) {
    [x[n], y[n]] = [a[start + 4 * n], b[start + 4 * n]];
    products[n] = x[n] * y[n];
    squares[n] = x[n] * x[n] + y[n] * y[n];
  }
  const [meanX, meanY, both, energy] = planes.map((plane) => windowed(plane, width, rows));
  let total = 0;
  for (let n = 0; n < meanX.length; n += 1) {
    const product = meanX[n] * meanY[n];
    const square = meanX[n] * meanX[n] + meanY[n] * meanY[n];
    const covariance = both[n] - product;
    const variances = energy[n] - square;
    total += ((2 * product + C1) * (2 * covariance + C2)) / ((square + C1) * (variances + C2));
  }
  return total;
}

/** The weighted mean under the window, wherever it fits. */
function windowed(plane, width, rows) {
  const across = width - WINDOW + 1;
  const down = rows - WINDOW + 1;
  const halfway = new Float64Array(across * rows);
  for (let y = 0; y < rows; y += 1)
    for (let x = 0; x < across; x += 1) {
      let sum = 0;
      for (let n = 0; n < WINDOW; n += 1) sum += WEIGHTS[n] * plane[y * width + x + n];
      halfway[y * across + x] = sum;
    }
  const mean = new Float64Array(across * down);
  for (let n = 0; n < mean.length; n += 1) {
    let sum = 0;
    for (let row = 0; row < WINDOW; row += 1) sum += WEIGHTS[row] * halfway[n + row * across];
    mean[n] = sum;
  }
  return mean;
}

/**
 * How pixels changed, by how many patches they are away from the edited ones (1 in `edited`, of `grid` [h, w]):
 * `rows[d]` for d patches away, the last for further, and `outside` for all but the first.
 * A pixel's change is the largest of its channels'. `map` shows it, 8 times as bright.
 */
export function change(before, after, width, height, edited, [h, w], patch) {
  const far = distances(edited, h, w);
  const rows = Array.from({ length: RINGS + 1 }, () => ({ pixels: 0, changed: 0, sum: 0, largest: 0 }));
  const map = new Uint8ClampedArray(before.length).fill(255);
  for (let y = 0, n = 0; y < height; y += 1)
    for (let x = 0; x < width; x += 1, n += 4) {
      const row = rows[far[Math.floor(y / patch) * w + Math.floor(x / patch)]];
      let most = 0;
      for (let channel = 0; channel < CHANNELS; channel += 1)
        most = Math.max(most, Math.abs(before[n + channel] - after[n + channel]));
      row.pixels += 1;
      row.changed += most > 0;
      row.sum += most;
      row.largest = Math.max(row.largest, most);
      map[n] = map[n + 1] = map[n + 2] = 8 * most;
    }
  return { rows: rows.map(told), outside: told(rows.slice(1).reduce(added)), map };
}

function added(a, b) {
  const largest = Math.max(a.largest, b.largest);
  return { pixels: a.pixels + b.pixels, changed: a.changed + b.changed, sum: a.sum + b.sum, largest };
}

function told({ pixels, changed, sum, largest }) {
  return { pixels, share: pixels ? changed / pixels : 0, mean: pixels ? sum / pixels : 0, largest };
}

/** For each patch how many steps, diagonal ones included, to the nearest edited one; at most `RINGS`. */
function distances(edited, h, w) {
  const far = Uint8Array.from(edited, (inside) => (inside ? 0 : RINGS));
  for (let ring = 1; ring < RINGS; ring += 1)
    for (let n = 0; n < far.length; n += 1) {
      if (far[n] !== ring - 1) continue;
      const [row, column] = [Math.floor(n / w), n % w];
      for (let y = Math.max(0, row - 1); y <= Math.min(h - 1, row + 1); y += 1)
        for (let x = Math.max(0, column - 1); x <= Math.min(w - 1, column + 1); x += 1)
          far[y * w + x] = Math.min(far[y * w + x], ring);
    }
  return far;
}
