// Structure maps as pictures: rows of labels below 2^stage.

// A label's hue lies within its parent's share of the colour circle, so that a map resembles the one before it. Late
// stages have more labels than there are hues to tell apart: the last two bits choose between four lightnesses.
export function colour(label, stage) {
  if (stage === 0) return "oklch(0.65 0.02 260)";
  const hue = 70 + (360 * (label + 0.5)) / 2 ** stage;
  return `oklch(${0.52 + 0.22 * (label & 1) + 0.08 * ((label >> 1) & 1)} 0.12 ${hue})`;
}

export function structureMap(rows, stage) {
  const canvas = document.createElement("canvas");
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

// The map of an earlier stage, from that of stage `last`.
export const mapOfStage = (codes, stage, last) => codes.map((row) => row.map((code) => code >> (last - stage)));
