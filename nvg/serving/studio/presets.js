// What one click draws: a structure, and several classes in it.

import { element } from "./dom.js";
import { colour } from "./structure.js";

const CLASSES = 4; // of a preset

// Drawings: x and y run from -1 to 1, and the larger half of the values is painted.
const DRAWINGS = {
  Pillar: (x) => -Math.abs(x),
  Belt: (x, y) => -Math.abs(y),
  Disc: (x, y) => -Math.hypot(x, y),
  Diagonal: (x, y) => x + y,
  Checkers: (x, y) => Math.sin(Math.PI * x) * Math.sin(Math.PI * y),
};

// Reference images: of Fashion-MNIST's test set (Zalando Research, MIT licence), images 2, 82, 30 and 123.
const REFERENCES = { Trouser: "trouser", Heel: "heel", Bag: "bag", Boot: "boot" };

// side x side cells of 0 and 1, about half of them 1: of cells that are alike all are painted, or none.
function draw(value, side) {
  const places = Array.from({ length: side }, (_, index) => (2 * index + 1) / side - 1);
  const values = places.map((y) => places.map((x) => value(x, y)));
  const median = values.flat().sort((one, other) => one - other)[side ** 2 / 2];
  return values.map((row) => row.map((each) => Number(each >= median)));
}

// Evenly spaced over all classes, others for every preset.
export function someClasses(all, preset) {
  const count = Math.min(CLASSES, all.length);
  return Array.from({ length: count }, (_, index) => all[(preset + Math.floor((index * all.length) / count)) % all.length]);
}

function thumbnail(rows) {
  const canvas = element("canvas", { width: rows.length, height: rows.length, ariaHidden: "true" });
  const pen = canvas.getContext("2d");
  rows.forEach((row, y) =>
    row.forEach((cell, x) => {
      pen.fillStyle = colour(cell, 1);
      pen.fillRect(x, y, 1, 1);
    }),
  );
  return canvas;
}

// drawn(rows, number) and referred(file, number) act; number: the preset's, for someClasses.
export function fillPresets(list, side, { drawn, referred }) {
  const add = (picture, name, kind, action) => {
    const label = element("span", { textContent: name });
    const button = element("button", { type: "button", ariaLabel: `${kind}: ${name}`, onclick: action }, picture, label);
    list.append(element("li", {}, button));
  };
  for (const [name, value] of Object.entries(DRAWINGS)) {
    const rows = draw(value, side);
    const number = list.children.length;
    add(thumbnail(rows), name, "Drawing", () => drawn(rows, number));
  }
  for (const [name, file] of Object.entries(REFERENCES)) {
    const path = `/studio/references/${file}.png`;
    const number = list.children.length;
    add(element("img", { src: path, alt: "" }), name, "Structure of a picture", async () => {
      const blob = await (await fetch(path)).blob();
      await referred(new File([blob], `${file}.png`, { type: "image/png" }), number);
    });
  }
}
