// What is drawn, on the page: a strip of stages an image, and the gallery.

import { structureMap } from "./structure.js";

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export const source = (event) => `data:image/png;base64,${event.b64_json}`;

export function newStrip(className, seed) {
  const title = element("figcaption", { textContent: `${className}, seed ${seed}` });
  return element("figure", {}, title, element("ol", { className: "strip" }));
}

export function addStage(strip, className, event) {
  const { stage, structure } = event.nvg;
  const preview = element("img", { src: source(event), alt: `${className} after stage ${stage}` });
  const number = element("span", { textContent: stage });
  strip.querySelector("ol").append(element("li", {}, structureMap(structure, stage), preview, number));
}

export function finishStrip(strip, picture) {
  const image = element("img", { src: picture.source, alt: `${picture.class_name}, seed ${picture.seed}` });
  strip.querySelector("ol").append(element("li", { className: "final" }, image));
  const positions = picture.structure.flat().length;
  const balanced = ` (made equal halves: ${picture.moved} of ${positions} positions moved)`;
  if (picture.moved) strip.querySelector("figcaption").append(balanced);
}

// Latest first. The same picture made again takes the place of the one before.
export function addToGallery(gallery, picture, { use, open }) {
  const name = `${picture.class_name}, seed ${picture.seed}`;
  const file = `${picture.class_name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}-seed${picture.seed}.png`;
  const button = (label, action) =>
    element("button", { type: "button", textContent: label, ariaLabel: `${label}: ${name}`, onclick: action });
  const remove = () => {
    (item.nextElementSibling ?? item.previousElementSibling)?.querySelector("a").focus(); // not lost with the item
    item.remove();
  };
  const item = element(
    "li",
    {},
    element("img", { src: picture.source, alt: name }),
    element("p", { textContent: name }),
    element("a", { href: picture.source, download: file, textContent: "Download", ariaLabel: `Download: ${name}` }),
    element("div", { className: "row" }, button("Use structure", use), button("Open", open), button("Remove", remove)),
  );
  item.dataset.address = picture.address;
  [...gallery.children].find((other) => other.dataset.address === picture.address)?.remove();
  gallery.prepend(item);
}
