// The pictures of this session.

import { element } from "./dom.js";

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
