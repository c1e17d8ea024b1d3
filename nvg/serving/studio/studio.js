// The page: controls -> requests -> stages as they come -> gallery. The address holds what made the last pictures.

import * as api from "./api.js";
import { Drawing } from "./drawing.js";
import { mapOfStage, structureMap } from "./structure.js";

const byId = (id) => document.getElementById(id);
const SETTINGS = {
  structure_guidance: { name: "Structure guidance", step: 0.1, min: 0, max: 20 },
  content_guidance: { name: "Content guidance", step: 0.1, min: 0, max: 20 },
  flow_steps: { name: "Flow steps", step: 1, min: 1, max: 100 },
  top_p: { name: "Top p", step: 0.05, min: 0.05, max: 1 },
  structure_temperature: { name: "Structure temperature", step: 0.1, min: 0, max: 10 },
  content_temperature: { name: "Content temperature", step: 0.1, min: 0.1, max: 10 },
};

let model; // of GET /v1/models
let drawing;
let kept = null; // {map, stage, content}: what an image gives; the map is of `stage`
let running = null; // AbortController of the requests in hand

// ---- controls -> request ----

const mode = () => document.querySelector("input[name=mode]:checked").value;

function setMode(value) {
  document.querySelector(`input[name=mode][value=${value}]`).checked = true;
  for (const name of ["drawn", "kept"]) byId(`panel-${name}`).hidden = name !== value;
}

