// Numbers and answers in words.

const NAMES = { notumor: "no tumour", pituitary: "pituitary tumour" };

/** The name of a class for reading. */
export const className = (name) => NAMES[name] ?? name.replaceAll("_", " ");

/** A probability. No model is sure, so nothing is rounded to 100 or 0. */
export function percent(value) {
  const text = (100 * value).toFixed(1);
  if (text === "100.0") return ">\u00a099.9\u00a0%";
  return text === "0.0" ? "<\u00a00.1\u00a0%" : `${text}\u00a0%`;
}

const list = (names, word) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} ${word} ${names.at(-1)}`);

/** What a prediction's verdict means: tone, a short title, and a sentence. */
export function verdict(prediction, model) {
  switch (prediction.verdict) {
    case "not_like_training":
      return ["bad", "Unlike the training images", "The model was not made for such an image. Do not use this answer."];
    case "unsure":
      return ["unsure", "Undecided", prediction.set?.length ? "More than one class is plausible." : "No class is plausible enough."];
    case "ok":
      return model.ood
        ? ["ok", "No alarm", "The image was not found to be unlike the training images. That does not make it an MRI of a brain."]
        : ["ok", "Decided", "One class is plausible. Whether the image is like the training images was not checked."];
    default:
      return ["none", "Not checked", "This model cannot tell whether the image is like those of its training."];
  }
}

/** The set of classes in words; an empty text if the model makes no sets. */
export function setInWords(prediction, model) {
  if (!prediction.set || !model.coverage || prediction.verdict === "not_like_training") return "";
  const share = `${Number((100 * model.coverage).toFixed(4))} %`;
  const names = prediction.set.map(className);
  if (!names.length) return `No class is plausible enough for a set that is right in ${share} of cases.`;
  return `The set is ${list(names, "or")}. Such sets contain the true class in ${share} of cases from the source of the training images.`;
}

/** What the number beside the label means. */
export function meaning(prediction, model) {
  const number = percent(prediction.probability);
  if (prediction.verdict === "not_like_training") return "Nothing: the model has not learned from images like this one.";
  if (prediction.frame === "mean") {
    return `The mean over the slices of this file that are like the training images (of the logarithms). Slices of one patient are not independent, so it is not the probability of a diagnosis.`;
  }
  return model.calibrated
    ? `Of 100 slices from the source of the training images for which the model says ${number}, about ${Math.min(99, Math.round(100 * prediction.probability))} show ${className(prediction.label)}. How it is for images of another hospital or scanner is not known.`
    : `The probabilities of this model are not calibrated: ${number} does not mean that it is right in ${number} of such cases.`;
}

/** Bytes for reading. */
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** A refusal of a file in words: a title and the reason. */
export function refusal(error, model) {
  if (error.status === 413 && model) {
    const { bytes, pixels, frames } = model.limits;
    return ["Too large", `${sentence(error.message)} At most ${megabytes(bytes)}, ${pixels / 1e6} million pixels and ${frames} slices are read.`];
  }
  return [error.title || "Refused", sentence(error.message)];
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
