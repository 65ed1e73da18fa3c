// The network in the browser: the files of the export, ONNX Runtime in WebAssembly, and an answer for each picture.

import * as ort from "../ort/ort.wasm.min.mjs";
import { Detector, answer, meanOfSlices } from "./answers.js";
import { decode } from "./decode.js";
import { loadParser } from "./dicom.js";
import { networkInput, networkPixels, thumbnailRange } from "./pixels.js";

const BLANK_RANGE = 8; // gray values; what differs by less shows nothing
const inFolder = (name) => new URL(`../${name}`, import.meta.url).href;

ort.env.wasm.wasmPaths = inFolder("ort/"); // must be absolute: a relative path is resolved twice
ort.env.wasm.numThreads = 1; // more need headers that a static server does not send

/** The network of this folder. Nothing is fetched after it is open. */
export async function openNetwork() {
  const about = await (await fetched("model.json")).json();
  const contract = await (await fetched("preprocess.json")).json();
  const detector = about.ood ? new Detector(await (await fetched("outliers.safetensors")).arrayBuffer()) : null;
  await loadParser(inFolder("dicom/dicomParser.min.js"));
  const bytes = new Uint8Array(await (await fetched("model.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return new Network(session, about, contract, detector);
}

async function fetched(name) {
  const response = await fetch(inFolder(name));
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}); export the edition again`);
  return response;
}

/** An opened network. */
export class Network {
  /** `about` is what the page says of the model, `contract` the content of preprocess.json. */
  constructor(session, about, contract, detector) {
    Object.assign(this, { session, about, contract, detector });
  }

  /**
   * The answers for a file, as brain_dist.prediction gives them: one for each slice, and one for the file if it has several.
   * @param {Blob} file
   * @param {(done: number, all: number) => void} progress called before each slice
   * @returns {Promise<object[]>} frame, label, probability, probabilities, set, ood_p, verdict; of a slice also logits, the
   *   pixels that the network saw (a Picture), and maps: values of height × width cells of each class, or null if the
   *   network gives none
   */
  async predict(file, progress = () => {}) {
    const slices = await decode(file, this.contract);
    const answers = [];
    for (const slice of slices) {
      progress(answers.length, slices.length);
      if (answers.length) await new Promise((resolve) => setTimeout(resolve)); // lets the page show it
      answers.push({ frame: slice.frame, ...(await this.#answer(slice)) });
    }
    const mean = meanOfSlices(answers, this.contract);
    return mean ? [...answers, mean] : answers;
  }

  async #answer(slice) {
    const picture = slice.picture();
    const pixels = networkPixels(picture, this.contract);
    const { color, size, classes } = this.contract;
    const shape = [1, color === "gray" ? 1 : 3, size, size];
    const input = new ort.Tensor("uint8", networkInput(pixels, this.contract), shape);
    const outputs = await this.session.run({ pixels: input });
    const logits = outputs.logits.data;
    if (!Array.from(logits).every(Number.isFinite)) throw new Error("the network's logits are not finite");
    const limit = this.detector ? this.detector.limit : 0;
    const oodP = this.detector ? this.detector.pValue(outputs.features.data, logits) : null;
    const unlike = slice.unlike || thumbnailRange(picture.gray) < BLANK_RANGE;
    const maps = outputs.maps ? mapsOf(outputs.maps, classes) : null;
    return { ...answer(logits, oodP, this.contract, { unlike, limit }), logits: [...logits], pixels, maps };
  }
}

function mapsOf({ data, dims: [, , height, width] }, classes) {
  const area = height * width;
  const values = Object.fromEntries(classes.map((name, c) => [name, data.slice(c * area, (c + 1) * area)]));
  return { height, width, values };
}
