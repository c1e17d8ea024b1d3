// Structure maps as pictures: rows of labels below 2^stage.

// A label's colour lies within its parent's share of the colour circle, so that a map resembles the one before it.
function colour(label, stage) {
  if (stage === 0) return "hsl(220 12% 55%)";
  const hue = (360 * (label + 0.5)) / 2 ** stage;
  return `hsl(${hue} 60% ${label % 2 ? 66 : 44}%)`;
}

export function structureMap(rows, stage) {
  const canvas = document.createElement("canvas");
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  canvas.className = "map";
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

// The map of an earlier stage, from the last one's.
export const mapOfStage = (codes, stage, lastStage) => codes.map((row) => row.map((code) => code >> (lastStage - stage)));
