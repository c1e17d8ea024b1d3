// Structure maps as pictures: rows of labels below 2^stage.

// Two hues for the two halves of stage 1. Each later split moves the children away from their parent's colour, to either
// side, less at every stage: in lightness, then in hue, then in lightness again. So a region stays in its family's hue.
const SPLITS = [["hue", 100], ["lightness", 0.13], ["hue", 26], ["lightness", 0.065], ["hue", 13]];
SPLITS.push(["lightness", 0.03], ["hue", 7], ["chroma", 0.03], ["lightness", 0.012], ["hue", 3]);

export function colour(label, stage) {
  const made = { lightness: 0.67, chroma: stage ? 0.12 : 0.01, hue: 330 };
  for (let split = 1; split <= stage; split++) {
    const [part, size] = SPLITS[split - 1];
    made[part] += (label >> (stage - split)) & 1 ? size : -size;
  }
  return `oklch(${made.lightness.toFixed(3)} ${made.chroma.toFixed(3)} ${made.hue % 360})`;
}

export function paint(canvas, rows, stage) {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `structure map of stage ${stage}`);
  const pen = canvas.getContext("2d");
  rows.forEach((row, y) =>
    row.forEach((label, x) => {
      pen.fillStyle = colour(label, stage);
      pen.fillRect(x, y, 1, 1);
    }),
  );
  return canvas;
}

export const structureMap = (rows, stage) => paint(document.createElement("canvas"), rows, stage);

// The map of an earlier stage, from that of stage `last`.
export const mapOfStage = (codes, stage, last) => codes.map((row) => row.map((code) => code >> (last - stage)));
