// From logits and features to an answer: probabilities, set of classes, verdict, as brain_dist/prediction/answers.py and
// brain_dist/ood/ compute them.

/** @returns {number[]} */
export function softmax(logits) {
  const top = Math.max(...logits);
  const values = Array.from(logits, (value) => Math.exp(value - top));
  const sum = values.reduce((total, value) => total + value, 0);
  return values.map((value) => value / sum);
}

/**
 * The answer for a picture.
 * @param {ArrayLike<number>} logits one of each class
 * @param {?number} oodP share of validation patients with a picture at least as unlike the training; null without detector
 * @param {object} contract the content of preprocess.json
 * @param {{unlike?: boolean, limit?: number}} options unlike: the file itself says that it is unlike the training;
 *   limit: an oodP below it is unlike the training
 */
export function answer(logits, oodP, contract, { unlike = false, limit = 0 } = {}) {
  const plain = softmax(logits);
  let calibration = contract.calibration;
  if (calibration && (!contract.weights || contract.weights.step !== calibration.step)) calibration = null;
  const values = calibration ? softmax(Array.from(logits, (value) => value / calibration.temperature)) : plain;
  const threshold = calibration ? calibration.threshold : null;
  const set = threshold == null ? null : contract.classes.filter((_, i) => 1 - plain[i] <= threshold);
  let verdict = null;
  if (unlike || (oodP !== null && oodP < limit)) verdict = "not_like_training";
  else if (set) verdict = set.length === 1 ? "ok" : "unsure";
  else if (oodP !== null) verdict = "ok";
  const best = values.indexOf(Math.max(...values));
  return {
    label: contract.classes[best],
    probability: values[best],
    probabilities: Object.fromEntries(contract.classes.map((name, i) => [name, values[i]])),
    set,
    ood_p: oodP,
    verdict,
  };
}

/** The answer for a file with several slices: the mean of the logarithms over those like the training; null without any. */
export function meanOfSlices(answers, { classes }) {
  const usable = answers.filter(({ verdict }) => verdict !== "not_like_training");
  if (answers.length < 2 || !usable.length) return null;
  const logarithm = (value) => Math.log(Math.max(value, 1e-300));
  const means = classes.map((name) => usable.reduce((sum, each) => sum + logarithm(each.probabilities[name]), 0) / usable.length);
  const values = softmax(means);
  const best = values.indexOf(Math.max(...values));
  const probabilities = Object.fromEntries(classes.map((name, i) => [name, values[i]]));
  return { frame: "mean", label: classes[best], probability: values[best], probabilities, set: null, ood_p: null, verdict: null };
}

/** A fitted detector of outliers, read from the bytes of outliers.safetensors. */
export class Detector {
  constructor(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    Object.assign(this, JSON.parse(header.__metadata__.brain_dist));
    const kinds = { F32: Float32Array, F64: Float64Array };
    for (const name of ["centres", "whitening", "score", "weight"]) {
      const { dtype, shape, data_offsets: [start, stop] } = header[name];
      this[name] = new kinds[dtype](buffer.slice(8 + length + start, 8 + length + stop));
      this[name].shape = shape;
    }
  }

  /** p-value of a picture with these features and logits. */
  pValue(features, logits) {
    const score = this.scoreOf(features, logits);
    let above = 0;
    for (let i = 0; i < this.score.length; i++) if (this.score[i] >= score) above += this.weight[i];
    return (1 + above) / (this.groups + 1);
  }

  /** How unlike the training a picture is; larger is more. */
  scoreOf(features, logits) {
    const top = Math.max(...logits);
    const logSum = top + Math.log(Array.from(logits).reduce((sum, value) => sum + Math.exp(value - top), 0));
    if (this.method === "energy") return -logSum;
    if (this.method === "msp") return 1 - Math.exp(top - logSum);
    let point = Float64Array.from(features);
    if (this.method === "mahalanobis") point = this.whitened(point);
    if (this.method === "knn_normalised") {
      const norm = Math.max(Math.sqrt(point.reduce((sum, value) => sum + value * value, 0)), 1e-12);
      point = point.map((value) => value / norm);
    }
    const [count, width] = this.centres.shape;
    const squares = new Float64Array(count);
    for (let row = 0; row < count; row++) {
      for (let i = 0; i < width; i++) squares[row] += (point[i] - this.centres[row * width + i]) ** 2;
    }
    const nth = this.method === "mahalanobis" ? 1 : Math.min(10, count);
    return Math.sqrt(squares.sort()[nth - 1]);
  }

  whitened(point) {
    const width = point.length;
    const result = new Float64Array(width);
    for (let i = 0; i < width; i++) {
      for (let j = 0; j < width; j++) result[j] += point[i] * this.whitening[i * width + j];
    }
    return result;
  }
}
