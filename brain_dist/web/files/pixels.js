// From a decoded picture to the pixels that the network sees: preprocess.json carried out in the browser.
//
// The steps are those of brain_dist/stream/pixels.py: reduction by block means, one sampling with linear interpolation,
// stretch. The head's box is that of brain_dist/collection/measures.py. The decoder is the browser's own: libjpeg's scaled
// decoding averages values before they are rounded to 8 bits, here they are averaged after it, so that where a JPEG is
// reduced, a sixth of the pixels differ by one gray level. `python -m benchmarks.parity` measures it.

/** A picture of one gray channel or of red, green and blue, one after the other. */
export class Picture {
  /**
   * @param {number} width pixels
   * @param {number} height pixels
   * @param {Uint8Array[]} planes one or three of width × height values
   */
  constructor(width, height, planes) {
    this.width = width;
    this.height = height;
    this.planes = planes;
  }
}

/** Gray and colours of opaque RGBA values. @returns {{gray: Picture, rgb: Picture}} */
export function pictures({ rgba, width, height }) {
  const planes = [0, 1, 2].map(() => new Uint8Array(width * height));
  const gray = new Uint8Array(width * height);
  for (let i = 0; i < gray.length; i++) {
    for (let channel = 0; channel < 3; channel++) planes[channel][i] = rgba[4 * i + channel];
    // ITU-R 601-2 luma in 16-bit integers, as Pillow computes it
    gray[i] = (planes[0][i] * 19595 + planes[1][i] * 38470 + planes[2][i] * 7471 + 0x8000) >> 16;
  }
  return { gray: new Picture(width, height, [gray]), rgb: new Picture(width, height, planes) };
}

/** A picture without colours. @returns {{gray: Picture, rgb: null}} */
export const grayPicture = (width, height, values) => ({ gray: new Picture(width, height, [values]), rgb: null });

/**
 * What the network sees of a picture.
 * @param {{gray: Picture, rgb: ?Picture}} picture
 * @param {object} contract the content of preprocess.json
 * @returns {Picture} size × size pixels
 */
export function networkPixels(picture, contract) {
  const { width, height } = picture.gray;
  const box = contract.head_crop ? headBox(picture.gray) : [0, 0, width, height];
  const source = contract.color === "rgb" && picture.rgb && !isGray(picture.rgb) ? picture.rgb : picture.gray;
  const sampled = sampleBox(source, box, contract.size);
  return contract.stretch ? stretched(sampled) : sampled;
}

/** The box around the head in pixels: [x, y, width, height]. */
export function headBox(gray) {
  const factor = Math.max(1, Math.floor(Math.min(gray.width, gray.height) / 256));
  const width = Math.floor(gray.width / factor);
  const height = Math.floor(gray.height / factor);
  const small = factor === 1 ? gray : new Picture(width, height, [blockMeans(gray, 0, factor, width, height)]);
  const [x, y, across, down] = reducedHeadBox(small);
  // pixels beyond the last whole block belong to it
  const right = x + across === width ? gray.width : factor * (x + across);
  const bottom = y + down === height ? gray.height : factor * (y + down);
  return [factor * x, factor * y, right - factor * x, bottom - factor * y];
}

function reducedHeadBox({ width, height, planes: [values] }) {
  const marginX = Math.floor((width * 3) / 100);
  const marginY = Math.floor((height * 3) / 100);
  const inner = { left: marginX, top: marginY, right: width - marginX, bottom: height - marginY };
  const sideX = Math.max(1, Math.floor(width / 14));
  const sideY = Math.max(1, Math.floor(height / 14));
  const corners = [inner.top, inner.bottom - sideY].flatMap((top) =>
    [inner.left, inner.right - sideX].map((left) => {
      const corner = [];
      for (let y = top; y < top + sideY; y++) {
        for (let x = left; x < left + sideX; x++) corner.push(values[y * width + x]);
      }
      return median(corner);
    }),
  );
  corners.sort((a, b) => a - b);
  const background = (corners[1] + corners[2]) / 2;
  const counts = new Float64Array(256);
  for (let y = inner.top; y < inner.bottom; y += 2) {
    for (let x = inner.left; x < inner.right; x++) counts[values[y * width + x]]++;
  }
  const threshold = Math.floor(background + Math.max(8, 0.14 * (interpolatedPercentile(counts, 99.5) - background)));
  const rows = new Float64Array(inner.bottom - inner.top);
  const columns = new Float64Array(inner.right - inner.left);
  for (let y = 0; y < rows.length; y++) {
    for (let x = 0; x < columns.length; x++) {
      if (values[(y + inner.top) * width + x + inner.left] > threshold) {
        rows[y]++;
        columns[x]++;
      }
    }
  }
  const vertical = span(rows, columns.length, marginY, height);
  const horizontal = span(columns, rows.length, marginX, width);
  if (!vertical || !horizontal) return [0, 0, width, height];
  return [horizontal[0], vertical[0], horizontal[1] - horizontal[0], vertical[1] - vertical[0]];
}

