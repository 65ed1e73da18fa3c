// A file on the page: waiting, refused, or with its answer, its slices and its maps.

import { answer, element, identity, strip } from "./render.js";
import { Viewer } from "./viewer.js";
import { className, refusal } from "./words.js";

export class Card {
  predictions = null;

  /** `source` answers; `retry` is called with this card when the user wants to try again. */
  constructor(file, model, source, retry) {
    this.file = file;
    this.model = model;
    this.source = source;
    this.retry = retry;
    const id = identity("file");
    this.title = element("h3", { id }, file.name || "Pasted image");
    this.body = element("div", { class: "body" });
    this.node = element("article", { class: "card", "aria-labelledby": id }, this.title, this.body);
    this.wait("Waiting…");
  }

  /** Show that work goes on. */
  wait(text) {
    this.#state("waiting", element("p", { class: "progress" }, element("span", { class: "spinner", "aria-hidden": "true" }), text));
  }

  /** Show why the file has no answer. */
  refuse(error) {
    const [title, reason] = error.kind === "offline" ? ["No connection", "The service cannot be reached. The file is kept here until it can."] : refusal(error, this.model);
    const again = error.kind === "offline" ? element("button", { type: "button", class: "plain", onclick: () => this.retry(this) }, "Try again") : null;
    this.#state("refused", element("p", { class: "reason" }, element("strong", {}, `${title}. `), reason), again);
  }

  /** Show that the service is full and when the file is sent again; resolves then, or when the user asks for it. */
  async busy(seconds) {
    const text = element("span");
    await new Promise((resolve) => {
      const end = Date.now() + 1000 * seconds;
      const tick = () => {
        const left = Math.ceil((end - Date.now()) / 1000);
        text.textContent = `The service is busy. Trying again in ${left} s. `;
        if (left <= 0) resolve();
      };
      const timer = setInterval(tick, 250);
      const now = element("button", { type: "button", class: "plain", onclick: resolve }, "Try now");
      this.#state("waiting", element("p", { class: "progress" }, element("span", { class: "spinner", "aria-hidden": "true" }), text), now);
      tick();
      this.stopWaiting = () => { clearInterval(timer); resolve(); };
    });
    this.stopWaiting();
  }

  /** Show the answer. */
  show(predictions) {
    this.predictions = predictions;
    this.slices = predictions.filter((each) => each.frame !== "mean");
    const mean = predictions.find((each) => each.frame === "mean");
    this.current = Math.floor(this.slices.length / 2);
    this.answers = element("div", { class: "answers" });
    const several = this.slices.length > 1;
    const text = element("div", { class: "text" });
    if (several) text.append(element("h4", {}, `All ${this.slices.length} slices`));
    if (mean) text.append(answer(mean, this.model));
    else if (several) text.append(element("p", { class: "reason" }, "No slice of this file is like the training images, so there is no answer for the file."));
    if (several) text.append(strip(this.slices, this.model.classes), this.#slider(), this.answers);
    else text.append(this.answers);
    this.#state("answered", element("div", { class: "columns" }, this.#picture(), text));
    this.#choose(this.current);
    this.explained = this.#explain();
  }

  /** What is kept in the downloaded file. */
  document() {
    return { file: this.file.name, bytes: this.file.size, predictions: this.predictions };
  }

  /** The answer that stands for the file. */
  get main() {
    return this.predictions?.find((each) => each.frame === "mean") ?? this.predictions?.[0];
  }

  #state(name, ...nodes) {
    this.node.dataset.state = name;
    this.node.setAttribute("aria-busy", name === "waiting");
    this.body.replaceChildren(...nodes.filter(Boolean));
  }

  #slider() {
    const id = identity("slice");
    this.position = element("output", { for: id });
    const input = element("input", {
      id, type: "range", min: 0, max: this.slices.length - 1, ".value": this.current,
      oninput: () => this.#choose(Number(input.value)),
      onchange: () => { this.explained = this.#explain(); },
    });
    return element("div", { class: "slider" }, element("label", { for: id }, "Slice "), this.position, input);
  }

  #choose(index) {
    this.current = index;
    const slice = this.slices[index];
    if (this.position) this.position.textContent = `${slice.frame} (${index + 1} of ${this.slices.length})`;
    this.answers.replaceChildren(answer(slice, this.model));
  }

  #picture() {
    this.canvas = element("canvas", { width: 8, height: 8, role: "img", "aria-label": "The slice as the network saw it" });
    this.viewer = new Viewer(this.canvas);
    this.caption = element("figcaption", {}, "Loading what the network saw…");
    const figure = element("figure", {}, element("div", { class: "frame" }, this.canvas), this.caption);
    if (!this.model.maps) return figure;
    const [strength, select] = [identity("strength"), identity("class")];
    this.select = element("select", { id: select, onchange: () => this.#draw() }, ...this.model.classes.map((name) => element("option", { value: name }, className(name))));
    this.strength = element("input", { id: strength, type: "range", min: 0, max: 100, ".value": 60, oninput: () => this.#draw() });
    this.controls = element("div", { class: "controls", hidden: true }, element("label", { for: select }, "Map of"), this.select, element("label", { for: strength }, "Strength"), this.strength);
    figure.append(this.controls);
    return figure;
  }

  /** The picture of a slice. The first map of a service that has just started may miss the deadline, so it is asked again. */
  async #view(frame) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.source.explain(this.file, frame);
      } catch (error) {
        if (error.status !== 504 || attempt === 3) throw error;
      }
    }
  }

  #draw() {
    this.viewer.draw(this.select?.value, this.strength ? this.strength.value / 100 : 0);
    const name = this.select ? className(this.select.value) : "";
    this.canvas.setAttribute("aria-label", `The slice as the network saw it${name ? `, with the map for ${name}` : ""}`);
    const shown = this.strength?.value > 0;
    const map = shown ? ` Colour: where the score of ${name} came from (${this.model.maps}), not where a tumour is.` : "";
    this.caption.textContent = `What the network saw.${this.model.maps ? map : " This model gives no maps."}`;
  }

  async #explain() {
    const slice = this.slices[this.current];
    if (slice.error) {
      this.viewer.clear();
      if (this.controls) this.controls.hidden = true;
      this.canvas.setAttribute("aria-label", "No picture");
      this.caption.textContent = "This slice could not be read, so it has no picture.";
      return;
    }
    this.canvas.parentElement.dataset.loading = "";
    try {
      const view = await this.#view(slice.frame);
      if (this.slices[this.current] !== slice) return; // the user has moved on
      await this.viewer.load(view);
      if (this.select) this.select.value = slice.label;
      if (this.controls) this.controls.hidden = false;
      this.#draw();
    } catch (error) {
      if (this.slices[this.current] === slice) { // not after the user has moved on to another slice, which has its picture
        const again = element("button", { type: "button", class: "plain", onclick: () => { this.explained = this.#explain(); } }, "Load the picture");
        this.caption.replaceChildren(`The picture was not loaded: ${error.kind === "busy" ? "the service is busy." : error.message} `, again);
      }
      if (!error.kind) throw error;
    } finally {
      delete this.canvas.parentElement.dataset.loading;
    }
  }
}
