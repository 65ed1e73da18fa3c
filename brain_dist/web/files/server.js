// The source of answers of the browser edition: the network in this browser. It has the functions and errors of the
// service's server.js, whose place it takes. After the page has loaded, nothing is fetched.

import { Refused } from "./checks.js";
import { openNetwork } from "./network.js";
import { heat } from "./pixels.js";

const DIGITS = 6; // of probabilities, as in the tables of `brain-dist predict`

/** A refusal: `kind` is refused, or offline if the network cannot be loaded. */
export class Refusal extends Error {
  constructor(kind, detail, { title = "", seconds = 0, status = 0 } = {}) {
    super(detail);
    Object.assign(this, { kind, title, seconds, status });
  }
}

export class Server {
  remote = false; // the images stay in this browser
  formats = "JPEG, PNG, WebP, BMP, GIF or DICOM.";
  #network = null;
  #answers = new WeakMap(); // file → promise of its answers

  /** What the network is: classes, limits, calibration. */
  async describe() {
    try {
      this.#network ??= openNetwork();
      return (await this.#network).about;
    } catch (error) {
      this.#network = null;
      throw new Refusal("offline", error.message);
    }
  }

  /** The predictions of a file; `progress` is called before each slice with the numbers of those done and of all. */
  async predict(file, progress) {
    const rounded = (value) => (value === null ? null : Number(value.toFixed(DIGITS)));
    return (await this.#answersFor(file, progress)).map(({ frame, label, probability, probabilities, set, ood_p: oodP, verdict }) => {
      const all = Object.fromEntries(Object.entries(probabilities).map(([name, value]) => [name, rounded(value)]));
      return { frame, label, probability: rounded(probability), probabilities: all, set, ood_p: rounded(oodP), verdict, error: null };
    });
  }

  /** What the network saw of a slice, and a map for each class; pictures as data URLs. */
  async explain(file, frame) {
    const { pixels, maps } = (await this.#answersFor(file)).find((each) => each.frame === frame);
    const image = dataUrl(pixels.width, pixels.planes);
    if (!maps) return { frame, image, maps: {} };
    const pictures = Object.entries(maps.values).map(([name, cells]) => {
      const values = heat(cells, maps.width, maps.height, pixels.width);
      return [name, dataUrl(pixels.width, [values.map((value) => 255 * value)])];
    });
    return { frame, image, maps: Object.fromEntries(pictures) };
  }

  #answersFor(file, progress) {
    if (!this.#answers.has(file)) this.#answers.set(file, this.#ask(file, progress));
    return this.#answers.get(file);
  }

  async #ask(file, progress) {
    const network = await this.#network;
    try {
      return await network.predict(file, progress);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      throw new Refusal("refused", `the file ${error.message}`, { title: "Not readable", status: 422 });
    }
  }
}

/** A square picture of one or three planes as a PNG file in a data URL. */
function dataUrl(size, planes) {
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let channel = 0; channel < 3; channel++) image.data[4 * i + channel] = planes[planes.length === 1 ? 0 : channel][i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL();
}

// where the browser refuses it, as in private windows, the page works, but not without a network
navigator.serviceWorker?.register(new URL("../offline.js", import.meta.url)).catch(() => {});
