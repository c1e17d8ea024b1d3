// The page: controls -> requests -> stages as they come -> gallery. The address holds what made the last pictures.

import * as address from "./address.js";
import * as api from "./api.js";
import { Drawing } from "./drawing.js";
import { addStage, addToGallery, element, finishStrip, newStrip, source } from "./pictures.js";
import { mapOfStage, structureMap } from "./structure.js";

const byId = (id) => document.getElementById(id);
const MANY_CLASSES = 20; // from here on a list needs a search
const SETTINGS = {
  structure_guidance: { name: "Structure guidance", step: 0.1, min: 0, max: 20 },
  content_guidance: { name: "Content guidance", step: 0.1, min: 0, max: 20 },
  flow_steps: { name: "Flow steps", step: 1, min: 1, max: 100 },
  flow_shift: { name: "Flow shift", step: 0.1, min: 0, max: 5 },
  top_p: { name: "Top p", step: 0.05, min: 0.05, max: 1 },
  structure_temperature: { name: "Structure temperature", step: 0.1, min: 0, max: 10 },
  content_temperature: { name: "Content temperature", step: 0.1, min: 0.1, max: 10 },
};

let model; // what GET /v1/models tells of it
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

function keep(map, stage, content, pictures = []) {
  kept = { map, stage, content };
  byId("keep-stages").max = stage;
  byId("keep-stages").value = stage;
  byId("keep-content").value = 0;
  byId("reference-shown").replaceChildren(...pictures, element("span", { id: "kept-map" }));
  showKept();
  setMode("kept");
}

// Content belongs to clusters: it can be kept of stages whose structure is kept, and of stage 0.
function showKept() {
  const stage = Number(byId("keep-stages").value);
  byId("keep-content").max = Math.min(stage + 1, kept?.content.length ?? 0);
  byId("keep-stages-shown").textContent = stage;
  byId("keep-content-shown").textContent = byId("keep-content").value;
  if (kept) byId("kept-map").replaceChildren(structureMap(mapOfStage(kept.map, stage, kept.stage), stage));
}

const comparedClasses = () => [...byId("compare-classes").selectedOptions].map((option) => option.value);

const list = (id, names, chosen) =>
  byId(id).replaceChildren(...names.map((name) => new Option(name, name, false, chosen.includes(name))));

// The lists hold the classes that the search finds; what was chosen to compare stays.
function findClasses() {
  const text = byId("find-class").value.trim().toLowerCase();
  const found = model.classes.filter((name) => name.toLowerCase().includes(text));
  if (!found.length) return say("No class has this in its name.");
  const compared = comparedClasses();
  list("class", found, [byId("class").value]);
  list("compare-classes", [...new Set([...compared, ...found])], compared);
  if (text) say(`${found.length} ${found.length === 1 ? "class" : "classes"} found.`);
}

// ---- the address ----

const remember = (compare) => history.replaceState(null, "", address.write(request(), { compare, model }));

// The controls as a link says. Throws an Error for what this model cannot draw.
function restore(link) {
  if (!model.classes.includes(link.prompt)) {
    throw new Error(`The link is for a class that this model lacks: ${link.prompt}.`);
  }
  if (link.drawing && link.drawing.flat().length !== drawing.side ** 2) {
    throw new Error("The link's drawing is for a model of another grid.");
  }
  byId("find-class").value = "";
  findClasses();
  byId("class").value = link.prompt;
  byId("seed").value = link.fields.seed ?? 0;
  byId("count").value = link.fields.n ?? 1;
  for (const name of Object.keys(SETTINGS)) byId(name).value = link.fields[name] ?? "";
  for (const option of byId("compare-classes").options) option.selected = link.compare.includes(option.value);
  byId("comparison").open ||= link.compare.length > 0;
  setMode("generated");
  if (link.drawing) {
    drawing.rows = link.drawing;
    setMode("drawn");
  } else if (link.map || link.content.length) {
    const oneCluster = Array.from({ length: model.grid }, () => Array(model.grid).fill(0));
    keep(link.map ?? oneCluster, link.stage, link.content);
    byId("keep-content").value = link.content.length;
    showKept();
  }
}

