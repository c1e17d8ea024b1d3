// The brush: a square of cells that are 0 or 1, painted by pointer or keys.

export class Drawing {
  constructor(canvas, side, changed) {
    this.canvas = canvas;
    this.side = side;
    this.changed = changed;
    this.cells = new Uint8Array(side * side);
    this.cursor = null; // [x, y] while the keyboard draws
    this.brush = 3;
    this.erase = false;
    canvas.width = canvas.height = side * 16;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.cursor = null;
      this.last = this.place(event);
      this.stroke(this.last, this.last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const place = this.place(event);
      this.stroke(this.last ?? place, place);
      this.last = place;
    });
    canvas.addEventListener("pointerup", () => changed());
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("blur", () => {
      this.cursor = null;
      this.show();
    });
    this.show();
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

  press(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const clamp = (value) => Math.min(this.side - 1, Math.max(0, value));
    this.cursor ??= [this.side >> 1, this.side >> 1];
    if (event.key in steps) {
      this.cursor = this.cursor.map((value, axis) => clamp(value + steps[event.key][axis]));
    } else if (event.key === " ") {
      this.dot(...this.cursor);
      this.changed();
    } else return;
    event.preventDefault();
    this.show();
  }

  show() {
    const pen = this.canvas.getContext("2d");
    const size = this.canvas.width / this.side;
    this.cells.forEach((cell, index) => {
      pen.fillStyle = cell ? "hsl(270 60% 66%)" : "hsl(90 60% 44%)"; // the colours of stage 1's two labels
      pen.fillRect((index % this.side) * size, Math.floor(index / this.side) * size, size, size);
    });
    if (this.cursor) {
      pen.lineWidth = 4;
      pen.strokeStyle = "#fff";
      pen.strokeRect(this.cursor[0] * size, this.cursor[1] * size, size, size);
    }
  }

  fill(change) {
    this.cells = this.cells.map(change);
    this.show();
    this.changed();
  }

  get rows() {
    return Array.from({ length: this.side }, (_, y) => [...this.cells.slice(y * this.side, (y + 1) * this.side)]);
  }

  // Four cells a hexadecimal digit, for the address.
  textOf(rows) {
    return rows.flat().join("").replace(/.{4}/g, (bits) => parseInt(bits, 2).toString(16));
  }

  set text(digits) {
    const bits = [...digits].map((digit) => parseInt(digit, 16).toString(2).padStart(4, "0")).join("");
    if (bits.length !== this.cells.length || /[^01]/.test(bits)) return;
    this.cells = Uint8Array.from(bits, Number);
    this.show();
  }
}