/** Start and end of the lines of which 2 % are foreground, or null if there are fewer than two. */
function span(counts, across, margin, length) {
  const used = [...counts.keys()].filter((line) => counts[line] / across > 0.02);
  if (used.length < 2) return null;
  const first = used[0];
  const last = used[used.length - 1] + 1;
  return [first > 0 ? first + margin : 0, last < length - 2 * margin ? last + margin : length];
}

function median(values) {
  const ordered = [...values].sort((a, b) => a - b);
  return (ordered[(ordered.length - 1) >> 1] + ordered[ordered.length >> 1]) / 2;
}

/** As numpy.percentile, linear between two values. */
function interpolatedPercentile(counts, percent) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  const place = ((total - 1) * percent) / 100;
  const value = (index) => {
    let below = 0;
    for (let level = 0; level < 256; level++) {
      below += counts[level];
      if (below > index) return level;
    }
    return 256;
  };
  const low = value(Math.floor(place));
  return low + (value(Math.floor(place) + 1) - low) * (place % 1);
}

/** Means of factor × factor pixels; the last row and column are repeated where the picture ends. */
function blockMeans(picture, plane, factor, width, height) {
  const values = picture.planes[plane];
  const means = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let dy = 0; dy < factor; dy++) {
        const row = Math.min(y * factor + dy, picture.height - 1) * picture.width;
        for (let dx = 0; dx < factor; dx++) sum += values[row + Math.min(x * factor + dx, picture.width - 1)];
      }
      means[y * width + x] = factor === 2 ? (sum + 2) >> 2 : roundHalfToEven(sum / (factor * factor));
    }
  }
  return means;
}

/** A box of a picture as size × size pixels. */
export function sampleBox(picture, [left, top, across, down], size) {
  let factor = 1;
  while (2 * factor * size <= Math.min(across, down)) factor *= 2;
  const width = Math.ceil(picture.width / factor);
  const height = Math.ceil(picture.height / factor);
  const startX = Math.floor(left / factor);
  const startY = Math.floor(top / factor);
  const stopX = Math.ceil((left + across) / factor);
  const stopY = Math.ceil((top + down) / factor);
  const places = (corner, extent) =>
    Float64Array.from({ length: size }, (_, i) => (corner + ((i + 0.5) * extent) / size) / factor - 0.5);
  const xs = places(left, across);
  const ys = places(top, down);
  const planes = picture.planes.map((plane, number) => {
    const values = factor === 1 ? plane : blockMeans(picture, number, factor, width, height);
    const at = (y, x) => (x < startX || y < startY || x >= stopX || y >= stopY ? 0 : values[y * width + x]);
    const result = new Uint8Array(size * size);
    for (let j = 0; j < size; j++) {
      const y = Math.floor(ys[j]);
      const below = ys[j] - y;
      for (let i = 0; i < size; i++) {
        const x = Math.floor(xs[i]);
        const beside = xs[i] - x;
        const upper = at(y, x) * (1 - beside) + at(y, x + 1) * beside;
        const lower = at(y + 1, x) * (1 - beside) + at(y + 1, x + 1) * beside;
        result[j * size + i] = roundHalfToEven(upper * (1 - below) + lower * below);
      }
    }
    return result;
  });
  return new Picture(size, size, planes);
}

