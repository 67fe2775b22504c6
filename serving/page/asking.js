/** Requests to the server that sent this page (docs/serving.md has their shapes). */

/** What the server, or the way to it, answered instead of an answer; `field` names the wrong input where it is one. */
export class Refusal extends Error {
  constructor(message, { code = "", field = "", retryAfter = "" } = {}) {
    super(message);
    Object.assign(this, { code, field, retryAfter });
  }
}

let key = "";

/** Bring a key with every request from now on. */
export function useKey(value) {
  key = value;
}

/** Return what the server tells of its models and limits. */
export async function info(language) {
  const response = await reached("/info", { headers: { "Accept-Language": language } });
  return arrived((await checked(response)).json());
}

/** Return the reply to instances: `{predictions, timing_ms, ...}`. */
export async function predict(model, body, options) {
  return arrived((await checked(await reached(address(model), request(body, options)))).json());
}

/** Yield the events of a generation as they come, each an object; the last has `done`, or the way was cut. */
export async function* stream(model, body, options) {
  const response = await checked(await reached(address(model), request({ ...body, stream: true }, options)));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await arrived(reader.read());
    if (done) throw new Refusal("", { code: "unreachable" });
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const event = checkedEvent(JSON.parse(line.slice(5)));
      yield event;
      if (event.done) return;
    }
  }
}

/** Return the same request as a command line; a key is not written into it. */
export function curl(model, body) {
  const quoted = JSON.stringify(body).replaceAll("'", String.raw`'\''`);
  const authorization = key ? ' -H "Authorization: Bearer $DIVAN_KEY"' : "";
  const headers = `-H 'Content-Type: application/json'${authorization}`;
  return `curl -s '${new URL(address(model), location.href)}' ${headers} -d '${quoted}'`;
}

const address = (model) => `/v1/models/${encodeURIComponent(model)}:predict`;

function request(body, { language, signal }) {
  const headers = { "Content-Type": "application/json", "Accept-Language": language };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

function reached(path, options) {
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  return arrived(fetch(path, { ...options, headers }));
}

/** Return what a promise of the network brings; a way that is cut is a refusal. */
async function arrived(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("", { code: "unreachable" });
  }
}

async function checked(response) {
  if (response.ok) return response;
  const { error = {} } = await response.json().catch(() => ({}));
  const retryAfter = response.headers.get("Retry-After") ?? "";
  throw new Refusal(error.message || `HTTP ${response.status}`, { ...error, retryAfter });
}

function checkedEvent(event) {
  if (event.error) throw new Refusal(event.error.message, event.error);
  return event;
}
