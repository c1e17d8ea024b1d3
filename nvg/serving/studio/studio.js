// The page: form -> requests -> stages as they come -> gallery. It opens on a picture: the link's, or the first class's.

import * as address from "./address.js";
import * as api from "./api.js";
import { Controls } from "./controls.js";
import { byId, element, source } from "./dom.js";
import { addToGallery } from "./gallery.js";
import { fillPresets, someClasses } from "./presets.js";
import { Stages } from "./stages.js";

let model; // what GET /v1/models tells of it
let controls;
let stages;
let running = null; // AbortController of the requests in hand

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
  if (controls.mode === "kept" && !controls.kept) return tell("Choose a reference image first.");
  controls.remember();
  if (byId("stages").getBoundingClientRect().bottom < 0) byId("stages-section").scrollIntoView(); // on a phone
  return run();
}

// The page stays where it is, for the next stroke.
function drawn() {
  controls.remember();
  if (byId("live").checked) run();
}

function done(made) {
  const [{ moved, structure }] = made;
  const halves = moved ? ` The server moved ${moved} of ${structure.flat().length} positions to make equal halves.` : "";
  return `Done: ${made.length} ${made.length === 1 ? "picture" : "pictures"}.${halves}`;
}

// Draws what the form says. A run ends the one before.
async function run() {
  running?.abort();
  const mine = (running = new AbortController());
  tell("");
  byId("stop").disabled = false;
  try {
    const made = await (controls.chosen.length > 1 ? drawClasses(mine.signal) : drawOne(mine.signal));
    if (running === mine) say(done(made));
  } catch (error) {
    mine.abort(); // the other requests of this run
    if (running === mine || error.name !== "AbortError") fail(error);
  }
  if (running === mine) byId("stop").disabled = true;
}

// One class: all images in one request; image j has seed + j.
function drawOne(signal) {
  const body = controls.request;
  const [{ label: className }] = controls.chosen;
  const images = Array.from({ length: body.n }, (_, index) => ({ className, seed: body.seed + index }));
  return draw(body, stages.begin(images), signal);
}

// Several classes: a request for each image, as all of a row have one seed. A structure that nothing gives is the first
// class's.
async function drawClasses(signal) {
  const { n, ...body } = controls.request;
  const classes = controls.chosen;
  const rows = Array.from({ length: n }, (_, index) => body.seed + index);
  const strips = stages.begin(rows.flatMap((seed) => classes.map(({ label }) => ({ className: label, seed }))));
  const made = [];
  for (const [row, seed] of rows.entries()) {
    const one = (column, given = {}) =>
      draw({ ...body, ...given, prompt: classes[column].prompt, seed, n: 1 }, [strips[row * classes.length + column]], signal);
    const [first] = await one(0);
    const given = body.structure ? {} : { structure: first.structure, keep_stages: model.last_stage };
    const others = await Promise.all(classes.slice(1).map((_, index) => one(index + 1, given)));
    made.push(first, ...others.flat());
  }
  return made;
}

async function draw(body, strips, signal) {
  const made = [];
  const [{ className }] = strips;
  say(`Drawing ${className}…`);
  for await (const event of api.generate(body, signal)) {
    const strip = strips[event.nvg.image_index];
    if (event.type.endsWith(".partial_image")) {
      stages.add(strip, event);
      say(`${className}: stage ${event.nvg.stage} of ${model.last_stage}`);
    } else {
      const itself = address.write({ ...body, seed: event.nvg.seed, n: 1 }, { model });
      const picture = { ...event.nvg, source: source(event), address: itself };
      made.push(picture);
      stages.finish(strip, picture);
      addToGallery(byId("gallery"), picture, { use: () => useStructure(picture), open: () => open(picture) });
    }
  }
  return made;
}

function useStructure(picture) {
  const image = element("img", { src: picture.source, alt: "the picture whose structure is kept" });
  controls.keep(picture.structure, model.last_stage, picture.content, [image]);
  controls.remember();
  byId("keep-stages").focus();
}

function open(picture) {
  controls.restore(address.read(picture.address));
  controls.remember();
}

// ---- a reference image ----