/** The 1st percentile of the tissue becomes black, the 99th white. Tissue exceeds a tenth of the 99th percentile. */
export function stretched(picture) {
  const counts = new Float64Array(256);
  for (const plane of picture.planes) for (const value of plane) counts[value]++;
  const percentile = (of, percent) => {
    const total = of.reduce((sum, count) => sum + count, 0);
    let below = 0;
    for (let level = 0; level < 256; level++) {
      below += of[level];
      if (100 * below >= percent * total) return level;
    }
    return 256;
  };
  const bright = percentile(counts, 99);
  const tissue = counts.map((count, level) => (10 * level > bright ? count : 0));
  const [low, high] = [percentile(tissue, 1), percentile(tissue, 99)];
  if (high <= low) return picture;
  const table = Uint8Array.from({ length: 256 }, (_, level) =>
    Math.min(255, Math.max(0, Math.floor((510 * (level - low) + high - low) / (2 * (high - low))))),
  );
  return new Picture(picture.width, picture.height, picture.planes.map((plane) => plane.map((value) => table[value])));
}

/** Largest minus smallest value of the picture's thumbnail of 64 × 64 area means: small if it shows nothing. */
export function thumbnailRange({ width, height, planes: [values] }) {
  const side = 64;
  let [low, high] = [255, 0];
  for (let j = 0; j < side; j++) {
    const rows = [Math.floor((j * height) / side), Math.max(Math.ceil(((j + 1) * height) / side), 1)];
    for (let i = 0; i < side; i++) {
      const columns = [Math.floor((i * width) / side), Math.max(Math.ceil(((i + 1) * width) / side), 1)];
      let [sum, total] = [0, 0];
      for (let y = rows[0]; y < rows[1]; y++) {
        const down = Math.min(y + 1, ((j + 1) * height) / side) - Math.max(y, (j * height) / side);
        for (let x = columns[0]; x < columns[1]; x++) {
          const share = down * (Math.min(x + 1, ((i + 1) * width) / side) - Math.max(x, (i * width) / side));
          sum += share * values[y * width + x];
          total += share;
        }
      }
      const mean = Math.round(sum / total);
      low = Math.min(low, mean);
      high = Math.max(high, mean);
    }
  }
  return high - low;
}

/**
 * The part of a class activation map that raises the score of its class, for display.
 * @param {ArrayLike<number>} cells width × height values
 * @returns {Float32Array} size × size values from 0 to 1; all are 0 if no cell raises the score, or all
 *   do so alike
 */
export function heat(cells, width, height, size) {
  const at = (y, x) => {
    const [row, column] = [Math.min(Math.max(y, 0), height - 1), Math.min(Math.max(x, 0), width - 1)];
    return Math.max(cells[row * width + column], 0);
  };
  const values = new Float32Array(size * size);
  for (let j = 0; j < size; j++) {
    const y = ((j + 0.5) * height) / size - 0.5;
    const below = y - Math.floor(y);
    for (let i = 0; i < size; i++) {
      const x = ((i + 0.5) * width) / size - 0.5;
      const beside = x - Math.floor(x);
      const [top, left] = [Math.floor(y), Math.floor(x)];
      const upper = at(top, left) * (1 - beside) + at(top, left + 1) * beside;
      const lower = at(top + 1, left) * (1 - beside) + at(top + 1, left + 1) * beside;
      values[j * size + i] = upper * (1 - below) + lower * below;
    }
  }
  const low = values.reduce((least, value) => Math.min(least, value), Infinity);
  const high = values.reduce((most, value) => Math.max(most, value), 0);
  if (high - low <= 1e-5 * high) return new Float32Array(size * size);
  return values.map((value) => (value - low) / (high - low));
}

function isGray({ planes: [red, green, blue] }) {
  return red.every((value, i) => value === green[i] && value === blue[i]);
}

/** As numpy.rint, of values that are not negative. */
export function roundHalfToEven(value) {
  const whole = Math.floor(value);
  const rest = value - whole;
  return rest > 0.5 || (rest === 0.5 && whole % 2 === 1) ? whole + 1 : whole;
}

/** The network's input: uint8 values of one plane or, where the contract keeps colours, of three. */
export function networkInput(pixels, contract) {
  const planes = contract.color === "gray" ? 1 : 3;
  const input = new Uint8Array(planes * pixels.width * pixels.height);
  for (let i = 0; i < planes; i++) input.set(pixels.planes[pixels.planes.length === 1 ? 0 : i], i * input.length / planes);
  return input;
}
