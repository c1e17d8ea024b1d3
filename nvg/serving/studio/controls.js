// The form: what a request draws, and the form as a link says.

import * as address from "./address.js";
import { ClassChips, ClassSearch, find, options } from "./classes.js";
import { byId, element } from "./dom.js";
import { Drawing } from "./drawing.js";
import { mapOfStage, structureMap } from "./structure.js";

const SETTINGS = {
  structure_guidance: { name: "Structure guidance", step: 0.1, min: 0, max: 20 },
  content_guidance: { name: "Content guidance", step: 0.1, min: 0, max: 20 },
  flow_steps: { name: "Flow steps", step: 1, min: 1, max: 100 },
  flow_shift: { name: "Flow shift", step: 0.1, min: 0, max: 5 },
  top_p: { name: "Top p", step: 0.05, min: 0.05, max: 1 },
  structure_temperature: { name: "Structure temperature", step: 0.1, min: 0, max: 10 },
  content_temperature: { name: "Content temperature", step: 0.1, min: 0.1, max: 10 },
};

export class Controls {
  // model: what GET /v1/models tells of it. said(text): what happened. drawn(): a stroke has ended, or was undone.
  constructor(model, { said, drawn }) {
    this.model = model;
    this.classes = options(model.classes);
    this.kept = null; // {map, stage, content}: what an image gives; the map is of `stage`
    const changed = () => this.remember();
    this.also = new ClassChips(byId("also"), { changed, emptied: () => byId("add-class").focus() });
    this.first = new ClassSearch(byId("class"), byId("class-list"), this.classes, { chosen: changed, said });
    const add = (option) => {
      this.also.add(option);
      adding.set(undefined);
    };
    const adding = new ClassSearch(byId("add-class"), byId("add-class-list"), this.classes, { chosen: add, said });
    this.first.set(this.classes[0]);
    // Finer than the model's grid, so that curves can be drawn; the server averages.
    this.drawing = new Drawing(byId("drawing"), Math.max(16, 2 * model.grid), { changed: drawn, said });
    this.fill();
    this.listen();
  }

  fill() {
    for (const [name, { name: label, ...limits }] of Object.entries(SETTINGS)) {
      const input = element("input", { id: name, type: "number", placeholder: this.model.settings[name], ...limits });
      byId("settings").append(element("label", {}, `${label} `, input));
    }
    byId("count").max = Math.min(8, this.model.max_images);
    byId("keep-stages").max = this.model.last_stage;
    for (const waiting of document.querySelectorAll("#controls [disabled]:not(#stop)")) waiting.disabled = false;
  }

  listen() {
    const on = (id, event, action) => byId(id).addEventListener(event, action);
    const { drawing } = this;
    on("controls", "change", (event) => event.target.role !== "combobox" && this.remember());
    on("random-seed", "click", () => {
      byId("seed").value = Math.floor(Math.random() * 2147483640);
      this.remember();
    });
    for (const radio of document.getElementsByName("mode")) {
      radio.addEventListener("change", () => (this.mode = radio.value));
    }
    on("brush", "input", () => (drawing.brush = Number(byId("brush").value)));
    on("erase", "change", () => (drawing.erase = byId("erase").checked));
    on("undo", "click", drawing.undo);
    on("redo", "click", drawing.redo);
    on("clear-drawing", "click", () => drawing.fill(() => 0));
    on("invert-drawing", "click", () => drawing.fill((cell) => 1 - cell));
    for (const id of ["keep-stages", "keep-content"]) on(id, "input", () => this.showKept());
    on("reset-settings", "click", () => {
      for (const name of Object.keys(SETTINGS)) byId(name).value = "";
      this.remember();
    });
  }

  // ---- controls -> request ----

  get mode() {
    return document.querySelector("input[name=mode]:checked").value;
  }

  set mode(value) {
    document.querySelector(`input[name=mode][value=${value}]`).checked = true;
    for (const name of ["drawn", "kept"]) byId(`panel-${name}`).hidden = name !== value;
  }

  // {label, prompt} of all classes that are drawn.
  get chosen() {
    return [this.first.value, ...this.also.chosen.filter((option) => option !== this.first.value)];
  }

  set chosen([first, ...others]) {
    this.first.set(first);
    this.also.set(others);
  }

  get request() {
    const settings = Object.keys(SETTINGS).map((name) => [name, byId(name).value]);
    return {
      prompt: this.first.value.prompt,
      seed: Number(byId("seed").value),
      n: Number(byId("count").value),
      ...Object.fromEntries(settings.filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)])),
      ...this.given(),
    };
  }

  given() {
    if (this.mode === "drawn") return { structure: this.drawing.rows, keep_stages: 1 };
    if (this.mode !== "kept" || !this.kept) return {};
    const stage = Number(byId("keep-stages").value);
    const content = Number(byId("keep-content").value);
    return {
      ...(stage && { structure: mapOfStage(this.kept.map, stage, this.kept.stage), keep_stages: stage }),
      ...(content && { content: this.kept.content.slice(0, content) }),
    };
  }

  // ---- what an image gives ----

  keep(map, stage, content, pictures = []) {
    this.kept = { map, stage, content };
    byId("keep-stages").max = stage;
    byId("keep-stages").value = stage;
    byId("keep-content").value = 0;
    byId("reference-shown").replaceChildren(...pictures, element("span", { id: "kept-map" }));
    this.showKept();
    this.mode = "kept";
  }

  // Content belongs to clusters: it can be kept of stages whose structure is kept, and of stage 0.
  showKept() {
    const stage = Number(byId("keep-stages").value);
    byId("keep-content").max = Math.min(stage + 1, this.kept?.content.length ?? 0);
    byId("keep-stages-shown").textContent = stage;
    byId("keep-content-shown").textContent = byId("keep-content").value;
    if (!this.kept) return;
    byId("kept-map").replaceChildren(structureMap(mapOfStage(this.kept.map, stage, this.kept.stage), stage));
  }

  // ---- the address ----

  // The address holds what the form would draw.
  remember() {
    const prompts = this.chosen.map(({ prompt }) => prompt);
    const compare = prompts.length > 1 ? prompts : [];
    history.replaceState(null, "", address.write(this.request, { compare, model: this.model }));
  }

  // The form as a link says (address.read). Throws an Error for what this model cannot draw.
  restore(link) {
    const prompts = link.compare.length ? link.compare : [link.prompt];
    const chosen = prompts.map((prompt) => find(this.classes, prompt));
    const missing = prompts.find((_, index) => !chosen[index]);
    if (missing !== undefined) throw new Error(`The link is for a class that this model lacks: ${missing}.`);
    if (link.drawing && link.drawing.flat().length !== this.drawing.side ** 2) {
      throw new Error("The link's drawing is for a model of another grid.");
    }
    this.chosen = chosen;
    byId("seed").value = link.fields.seed ?? 0;
    byId("count").value = link.fields.n ?? 1;
    for (const name of Object.keys(SETTINGS)) byId(name).value = link.fields[name] ?? "";
    this.mode = "generated";
    if (link.drawing) {
      this.drawing.rows = link.drawing;
      this.mode = "drawn";
    } else if (link.map || link.content.length) {
      const { grid } = this.model;
      const oneCluster = Array.from({ length: grid }, () => Array(grid).fill(0));
      this.keep(link.map ?? oneCluster, link.stage, link.content);
      byId("keep-content").value = link.content.length;
      this.showKept();
    }
  }
}
