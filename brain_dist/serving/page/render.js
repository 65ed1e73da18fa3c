// Builds the parts of the page. Text from files and answers is only ever set as text.

import { className, meaning, percent, setInWords, verdict } from "./words.js";

/** An element with attributes, properties (after a dot), listeners (after "on") and children. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith(".")) node[name.slice(1)] = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== ""));
  return node;
}

let counter = 0;
export const identity = (prefix) => `${prefix}-${++counter}`;

/** The probabilities as bars, the likeliest first; all of it is text as well. */
export function bars(prediction) {
  const pairs = Object.entries(prediction.probabilities).sort(([, a], [, b]) => b - a);
  return element(
    "table", { class: "bars" },
    element("caption", { class: "visually-hidden" }, "Probability of each class"),
    element("thead", { class: "visually-hidden" }, element("tr", {}, ...["Class", "Probability", "In the set"].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...pairs.map(([name, value]) => {
      const fill = element("span", { class: "fill" });
      fill.style.inlineSize = `${Math.max(0.4, 100 * value)}%`;
      const inside = prediction.set?.includes(name);
      return element(
        "tr", { class: name === prediction.label ? "best" : "" },
        element("th", { scope: "row" }, className(name)),
        element("td", { class: "share" }, element("span", { class: "track", "aria-hidden": "true" }, fill), element("span", { class: "value" }, percent(value))),
        element("td", { class: "member" }, prediction.set ? element("span", { class: inside ? "inside" : "outside" }, inside ? "in the set" : "–") : ""),
      );
    })),
  );
}

/** The headline, verdict, bars, set and meaning of a prediction. */
export function answer(prediction, model) {
  if (prediction.error) return element("div", { class: "answer" }, element("p", { class: "reason" }, `This slice ${prediction.error}.`));
  const isMean = prediction.frame === "mean";
  const [tone, title, sentence] = verdict(prediction, model);
  const inWords = setInWords(prediction, model);
  return element(
    "div", { class: `answer tone-${isMean ? "mean" : tone}` },
    element("p", { class: "label" }, element("strong", {}, className(prediction.label)), " ", element("span", {}, percent(prediction.probability))),
    isMean ? null : element("p", { class: "verdict" }, element("span", { class: "pill" }, title), " ", sentence),
    bars(prediction),
    inWords ? element("p", { class: "set" }, inWords) : null,
    element("details", { class: "meaning" }, element("summary", {}, "What this number means"), element("p", {}, meaning(prediction, model)),
      prediction.ood_p != null ? element("p", {}, `${percent(prediction.ood_p)} of the patients that the model was validated on have an image at least as unlike the training images as this one; below ${percent(model.ood.limit)} it counts as unlike.`) : null),
  );
}

/** A strip with the predicted class of each slice of a volume, which a slider below it moves along. */
export function strip(slices, classes) {
  const cells = slices.map((slice) => {
    const cell = element("span", { class: slice.error ? "gap" : `class-${classes.indexOf(slice.label) % 6}` });
    cell.style.opacity = slice.verdict === "not_like_training" ? 0.25 : Math.max(0.35, slice.probability ?? 1);
    return cell;
  });
  const used = [...new Set(slices.map((slice) => slice.label).filter(Boolean))];
  const legend = used.map((name) => element("li", {}, element("span", { class: `class-${classes.indexOf(name) % 6}` }), `${className(name)}: ${slices.filter((slice) => slice.label === name).length}`));
  return element("div", { class: "strip" }, element("div", { class: "cells", "aria-hidden": "true" }, ...cells), element("ul", { "aria-label": "Number of slices by class" }, ...legend));
}

/** The facts about the model. */
export function facts(model) {
  const rows = {
    "Model": model.name,
    "Classes": model.classes.map(className).join(", "),
    "Weights": model.weights ? `step ${model.step}, sha256 ${model.weights.slice(0, 12)}…` : "",
    "Probabilities": model.calibrated ? "calibrated on validation images" : "not calibrated",
    "Sets": model.coverage ? `contain the true class in ${Number((100 * model.coverage).toFixed(4))} % of cases from the same source` : "this model makes no sets",
    "Unlike images": model.ood ? `recognised by ${model.ood.patients} validation patients (p < ${model.ood.limit})` : "not recognised by this model",
    "Maps": model.maps ?? "this model gives no maps",
    "Speed": model.speed ? `${model.speed.milliseconds.toFixed(0)} ms for one image, up to ${model.speed.images_per_second.toFixed(0)} images/s` : "",
  };
  return Object.entries(rows).filter(([, text]) => text).flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]);
}
