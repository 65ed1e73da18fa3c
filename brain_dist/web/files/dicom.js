// A DICOM file → the gray pixels of its slices, as brain_dist/collection/dicom.py computes them: rescale, window, and
// the inversion of MONOCHROME1. Gray values of 8 or 16 bits without compression are read. The data elements are found by
// dicom-parser, which has to be loaded once.

import { ELSEWHERE, MAX_FRAMES, Refused, checkSize } from "./checks.js";
import { roundHalfToEven } from "./pixels.js";

const IMPLICIT = "1.2.840.10008.1.2";
const EXPLICIT = "1.2.840.10008.1.2.1";
const BIG_ENDIAN = "1.2.840.10008.1.2.2";
const LIKE_TRAINING = ["MR", "OT", "SC", ""]; // modalities; OT and SC say nothing of the scanner
const ARRAYS = { 8: [Uint8Array, Int8Array], 16: [Uint16Array, Int16Array] }; // by bits: unsigned, signed
const TAG = {
  modality: "x00080060", interpretation: "x00280004", frames: "x00280008", rows: "x00280010", columns: "x00280011",
  bits: "x00280100", signed: "x00280103", centre: "x00281050", width: "x00281051", intercept: "x00281052",
  slope: "x00281053", windowFunction: "x00281056", modalityTable: "x00283000", windowTable: "x00283010",
  pixels: "x7fe00010", perFrame: "x52009230", shared: "x52009229", rescales: "x00289145", windows: "x00289132",
};

/** Load dicom-parser from this address; nothing is fetched after it. */
export function loadParser(address) {
  return new Promise((resolve, reject) => {
    const onerror = () => reject(new Error(`${address} cannot be loaded; export the edition again`));
    document.head.append(Object.assign(document.createElement("script"), { src: address, onload: resolve, onerror }));
  });
}

/** Whether a file's first 132 bytes are those of a DICOM file. */
export const isDicom = (head) => String.fromCharCode(...head.subarray(128, 132)) === "DICM";

/**
 * The slices of a DICOM file.
 * @param {Uint8Array} bytes of the file
 * @param {object} window how values become gray, as preprocess.json has it
 * @returns {{frame: ?number, unlike: boolean, width: number, height: number, gray: () => Uint8Array}[]} for each slice its
 *   number, null if the file has only one; whether it is of another modality than MR; its size; its pixels
 */
export function readDicom(bytes, window) {
  const dataset = parsed(bytes);
  const [height, width] = [dataset.uint16(TAG.rows), dataset.uint16(TAG.columns)];
  if (!height || !width) throw new Refused("is a DICOM file without an image");
  checkSize(width, height);
  const interpretation = dataset.string(TAG.interpretation);
  if (!["MONOCHROME1", "MONOCHROME2"].includes(interpretation)) {
    throw new Refused(`is not a gray image (photometric interpretation ${interpretation ?? "None"})`);
  }
  const frames = dataset.elements[TAG.frames]?.length ? number(dataset, TAG.frames) : 1;
  if (!Number.isInteger(frames) || frames < 1 || frames > MAX_FRAMES) {
    throw new Refused(`states that it contains ${frames} frames; between 1 and ${MAX_FRAMES} are read`);
  }
  const stored = storedValues(dataset, width * height, frames);
  const unlike = !LIKE_TRAINING.includes(dataset.string(TAG.modality) ?? "");
  const gray = (index) => {
    const values = rescaled(stored(index), frameItem(dataset, index, TAG.rescales));
    const pixels = window.file ? byWindow(values, frameItem(dataset, index, TAG.windows)) : byLimits(values, limits(values, window));
    return interpretation === "MONOCHROME1" ? pixels.map((value) => 255 - value) : pixels;
  };
  return Array.from({ length: frames }, (_, index) => ({
    frame: frames > 1 ? index + 1 : null, unlike, width, height, gray: () => gray(index),
  }));
}

function parsed(bytes) {
  let syntax;
  let dataset;
  try {
    syntax = dicomParser.readPart10Header(bytes).string("x00020010");
    if ([IMPLICIT, EXPLICIT].includes(syntax)) dataset = dicomParser.parseDicom(bytes);
  } catch { // the library throws errors, texts and objects
    syntax = undefined;
  }
  if (dataset) return dataset;
  if (!syntax) throw new Refused("cannot be decoded (its data elements are damaged or incomplete)");
  const form = syntax === BIG_ENDIAN ? "in big-endian order" : `that is compressed (transfer syntax ${syntax})`;
  throw new Refused(`is a DICOM file ${form}, which this edition does not read; ${ELSEWHERE}`);
}

