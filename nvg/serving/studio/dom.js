// Elements of the page: found by id, or made.

export const byId = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export const source = (event) => `data:image/png;base64,${event.b64_json}`;