function follow(hash) {
  const link = address.read(hash);
  if (!link) return;
  try {
    restore(link);
  } catch (error) {
    return fail(error);
  }
  if (link.compare.length) compare();
  else generate();
  const { weights = model.fingerprint } = link.fields;
  if (weights !== model.fingerprint) tell("The link was made with other weights: the picture may be another one.");
}

// ---- what is said ----

const say = (text) => (byId("status").textContent = text);
const tell = (text) => (byId("error").textContent = text);

function fail(error) {
  if (error.name === "AbortError") return say("Stopped.");
  tell(error.message);
  say("");
  if (error.status === 401) {
    byId("key-field").hidden = false;
    byId("key").focus();
  }
}

// ---- requests -> pictures ----

function generate() {
  if (!model) return;
  if (mode() === "kept" && !kept) return tell("Choose a reference image first.");
  run([request()]);
}

// A request a class, not one of them all: image j of a request would have seed + j.
function compare() {
  const classes = comparedClasses();
  if (classes.length < 2) return tell("Choose at least two classes to compare.");
  if (mode() === "kept" && !kept) return tell("Choose a reference image first.");
  const [first, ...others] = classes.map((prompt) => ({ ...request(), prompt, n: 1 }));
  const last = model.last_stage;
  const following = others.map((body) => (made) => ({ ...body, structure: made[0].structure, keep_stages: last }));
  run([first, ...(mode() === "generated" ? following : others)], classes);
}

// Draws requests one after another; a function makes the next one from the pictures so far. A run ends the one before.
async function run(requests, compared = []) {
  running?.abort();
  const mine = (running = new AbortController());
  tell("");
  remember(compared);
  byId("stop").disabled = false;
  byId("stages").replaceChildren();
  byId("stages").classList.toggle("columns", compared.length > 0);
  const made = [];
  try {
    for (const next of requests) {
      made.push(...(await draw(typeof next === "function" ? next(made) : next, mine.signal)));
    }
    say(`Done: ${made.length} ${made.length === 1 ? "picture" : "pictures"}.`);
  } catch (error) {
    if (running === mine || error.name !== "AbortError") fail(error);
  }
  if (running === mine) byId("stop").disabled = true;
}

async function draw(body, signal) {
  const strips = [];
  const made = [];
  say(`Drawing ${body.prompt}…`);
  for await (const event of api.generate(body, signal)) {
    const index = event.nvg.image_index;
    if (!strips[index]) {
      strips[index] = newStrip(body.prompt, body.seed + index);
      byId("stages").append(strips[index]);
    }
    if (event.type.endsWith(".partial_image")) {
      addStage(strips[index], body.prompt, event);
      say(`${body.prompt}: stage ${event.nvg.stage} of ${model.last_stage}`);
    } else {
      const itself = address.write({ ...body, seed: event.nvg.seed, n: 1 }, { model });
      const picture = { ...event.nvg, source: source(event), address: itself };
      made.push(picture);
      finishStrip(strips[index], picture);
      addToGallery(byId("gallery"), picture, { use: () => useStructure(picture), open: () => open(picture) });
    }
  }
  return made;
}

function useStructure(picture) {
  const image = element("img", { src: picture.source, alt: "the picture whose structure is kept" });
  keep(picture.structure, model.last_stage, picture.content, [image]);
  remember();
  byId("keep-stages").focus();
}

function open(picture) {
  restore(address.read(picture.address));
  remember();
}

// ---- a reference image ----

async function readReference(file) {
  tell("");
  if (!file.type.startsWith("image/")) {
    return tell(`${file.name} is not an image: drop a picture such as a PNG or JPEG.`);
  }
  say("Reading the reference image…");
  try {
    const seen = await api.encode(file, model.last_stage, byId("class").value);
    const url = URL.createObjectURL(file);
    keep(seen.nvg.structure, model.last_stage, seen.nvg.content, [
      element("img", { src: url, alt: "the reference image", onload: () => URL.revokeObjectURL(url) }),
      element("img", { src: source(seen), alt: "the reference as the model sees it" }),
    ]);
    remember();
    say("The reference image is read: choose what to keep of it, then generate.");
  } catch (error) {
    fail(error);
  }
}

// ---- setting up ----