function settings() {
  const entries = Object.keys(SETTINGS).map((name) => [name, byId(name).value]);
  return Object.fromEntries(entries.filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
}

function given() {
  if (mode() === "drawn") return { structure: drawing.rows, keep_stages: 1 };
  if (mode() !== "kept" || !kept) return {};
  const stage = Number(byId("keep-stages").value);
  const content = Number(byId("keep-content").value);
  return {
    ...(stage && { structure: mapOfStage(kept.map, stage, kept.stage), keep_stages: stage }),
    ...(content && { content: kept.content.slice(0, content) }),
  };
}

const request = () => ({
  prompt: byId("class").value,
  seed: Number(byId("seed").value),
  n: Number(byId("count").value),
  ...settings(),
  ...given(),
});

function keep(map, stage, content) {
  kept = { map, stage, content };
  byId("keep-stages").max = stage;
  byId("keep-stages").value = stage;
  byId("keep-content").value = 0;
  showKept();
  setMode("kept");
}

// Content belongs to clusters: it can be kept of stages whose structure is kept, and of stage 0.
function showKept() {
  const stage = Number(byId("keep-stages").value);
  byId("keep-content").max = Math.min(stage + 1, kept?.content.length ?? 0);
  byId("keep-stages-shown").textContent = stage;
  byId("keep-content-shown").textContent = byId("keep-content").value;
}

// ---- the address ----

const listsToText = (lists) => lists.map((list) => list.join(".")).join("-");
const textToLists = (text) => text.split("-").map((list) => list.split(".").map(Number));

// The address of a request: opened, it makes the same pictures. A drawing is finer than the model's grid, a map is not.
function addressOf({ prompt, seed, n, structure, keep_stages: stage, content, ...rest }) {
  const fields = { class: prompt, seed, n, ...rest };
  if (structure?.length === drawing.side) fields.drawing = drawing.textOf(structure);
  else if (structure) Object.assign(fields, { structure: listsToText(structure), stage });
  if (content) fields.content = listsToText(content);
  return `#${new URLSearchParams(fields)}`;
}

const remember = () => history.replaceState(null, "", addressOf(request()));

function restore(text) {
  const fields = Object.fromEntries(new URLSearchParams(text.replace(/^#/, "")));
  if (!model.nvg.classes.includes(fields.class)) return false;
  byId("class").value = fields.class;
  byId("seed").value = fields.seed ?? 0;
  byId("count").value = fields.n ?? 1;
  for (const name of Object.keys(SETTINGS)) byId(name).value = fields[name] ?? "";
  setMode("generated");
  if (fields.drawing) {
    drawing.text = fields.drawing;
    setMode("drawn");
  } else if (fields.structure || fields.content) {
    const content = fields.content ? textToLists(fields.content) : [];
    const grid = Array.from({ length: model.nvg.grid }, () => Array(model.nvg.grid).fill(0));
    keep(fields.structure ? textToLists(fields.structure) : grid, Number(fields.stage ?? 0), content);
    byId("keep-content").value = content.length;
    showKept();
  }
  return true;
}

// ---- requests -> pictures ----

function fail(error) {
  if (error.name === "AbortError") return say("Stopped.");
  byId("error").textContent = error.message;
  say("");
  if (error.status === 401) {
    byId("key-field").hidden = false;
    byId("key").focus();
  }
}

const say = (text) => (byId("status").textContent = text);

// One call at a time: draws the requests one after another; a function makes the next from the pictures so far.
async function run(requests) {
  running?.abort();
  const mine = (running = new AbortController());
  byId("error").textContent = "";
  byId("stop").disabled = false;
  byId("stages").replaceChildren();
  const made = [];
  try {
    for (const next of requests) made.push(...(await draw(typeof next === "function" ? next(made) : next, mine.signal)));
    say(`Done: ${made.length} ${made.length === 1 ? "picture" : "pictures"}.`);
  } catch (error) {
    if (running === mine || error.name !== "AbortError") fail(error);
  }
  if (running === mine) byId("stop").disabled = true;
}

async function draw(body, signal) {
  const strips = Array.from({ length: body.n }, (_, index) => addStrip(body.prompt, body.seed + index));
  const made = [];
  history.replaceState(null, "", addressOf(body));
  say(`Drawing ${body.prompt}…`);
  for await (const event of api.generate(body, body.n, signal)) {
    const strip = strips[event.nvg.image_index];
    if (event.type.endsWith(".partial_image")) {
      addStage(strip, body.prompt, event);
      say(`${body.prompt}: stage ${event.nvg.stage} of ${model.nvg.last_stage}`);
    } else {
      const address = addressOf({ ...body, seed: event.nvg.seed, n: 1 });
      const picture = { ...event.nvg, source: `data:image/png;base64,${event.b64_json}`, address };
      made.push(picture);
      finish(strip, picture);
      addToGallery(picture);
    }
  }
  return made;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function addStrip(className, seed) {
  const stages = element("ol", { className: "strip" });
  byId("stages").append(
    element("figure", {}, element("figcaption", { textContent: `${className}, seed ${seed}` }), stages),
  );
  return stages;
}

function addStage(strip, className, event) {
  const { stage, structure } = event.nvg;
  const preview = element("img", {
    src: `data:image/png;base64,${event.b64_json}`,
    alt: `${className} after stage ${stage}`,
  });
  strip.append(element("li", {}, structureMap(structure, stage), preview, element("span", { textContent: stage })));
}

function finish(strip, picture) {
  const image = element("img", { src: picture.source, alt: `${picture.class_name}, seed ${picture.seed}` });
  strip.append(element("li", { className: "final" }, image));
}

function addToGallery(picture) {
  const name = `${picture.class_name}, seed ${picture.seed}`;
  const file = `${picture.class_name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}-seed${picture.seed}.png`;
  const button = (label, action) =>
    element("button", { type: "button", textContent: label, ariaLabel: `${label}: ${name}`, onclick: action });
  const useStructure = () => {
    keep(picture.structure, model.nvg.last_stage, picture.content);
    byId("keep-stages").focus();
  };
  const open = () => restore(picture.address) && remember();
  const remove = () => {
    item.remove();
    showGallery();
  };
  const item = element(
    "li",
    {},
    element("img", { src: picture.source, alt: name }),
    element("p", { textContent: name }),
    element("a", { href: picture.source, download: file, textContent: "Download", ariaLabel: `Download: ${name}` }),
    element("div", { className: "row" }, button("Use structure", useStructure), button("Open", open), button("Remove", remove)),
  );
  byId("gallery").prepend(item);
  showGallery();
}

const showGallery = () => (byId("clear-gallery").hidden = !byId("gallery").children.length);

// ---- a reference image ----

async function readReference(file) {
  byId("error").textContent = "";
  if (!file.type.startsWith("image/")) {
    return fail(new api.ApiError(`${file.name} is not an image: drop a picture such as a PNG or JPEG.`, 0));
  }
  say("Reading the reference image…");
  try {
    const seen = await api.encode(file, model.nvg.last_stage, byId("class").value);
    keep(seen.nvg.structure, model.nvg.last_stage, seen.nvg.content);
    const url = URL.createObjectURL(file);
    byId("reference-shown").replaceChildren(
      element("img", { src: url, alt: "the reference image", onload: () => URL.revokeObjectURL(url) }),
      element("img", { src: `data:image/png;base64,${seen.b64_json}`, alt: "the reference as the model sees it" }),
      structureMap(seen.nvg.structure, model.nvg.last_stage),
    );
    say("The reference image is read: choose what to keep of it, then generate.");
  } catch (error) {
    fail(error);
  }
}

// ---- compare classes ----

function compare() {
  const classes = [...byId("compare-classes").selectedOptions].map((option) => option.value);
  if (classes.length < 2) return fail(new api.ApiError("Choose at least two classes to compare.", 0));
  const [first, ...others] = classes.map((prompt) => ({ ...request(), prompt, n: 1 }));
  const last = model.nvg.last_stage;
  const following = others.map((body) => (made) => ({ ...body, structure: made[0].structure, keep_stages: last }));
  run([first, ...(mode() === "generated" ? following : others)]);
}

// ---- setting up ----

function fill() {
  const names = model.nvg.classes;
  for (const id of ["class", "compare-classes"]) byId(id).replaceChildren(...names.map((name) => new Option(name)));
  for (const [name, { name: label, ...limits }] of Object.entries(SETTINGS)) {
    const input = element("input", { id: name, type: "number", placeholder: model.nvg.settings[name], ...limits });
    byId("settings").append(element("label", {}, `${label} `, input));
  }
  byId("count").max = Math.min(8, model.nvg.max_images);
  byId("keep-stages").max = model.nvg.last_stage;
  const { image_size: size, fingerprint } = model.nvg;
  byId("model").textContent = `${model.id}: ${names.length} classes, ${size} × ${size}, ${model.nvg.last_stage + 1} stages, weights ${fingerprint}`;
  // Finer than the model's grid, so that curves can be drawn; the server averages.
  drawing = new Drawing(byId("drawing"), Math.max(16, 2 * model.nvg.grid), remember);
  drawing.cells = drawing.cells.map((_, index) => Number(index % drawing.side < drawing.side / 2));
  drawing.show();
}

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  on("controls", "submit", (event) => {
    event.preventDefault();
    if (mode() === "kept" && !kept) return fail(new api.ApiError("Choose a reference image first.", 0));
    run([request()]);
  });
  on("stop", "click", () => running?.abort());
  on("random-seed", "click", () => {
    byId("seed").value = Math.floor(Math.random() * 2 ** 31) % 2147483640;
    remember();
  });
  on("copy-link", "click", async () => {
    remember();
    await navigator.clipboard.writeText(location.href).then(
      () => say("Link copied."),
      () => say("The browser does not let this page copy: the link is in the address bar."),
    );
  });
  for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => setMode(radio.value));
  on("controls", "change", remember);
  on("brush", "input", () => (drawing.brush = Number(byId("brush").value)));
  on("erase", "change", () => (drawing.erase = byId("erase").checked));
  on("clear-drawing", "click", () => drawing.fill(() => 0));
  on("invert-drawing", "click", () => drawing.fill((cell) => 1 - cell));
  on("reference", "change", () => byId("reference").files[0] && readReference(byId("reference").files[0]));
  on("drop", "dragover", (event) => event.preventDefault());
  on("drop", "drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) readReference(event.dataTransfer.files[0]);
  });
  for (const id of ["keep-stages", "keep-content"]) on(id, "input", showKept);
  on("compare", "click", compare);
  on("reset-settings", "click", () => {
    for (const name of Object.keys(SETTINGS)) byId(name).value = "";
    remember();
  });
  on("clear-gallery", "click", () => {
    byId("gallery").replaceChildren();
    showGallery();
  });
  on("key", "change", () => {
    api.setKey(byId("key").value);
    if (!model) start();
  });
  on("show-keys", "click", () => byId("keys").showModal());
  document.addEventListener("keydown", press);
}

function press(event) {
  if (byId("keys").open) return;
  if (event.key === "Escape") return running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return byId("controls").requestSubmit();
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "g") byId("controls").requestSubmit();
  if (event.key === "r") byId("random-seed").click();
  if (event.key === "?") byId("keys").showModal();
}

async function start() {
  try {
    model = await api.model();
  } catch (error) {
    byId("model").textContent = "No model.";
    return fail(error);
  }
  byId("error").textContent = "";
  fill();
  byId("generate").disabled = false;
  if (location.hash.length > 1 && restore(location.hash)) run([request()]);
}

listen();
start();
