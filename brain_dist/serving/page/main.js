// The page: takes files from the user, asks the source for answers, and keeps one card for each file.

import { Card } from "./card.js";
import { element, facts } from "./render.js";
import { Server } from "./server.js";
import { className, percent } from "./words.js";

const AT_ONCE = 2; // files that are asked about at the same time
const TRIES = 20; // while the service is busy
const WANTS_TOKEN = "Waiting for the access token…";

const $ = (id) => document.getElementById(id);
const source = new Server();
const cards = [];
const queue = [];
let model = null;
let active = 0;
let tokenGiven = false;

function say(text) {
  $("status").textContent = text;
}

function banner(text, ...more) {
  $("banner").hidden = !text;
  $("banner").replaceChildren(text, ...more);
}

async function start() {
  $("formats").textContent = source.formats;
  $("where").textContent = source.remote ? "" : "The network is being loaded…";
  try {
    model = await source.describe();
  } catch (error) {
    if (error.kind === "unauthorized") {
      banner(tokenGiven ? "The service does not accept this access token." : "");
      $("access").hidden = false;
      $("token").focus();
      return;
    }
    banner(`${error.message} `, element("button", { type: "button", class: "plain", onclick: start }, "Try again"));
    return;
  }
  banner("");
  $("access").hidden = true;
  $("model").hidden = false;
  $("model").textContent = `${model.name} · ${model.classes.length} classes`;
  $("where").textContent = source.remote ? "Files are sent to this service, which does not store them." : "Files do not leave this browser.";
  $("facts").replaceChildren(...facts(model));
  $("about").hidden = false;
  next();
}

function add(files) {
  for (const file of files) {
    const card = new Card(file, model, source, again);
    cards.push(card);
    queue.push(card);
    $("results").append(card.node);
  }
  if (files.length) document.body.dataset.used = "";
  update();
  next();
}

function again(card) {
  queue.push(card);
  next();
}

function next() {
  while (model && active < AT_ONCE && queue.length) {
    active++;
    ask(queue.shift()).finally(() => {
      active--;
      next();
    });
  }
}

async function ask(card) {
  card.model = model;
  for (let attempt = 1; cards.includes(card); attempt++) {
    if (!model) { // the answer to another file was that a token is needed
      queue.unshift(card);
      card.wait(WANTS_TOKEN);
      break;
    }
    card.wait("Predicting…");
    try {
      if (card.file.size > model.limits.bytes) {
        throw Object.assign(new Error("the file is too large"), { kind: "refused", status: 413 });
      }
      const predictions = await source.predict(card.file, (done, all) => {
        if (all > 1) card.wait(`Predicting slice ${done + 1} of ${all}…`);
      });
      if (!cards.includes(card)) break; // cleared meanwhile
      card.show(predictions);
      const { label, probability } = card.main;
      say(`${card.title.textContent}: ${label ? `${className(label)}, ${percent(probability)}` : "no answer"}`);
      break;
    } catch (error) {
      if (!error.kind) {
        card.refuse({ title: "No answer", message: "This page has failed. Reload it and try again." });
        throw error;
      }
      if (error.kind === "busy" && attempt < TRIES) {
        say("The service is busy; the file is sent again soon.");
        await card.busy(error.seconds);
        continue;
      }
      if (error.kind === "unauthorized") {
        queue.unshift(card);
        model = null;
        card.wait(WANTS_TOKEN);
        start();
        break;
      }
      card.refuse(error);
      say(`${card.title.textContent}: ${error.message}`);
      break;
    }
  }
  update();
}

function update() {
  $("overview").hidden = !cards.length;
  $("count").textContent = cards.length === 1 ? "One file" : `${cards.length} files`;
  $("save").disabled = !cards.some((card) => card.predictions);
}

function save() {
  const { notice, version, name, classes, step, weights, calibrated, coverage } = model;
  const results = cards.filter((card) => card.predictions).map((card) => card.document());
  const content = { notice, created: new Date().toISOString(), version, model: { name, classes, step, weights, calibrated, coverage }, results };
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  element("a", { href: url, download: "predictions.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function clear() {
  for (const card of cards.splice(0)) {
    card.stopWaiting?.();
    card.node.remove();
  }
  queue.length = 0;
  delete document.body.dataset.used;
  update();
  say("Cleared.");
  $("files").focus();
}

$("files").addEventListener("change", ({ target }) => {
  add([...target.files]);
  target.value = "";
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  source.token = $("token").value;
  tokenGiven = true;
  $("token").value = "";
  start();
});
$("save").addEventListener("click", save);
$("print").addEventListener("click", () => window.print());
addEventListener("beforeprint", () => { $("printed").textContent = `Printed ${new Date().toLocaleString()}`; });
$("clear").addEventListener("click", clear);
addEventListener("paste", ({ clipboardData }) => add([...clipboardData.files]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.dataset.dragging = "";
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) delete document.body.dataset.dragging;
});
addEventListener("drop", (event) => {
  event.preventDefault();
  delete document.body.dataset.dragging;
  add([...event.dataTransfer.files]);
});
if (source.remote) {
  addEventListener("offline", () => banner("This computer is offline. Files wait here until it is online again."));
  addEventListener("online", () => start());
}
start();
