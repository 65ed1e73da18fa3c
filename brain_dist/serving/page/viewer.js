// A slice as the network saw it, with the map of a class over it.

const COLOURS = [[0, 66, 10, 104], [0.35, 147, 38, 103], [0.6, 221, 81, 58], [0.85, 252, 165, 10], [1, 246, 215, 70]]; // inferno

/** The colour of a map's value from 0 to 1. */
function colour(value) {
  const after = COLOURS.findIndex(([at]) => at >= value);
  if (after <= 0) return COLOURS[0].slice(1);
  const [start, ...low] = COLOURS[after - 1];
  const [end, ...high] = COLOURS[after];
  return low.map((v, i) => v + ((high[i] - v) * (value - start)) / (end - start));
}

async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}

/** Draws slices with maps on a canvas. */
export class Viewer {
  #canvas;
  #image;
  #maps = {};

  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** Show what `explain` of a source answered. */
  async load({ image, maps }) {
    this.#image = await pixels(image);
    this.#maps = Object.fromEntries(await Promise.all(Object.entries(maps).map(async ([name, url]) => [name, await pixels(url)])));
  }

  /** Show nothing. */
  clear() {
    this.#image = null;
    this.#maps = {};
    Object.assign(this.#canvas, { width: 8, height: 8 });
  }

  /** Draw the slice with the map of a class, as strong as `strength` from 0 to 1. */
  draw(name, strength) {
    if (!this.#image) return;
    const { width, height, data } = this.#image;
    const mixed = new Uint8ClampedArray(data);
    const map = this.#maps[name]?.data;
    if (map && strength > 0) {
      for (let i = 0; i < mixed.length; i += 4) {
        const heat = map[i] / 255;
        const weight = strength * Math.min(1, 1.6 * heat);
        const tint = colour(heat);
        for (let k = 0; k < 3; k++) mixed[i + k] = (1 - weight) * data[i + k] + weight * tint[k];
      }
    }
    Object.assign(this.#canvas, { width, height });
    this.#canvas.getContext("2d").putImageData(new ImageData(mixed, width, height), 0, 0);
  }
}
