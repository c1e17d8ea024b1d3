// The pictures being drawn, stage by stage, and the timeline that goes through the stages of all of them at once.

import { byId, element, source } from "./dom.js";
import { paint, structureMap } from "./structure.js";

const PLAY_MS = 700; // per stage

// One picture: its map and its preview at the timeline's stage, and below them those of all stages.
class Strip {
  constructor(className, seed, { chosen }) {
    this.className = className;
    this.chosen = chosen; // chosen(stage): somebody pointed at a stage
    this.map = element("canvas");
    this.picture = element("img");
    this.list = element("ol", { className: "strip" });
    this.stages = []; // {structure, source}
    const now = element("div", { className: "now" }, this.map, this.picture);
    const title = element("figcaption", { textContent: `${className}, seed ${seed}` });
    this.figure = element("figure", { hidden: true }, title, now, this.list);
  }

  get latest() {
    return this.stages.length - 1;
  }

  add(event) {
    const { stage, structure } = event.nvg;
    const preview = element("img", { src: source(event), alt: `${this.className} after stage ${stage}` });
    const number = element("span", { textContent: stage });
    const item = element("li", {}, structureMap(structure, stage), preview, number);
    item.addEventListener("click", () => this.chosen(stage)); // the slider does the same for keys
    this.list.append(item);
    this.stages.push({ structure, source: preview.src });
    this.figure.hidden = false;
  }

  finish(picture, last) {
    this.stages[last].source = picture.source; // the PNG that holds its own request
    this.stages[last].finished = picture;
  }

  show(stage) {
    const at = Math.min(stage, this.latest);
    if (at < 0) return;
    const { structure, source: shown, finished } = this.stages[at];
    paint(this.map, structure, at);
    this.map.setAttribute("aria-label", `${this.className}: structure map, stage ${at}`);
    this.picture.src = shown;
    this.picture.alt = finished ? `${this.className}, seed ${finished.seed}` : `${this.className}: preview, stage ${at}`;
    [...this.list.children].forEach((item, index) => item.classList.toggle("shown", index === at));
    this.figure.classList.toggle("final", Boolean(finished));
  }
}

export class Stages {
  constructor(last) {
    this.last = last;
    this.strips = [];
    this.stage = 0;
    this.slider = byId("stage");
    this.slider.max = last;
    this.slider.addEventListener("input", () => this.choose(Number(this.slider.value)));
    byId("play").addEventListener("click", () => this.play());
  }

  // Strips for pictures {className, seed}. They take the place of the ones before when the first stage arrives.
  begin(pictures) {
    this.pause();
    this.follows = true; // the latest stage is shown, until somebody chooses one
    const chosen = (stage) => this.choose(stage);
    this.coming = pictures.map(({ className, seed }) => new Strip(className, seed, { chosen }));
    return this.coming;
  }

  add(strip, event) {
    if (this.strips !== this.coming) {
      this.strips = this.coming;
      byId("stages").classList.toggle("many", this.strips.length > 1);
      byId("stages").replaceChildren(...this.strips.map((each) => each.figure));
    }
    strip.add(event);
    if (this.follows) this.show(Math.max(...this.strips.map((each) => each.latest)));
    else strip.show(this.stage);
  }

  finish(strip, picture) {
    strip.finish(picture, this.last);
    strip.show(this.stage);
  }

  show(stage) {
    this.stage = Math.max(0, Math.min(this.last, stage));
    this.slider.value = this.stage;
    const regions = 2 ** this.stage;
    const text = `Stage ${this.stage} of ${this.last}: ${regions} ${regions === 1 ? "region" : "regions"}`;
    byId("stage-shown").textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
    for (const strip of this.strips) strip.show(this.stage);
  }

  choose(stage) {
    this.pause();
    this.follows = false;
    this.show(stage);
  }

  // From the first stage to the last; again: a pause.
  play() {
    if (this.playing) return this.pause();
    this.follows = false;
    byId("play").textContent = "Pause";
    this.show(this.stage === this.last ? 0 : this.stage);
    this.playing = setInterval(() => {
      this.show(this.stage + 1);
      if (this.stage === this.last) this.pause();
    }, PLAY_MS);
  }

  pause() {
    clearInterval(this.playing);
    this.playing = null;
    byId("play").textContent = "Play";
  }
}
