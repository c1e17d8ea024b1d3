// The brush: a square of cells that are 0 or 1, painted by pointer or keys.

import { colour } from "./structure.js";
import { History } from "./undo.js";

export class Drawing {
  // changed(): cells are others than before. said(text): what somebody who draws with keys should hear.
  constructor(canvas, side, { changed, said }) {
    this.canvas = canvas;
    this.side = side;
    this.changed = changed;
    this.said = said;
    this.cursor = null; // [x, y] while the keyboard draws
    this.brush = 3;
    this.erase = false;
    canvas.width = canvas.height = side * 16;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.keep());
    canvas.addEventListener("keydown", (event) => this.type(event));
    canvas.addEventListener("blur", () => {
      this.cursor = null;
      this.show();
    });
    this.cells = Uint8Array.from({ length: side * side }, (_, index) => Number(index % side >= side / 2));
    this.history = new History(this.cells.slice());
    this.show();
  }

  // The end of a change: from here on undo comes back to it.
  keep() {
    this.history.add(this.cells.slice());
    this.changed();
  }

  undo = () => this.go(-1, "Undone.", "Nothing to undo.");
  redo = () => this.go(1, "Done again.", "Nothing to redo.");

  go(steps, done, none) {
    const cells = this.history.go(steps);
    this.said(cells ? done : none);
    if (!cells) return;
    this.cells = cells.slice();
    this.show();
    this.changed();
  }

  press(event) {
    if (event.button || !event.isPrimary) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.last = this.place(event);
    this.stroke(this.last, this.last);
  }

  drag(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    const place = this.place(event);
    this.stroke(this.last, place);
    this.last = place;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.side - 0.5,
      ((event.clientY - box.top) / box.height) * this.side - 0.5,
    ];
  }

  // Dots along the line, so that a fast stroke has no gaps.
  stroke([x0, y0], [x1, y1]) {
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(x1 - x0, y1 - y0)));
    for (let step = 0; step <= steps; step++) {
      this.dot(x0 + ((x1 - x0) * step) / steps, y0 + ((y1 - y0) * step) / steps);
    }
    this.show();
  }

  dot(x, y) {
    for (let row = 0; row < this.side; row++)
      for (let column = 0; column < this.side; column++)
        if (Math.hypot(column - x, row - y) < this.brush / 2) this.cells[row * this.side + column] = this.erase ? 0 : 1;
  }

  type(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key !== " " && !(event.key in steps)) return;
    event.preventDefault();
    const clamp = (value) => Math.min(this.side - 1, Math.max(0, value));
    this.cursor ??= [this.side >> 1, this.side >> 1];
    if (event.key === " ") {
      this.dot(...this.cursor);
      this.keep();
    } else {
      this.cursor = this.cursor.map((value, axis) => clamp(value + steps[event.key][axis]));
    }
    const [x, y] = this.cursor;
    this.said(`Row ${y + 1}, column ${x + 1}: ${this.cells[y * this.side + x] ? "painted" : "empty"}`);
    this.show();
  }

  show() {
    const pen = this.canvas.getContext("2d");
    const size = this.canvas.width / this.side;
    this.cells.forEach((cell, index) => {
      pen.fillStyle = colour(cell, 1);
      pen.fillRect((index % this.side) * size, Math.floor(index / this.side) * size, size, size);
    });
    if (!this.cursor) return;
    const [x, y] = this.cursor.map((value) => value * size);
    for (const [inset, ink] of [[1, "#000"], [3, "#fff"]]) {
      pen.lineWidth = 2;
      pen.strokeStyle = ink;
      pen.strokeRect(x + inset, y + inset, size - 2 * inset, size - 2 * inset);
    }
  }

  fill(change) {
    this.cells = this.cells.map(change);
    this.show();
    this.keep();
  }

  get rows() {
    return Array.from({ length: this.side }, (_, y) => [...this.cells.slice(y * this.side, (y + 1) * this.side)]);
  }

  // Can be undone, and tells nobody: whoever sets rows knows.
  set rows(rows) {
    this.cells = Uint8Array.from(rows.flat());
    this.history.add(this.cells.slice());
    this.show();
  }
}
