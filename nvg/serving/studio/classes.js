// Classes, of which there may be thousands: a text field that searches them (ARIA's combobox), and a row of chosen ones.

import { element } from "./dom.js";

// {label, prompt} of each class. A name that several classes have is no prompt: their index is.
export function options(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return names.map((name, index) =>
    name && counts.get(name) === 1 ? { label: name, prompt: name } : { label: `${name} (${index})`, prompt: `${index}` },
  );
}

// By its prompt, or by its index; undefined for a class that the model lacks.
export const find = (all, prompt) =>
  all.find((option) => option.prompt === prompt) ?? (/^\d+$/.test(prompt) ? all[Number(prompt)] : undefined);

// What contains the text, beginning with those that begin with it.
function matches(all, text) {
  const sought = text.trim().toLowerCase();
  const found = all.filter((option) => option.label.toLowerCase().includes(sought));
  const begins = (option) => Number(!option.label.toLowerCase().startsWith(sought));
  return found.sort((one, other) => begins(one) - begins(other));
}

export class ClassSearch {
  // chosen(option) when one is chosen by hand. The field shows `value` when nobody types in it.
  constructor(input, list, all, { chosen, said }) {
    Object.assign(this, { input, list, all, chosen, said, value: undefined, found: [] });
    input.addEventListener("focus", () => input.select());
    input.addEventListener("click", () => this.open(""));
    input.addEventListener("input", () => this.open(input.value));
    input.addEventListener("keydown", (event) => this.type(event));
    input.addEventListener("blur", () => this.leave());
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    list.addEventListener("click", (event) => {
      const item = event.target.closest("[role=option]");
      if (item) this.choose(this.found[[...list.children].indexOf(item)]);
    });
  }

  set(option) {
    this.value = option;
    this.input.value = option?.label ?? "";
  }

  open(text) {
    this.searching = true;
    this.found = matches(this.all, text);
    this.list.replaceChildren(
      ...this.found.map(({ label }, index) =>
        element("li", { id: `${this.list.id}-${index}`, role: "option", textContent: label }),
      ),
    );
    this.list.hidden = !this.found.length;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
    const count = this.found.length;
    if (text) this.said(count ? `${count} ${count === 1 ? "class" : "classes"} found.` : "No class has this in its name.");
    this.point(text ? 0 : Math.max(0, this.found.indexOf(this.value)));
  }

  close() {
    this.searching = false;
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  point(index) {
    this.at = index;
    [...this.list.children].forEach((item, other) => item.setAttribute("aria-selected", String(other === index)));
    const item = this.list.children[index];
    if (!item) return this.input.removeAttribute("aria-activedescendant");
    this.input.setAttribute("aria-activedescendant", item.id);
    item.scrollIntoView({ block: "nearest" });
  }

  choose(option) {
    this.set(option);
    this.close();
    this.chosen(option);
  }

  type(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (!this.searching) this.open("");
      else if (this.found.length) this.point((this.at + step + this.found.length) % this.found.length);
    } else if (this.searching && event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
      event.preventDefault(); // not the form's
      if (this.found.length) this.choose(this.found[this.at]);
    } else if (this.searching && event.key === "Escape") {
      event.stopPropagation(); // closes the list, and stops no drawing
      this.close();
      this.set(this.value);
    }
  }

  // A whole name that was typed counts as chosen; anything else falls back to what was chosen before.
  leave() {
    const typed = this.input.value.trim().toLowerCase();
    const option = this.all.find(({ label }) => label.toLowerCase() === typed);
    this.close();
    if (option && option !== this.value) this.choose(option);
    else this.set(this.value);
  }
}

// Classes in a row, each with a button that takes it out.
export class ClassChips {
  constructor(list, { changed, emptied }) {
    Object.assign(this, { list, changed, emptied, chosen: [] });
  }

  set(chosen) {
    this.chosen = [...new Set(chosen)];
    this.list.replaceChildren(
      ...this.chosen.map((option) => {
        const properties = { type: "button", textContent: "×", ariaLabel: `Remove ${option.label}` };
        const button = element("button", { ...properties, onclick: () => this.remove(option) });
        return element("li", {}, option.label, button);
      }),
    );
  }

  add(option) {
    this.set([...this.chosen, option]);
    this.changed();
  }

  remove(option) {
    const place = this.chosen.indexOf(option);
    this.set(this.chosen.filter((other) => other !== option));
    const next = this.list.children[Math.min(place, this.chosen.length - 1)];
    if (next) next.querySelector("button").focus(); // not lost with the chip
    else this.emptied();
    this.changed();
  }
}