async function readReference(file) {
  tell("");
  if (!file.type.startsWith("image/")) {
    return tell(`${file.name} is not an image: drop a picture such as a PNG or JPEG.`);
  }
  say("Reading the reference image…");
  try {
    const seen = await api.encode(file, model.last_stage, controls.request.prompt);
    const url = URL.createObjectURL(file);
    controls.keep(seen.nvg.structure, model.last_stage, seen.nvg.content, [
      element("img", { src: url, alt: "the reference image", onload: () => URL.revokeObjectURL(url) }),
      element("img", { src: source(seen), alt: "the reference as the model sees it" }),
    ]);
    controls.remember();
    say("The reference image is read: choose what to keep of it, then generate.");
    return true;
  } catch (error) {
    fail(error);
  }
}

// Anywhere on the page: a browser would leave the page for a file that misses its place, and the gallery be lost.
function dropped(event) {
  event.preventDefault();
  if (!model || !event.dataTransfer.files[0]) return;
  controls.mode = "kept";
  readReference(event.dataTransfer.files[0]);
}

// ---- presets and links ----

const presets = {
  drawn(rows, number) {
    controls.chosen = someClasses(controls.classes, number);
    controls.drawing.rows = rows;
    controls.mode = "drawn";
    generate();
  },
  async referred(file, number) {
    controls.chosen = someClasses(controls.classes, number);
    if (await readReference(file)) generate();
  },
};

// Draws what a link says; an address without one: what the form says.
async function follow(hash) {
  const link = address.read(hash);
  if (!link) return run();
  try {
    controls.restore(link);
  } catch (error) {
    return fail(error);
  }
  const { weights = model.fingerprint } = link.fields;
  const drawn = generate();
  if (weights !== model.fingerprint) tell("The link was made with other weights: the picture may be another one.");
  await drawn;
}

async function copyLink() {
  controls.remember();
  await navigator.clipboard.writeText(location.href).then(
    () => say("Link copied."),
    () => say("The browser does not let this page copy: the link is in the address bar."),
  );
}

// ---- keys ----

function press(event) {
  if (byId("keys").open) return;
  const { key, target } = event;
  const command = event.ctrlKey || event.metaKey;
  if (key === "Escape") return running?.abort();
  if (key === "Enter" && command) {
    event.preventDefault(); // or a button with the focus would be pressed too
    return generate();
  }
  const typing = target.closest("input:not([type=radio], [type=checkbox], [type=range])");
  if (command && !event.altKey && !typing && controls?.mode === "drawn") {
    const letter = key.toLowerCase();
    const action = { z: event.shiftKey ? "redo" : "undo", y: "redo" }[letter];
    if (action) event.preventDefault();
    if (action) controls.drawing[action]();
  }
  if (target.closest("input") || command || event.altKey) return;
  if (key === "g") generate();
  if (key === "r") byId("random-seed").click();
  if (key === "p") stages?.play();
  if (key === "?") byId("keys").showModal();
  if (key === "ArrowLeft" || key === "ArrowRight") arrow(event);
}

// The drawing takes arrows for itself.
function arrow(event) {
  if (!stages || event.target.closest("canvas")) return;
  event.preventDefault();
  stages.choose(stages.stage + (event.key === "ArrowLeft" ? -1 : 1));
}

// ---- setting up ----

function describe({ id, classes, image_size: size, last_stage: last, fingerprint, licence }) {
  const facts = [`${classes.length} classes`, `${size} × ${size}`, `${last + 1} stages`, `weights ${fingerprint}`];
  if (licence) facts.push(`licence: ${licence}`);
  byId("model").textContent = `${id}: ${facts.join(", ")}`;
  document.body.classList.toggle("small-images", size <= 128);
}

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  on("controls", "submit", (event) => {
    event.preventDefault();
    generate();
  });
  on("stop", "click", () => running?.abort());
  on("copy-link", "click", copyLink);
  on("reference", "change", () => byId("reference").files[0] && readReference(byId("reference").files[0]));
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

async function start() {
  try {
    const served = await api.model();
    model = { id: served.id, ...served.nvg };
  } catch (error) {
    byId("model").textContent = "No model.";
    return fail(error);
  }
  tell("");
  describe(model);
  stages = new Stages(model.last_stage);
  controls = new Controls(model, { said: say, drawn });
  fillPresets(byId("presets"), controls.drawing.side, presets);
  follow(location.hash);
}

listen();
start();
