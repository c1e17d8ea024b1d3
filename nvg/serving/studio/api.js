// Requests to the server, and what can go wrong with them, in words.

let key = sessionStorage.getItem("nvg-key") ?? "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("nvg-key", value);
}

class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it running?", 0);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  let message = body?.error?.message ?? `The server answered ${answer.status}.`;
  if (answer.status === 401) {
    const reason = key ? "The server does not know this API key" : "This server asks for an API key";
    message = `${reason}: enter it above, then try again.`;
  }
  if (answer.status === 429) {
    message = `The server is busy: try again in ${answer.headers.get("Retry-After") ?? "a few"} s.`;
  }
  throw new ApiError(message, answer.status);
}

export async function model() {
  return (await (await send("/v1/models")).json()).data[0];
}

// One image that keeps all of a reference: what the model sees of it, with its structure and content. From then on
// these are what is sent, and what a link holds; the file is not needed again.
export async function encode(file, lastStage, className) {
  const form = new FormData();
  const fields = { prompt: className, seed: 0, keep_stages: lastStage, keep_content: lastStage + 1 };
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  form.append("image", file);
  return (await (await send("/v1/images/edits", { method: "POST", body: form })).json()).data[0];
}

// Events of a stream, as they come: {type, b64_json, nvg, ...}. Ends after `n` completed images.
export async function* generate(request, signal) {
  const answer = await send("/v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let completed = 0;
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection broke off in the middle. Try again.", 0);
    });
    if (done) break;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data:"));
      if (!data) continue; // a comment, which proxies may add to keep a connection open
      const event = JSON.parse(data.slice(5));
      if (event.error) throw new ApiError(event.error.message, 500);
      completed += event.type.endsWith(".completed");
      yield event;
    }
  }
  if (completed < request.n) throw new ApiError("The answer ended before all images had come. Try again.", 0);
}
