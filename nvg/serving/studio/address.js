// The part of the address after #: what a request draws, so that a link makes the same pictures again.

const listsToText = (lists) => lists.map((list) => list.join(".")).join("-");
const textToLists = (text) => text.split("-").map((list) => list.split(".").map(Number));

// A drawing, four cells a hexadecimal digit.
const cellsToText = (rows) => rows.flat().join("").replace(/.{4}/g, (bits) => parseInt(bits, 2).toString(16));

function textToCells(text) {
  const cells = [...text].flatMap((digit) => [8, 4, 2, 1].map((bit) => Number((parseInt(digit, 16) & bit) > 0)));
  const side = Math.sqrt(cells.length);
  return Array.from({ length: side }, (_, row) => cells.slice(row * side, (row + 1) * side));
}

// `compare`: the classes that were drawn in one structure. A drawing is finer than the model's grid, a map is not.
export function write(request, { compare = [], model }) {
  const { prompt, structure, keep_stages: stage, content, ...rest } = request;
  const fields = new URLSearchParams({ class: prompt, ...rest, weights: model.fingerprint });
  if (structure?.length > model.grid) fields.set("drawing", cellsToText(structure));
  else if (structure) {
    fields.set("structure", listsToText(structure));
    fields.set("stage", stage);
  }
  if (content) fields.set("content", listsToText(content));
  for (const name of compare) fields.append("compare", name);
  return `#${fields}`;
}

// `fields` are texts as they stand there; null for an address that is no link of this page.
export function read(hash) {
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  if (!parameters.has("class")) return null;
  const { class: prompt, drawing, structure, stage = 0, content, ...fields } = Object.fromEntries(parameters);
  return {
    prompt,
    fields,
    compare: parameters.getAll("compare"),
    drawing: drawing && textToCells(drawing),
    map: structure && textToLists(structure),
    stage: Number(stage),
    content: content ? textToLists(content) : [],
  };
}