function fill() {
  const { classes, image_size: size, last_stage: last, fingerprint, licence } = model;
  for (const id of ["class", "compare-classes"]) list(id, classes, []);
  byId("find-class-field").hidden = classes.length <= MANY_CLASSES;
  for (const [name, { name: label, ...limits }] of Object.entries(SETTINGS)) {
    const input = element("input", { id: name, type: "number", placeholder: model.settings[name], ...limits });
    byId("settings").append(element("label", {}, `${label} `, input));
  }
  byId("count").max = Math.min(8, model.max_images);
  byId("keep-stages").max = last;
  const facts = [`${classes.length} classes`, `${size} × ${size}`, `${last + 1} stages`, `weights ${fingerprint}`];
  if (licence) facts.push(`licence: ${licence}`);
  byId("model").textContent = `${model.id}: ${facts.join(", ")}`;
  document.body.classList.toggle("small-images", size <= 128);
  // Finer than the model's grid, so that curves can be drawn; the server averages.
  drawing = new Drawing(byId("drawing"), Math.max(16, 2 * model.grid), { changed: remember, said: say });
  for (const waiting of document.querySelectorAll("#controls [disabled]:not(#stop)")) waiting.disabled = false;
}

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  on("controls", "submit", (event) => {
    event.preventDefault();
    generate();
  });
  on("stop", "click", () => running?.abort());
  on("random-seed", "click", () => {
    byId("seed").value = Math.floor(Math.random() * 2147483640);
    remember();
  });
  on("copy-link", "click", async () => {
    if (!location.hash) remember();
    await navigator.clipboard.writeText(location.href).then(
      () => say("Link copied."),
      () => say("The browser does not let this page copy: the link is in the address bar."),
    );
  });
  on("find-class", "input", findClasses);
  for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => setMode(radio.value));
  // Choosing classes to compare changes nothing that Generate draws.
  on("controls", "change", (event) => model && event.target.id !== "compare-classes" && remember());
  on("brush", "input", () => (drawing.brush = Number(byId("brush").value)));
  on("erase", "change", () => (drawing.erase = byId("erase").checked));
  on("clear-drawing", "click", () => drawing.fill(() => 0));
  on("invert-drawing", "click", () => drawing.fill((cell) => 1 - cell));
  on("reference", "change", () => byId("reference").files[0] && readReference(byId("reference").files[0]));
  for (const id of ["keep-stages", "keep-content"]) on(id, "input", showKept);
  on("compare-classes", "mousedown", toggleClass);
  on("compare", "click", compare);
  on("reset-settings", "click", () => {
    for (const name of Object.keys(SETTINGS)) byId(name).value = "";
    remember();
  });
  on("clear-gallery", "click", () => byId("gallery").replaceChildren());
  on("key", "change", () => {
    api.setKey(byId("key").value);
    if (!model) start();
  });
  on("show-keys", "click", () => byId("keys").showModal());
  document.addEventListener("keydown", press);
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", dropped);
  addEventListener("hashchange", () => model && follow(location.hash)); // a link pasted over this page's own address
}

// Anywhere on the page: a browser would leave the page for a file that misses its place, and the gallery be lost.
function dropped(event) {
  event.preventDefault();
  if (!model || !event.dataTransfer.files[0]) return;
  setMode("kept");
  readReference(event.dataTransfer.files[0]);
}

// A plain click takes a class in or out, as a checkbox would; a list by itself asks for Ctrl.
function toggleClass(event) {
  if (event.target.tagName !== "OPTION" || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const place = byId("compare-classes").scrollTop;
  event.target.selected = !event.target.selected;
  byId("compare-classes").focus();
  byId("compare-classes").scrollTop = place;
}

function press(event) {
  if (byId("keys").open) return;
  if (event.key === "Escape") return running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault(); // or a button with the focus would be pressed too
    return generate();
  }
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "g") generate();
  if (event.key === "r") byId("random-seed").click();
  if (event.key === "?") byId("keys").showModal();
}

async function start() {
  try {
    const served = await api.model();
    model = { id: served.id, ...served.nvg };
  } catch (error) {
    byId("model").textContent = "No model.";
    return fail(error);
  }
  tell("");
  fill();
  follow(location.hash);
}

listen();
start();