/** A function that returns the stored values of a frame by its index. */
function storedValues(dataset, area, frames) {
  const [bits, signed] = [dataset.uint16(TAG.bits), dataset.uint16(TAG.signed)];
  const Values = ARRAYS[bits]?.[signed];
  if (!Values) throw new Refused(`is a DICOM file with ${bits} bits for a value; 8 and 16 are read; ${ELSEWHERE}`);
  const element = dataset.elements[TAG.pixels];
  if (!element) throw new Refused("is a DICOM file without pixels");
  const size = (area * bits) / 8;
  const available = Math.min(element.length, dataset.byteArray.length - element.dataOffset); // the file may be cut off
  if (element.hadUndefinedLength || available < size * frames) {
    throw new Refused("cannot be decoded (it has fewer pixels than it states)");
  }
  return (index) => {
    const start = element.dataOffset + index * size;
    return new Values(dataset.byteArray.slice(start, start + size).buffer);
  };
}

/** The item of a sequence for a frame of an enhanced multi-frame file; for other files the dataset itself. */
function frameItem(dataset, index, tag) {
  const groups = [dataset.elements[TAG.perFrame]?.items?.[index], dataset.elements[TAG.shared]?.items?.[0]];
  for (const group of groups) {
    const item = group?.dataSet.elements[tag]?.items?.[0];
    if (item) return item.dataSet;
  }
  return dataset;
}

/** The first value of an element that is written in digits. */
function number(dataset, tag) {
  const value = Number(dataset.string(tag, 0) ?? NaN);
  if (!Number.isFinite(value)) throw new Refused("cannot be decoded (a number in its header is not one)");
  return value;
}

function rescaled(stored, item) {
  refuseTable(item, TAG.modalityTable);
  if (!(TAG.slope in item.elements && TAG.intercept in item.elements)) return Float64Array.from(stored);
  const [slope, intercept] = [number(item, TAG.slope), number(item, TAG.intercept)];
  return Float64Array.from(stored, (value) => value * slope + intercept);
}

function refuseTable(item, tag) {
  if (item.elements[tag]?.items?.length) throw new Refused(`has a table of gray values (LUT), which this edition does not read; ${ELSEWHERE}`);
}

/** The values that become black and white: those of a fixed window, or percentiles of these values. */
function limits(values, { percentiles, center, width }) {
  if (!percentiles) return [center - width / 2, center + width / 2];
  const ordered = values.toSorted();
  const [low, high] = percentiles.map((percent) => percentile(ordered, percent));
  return high > low ? [low, high] : [ordered[0], ordered[ordered.length - 1]];
}

/** As numpy.percentile, in the same order of operations. */
function percentile(ordered, percent) {
  const place = (ordered.length - 1) * (percent / 100);
  const index = Math.floor(place);
  const [low, high] = [ordered[index], ordered[Math.min(index + 1, ordered.length - 1)]];
  const part = place - index;
  return part < 0.5 ? low + (high - low) * part : high - (high - low) * (1 - part);
}

function byLimits(values, [low, high]) {
  const range = high > low ? high - low : 1;
  return Uint8Array.from(values, (value) => roundHalfToEven(Math.min(1, Math.max(0, (value - low) / range)) * 255));
}

/** By the file's own first window (DICOM PS3.3, C.11.2). */
function byWindow(values, item) {
  refuseTable(item, TAG.windowTable);
  if (!(TAG.centre in item.elements && TAG.width in item.elements)) throw new Refused("states no window");
  let [centre, width] = [number(item, TAG.centre), number(item, TAG.width)];
  const kind = (item.string(TAG.windowFunction) || "LINEAR").toUpperCase();
  if (!["LINEAR", "LINEAR_EXACT", "SIGMOID"].includes(kind) || width < (kind === "LINEAR" ? 1 : Number.MIN_VALUE)) {
    throw new Refused(`has a window that is not valid (${kind}, width ${width})`);
  }
  if (kind === "LINEAR") [centre, width] = [centre - 0.5, width - 1];
  const linear = (value) => {
    if (value <= centre - width / 2) return 0;
    return value > centre + width / 2 ? 255 : ((value - centre) / width + 0.5) * 255;
  };
  const level = kind === "SIGMOID" ? (value) => 255 / (1 + Math.exp((-4 * (value - centre)) / width)) : linear;
  return Uint8Array.from(values, (value) => roundHalfToEven(Math.min(255, Math.max(0, level(value)))));
}
