// Requests to the service, and messages for its errors.

const PATIENCE = 60_000; // milliseconds; the service itself gives up on a picture much sooner
const SOON = 5_000;
const SLOWEST = 32_000; // bytes per second; the service ends an upload that is slower
const FOR_GOOD = [400, 403, 404, 405, 413, 415, 421, 422]; // a retry would get the same answer
const PASSING = [0, 408, 429, 503]; // a retry may succeed
const UNREACHABLE = "The service cannot be reached. Is it still running?";
const IN_WORDS = {
  undecodable_image: "This picture is damaged or incomplete.",
  image_too_large: "This picture has too many pixels.",
  too_costly: "This picture takes too long to read.",
  body_too_large: "This file is too large.",
  unauthorized: "The service requires a key. Reload this page to enter it.",
  overloaded: "Too many people are asking right now.",
  deadline_exceeded: "It took too long.",
  draining: "The service is restarting.",
  not_ready: "The service is still getting ready.",
  slow_request: "The upload took too long.",
  unknown_prediction: "This service did not answer for this photo.",
};

/** A request without a result: `message` is for people. Status 0 means that no answer arrived. */
export class Refusal extends Error {
  constructor(message, status = 0, retryAfter = 1) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }

  get forGood() {
    return FOR_GOOD.includes(this.status);
  }

  get passing() {
    return PASSING.includes(this.status);
  }
}

/** For each file, in order, its prediction or a Refusal. */
export async function predict(files, signal) {
  const body = new FormData();
  let size = 0;
  for (const file of files) {
    body.append("file", file);
    size += file.size;
  }
  const options = { method: "POST", body, signal, patience: PATIENCE + (1000 * size) / SLOWEST };
  if (files.length === 1) return [await ask("predict?explain=true", options)];
  const { results } = await ask("predict/batch?explain=true", options);
  return results.map((result) => (result.error ? refusal(result.error, result.error.status) : result));
}

/** Null, or a Refusal of a file that the browser cannot read. */
export function unreadable(file) {
  return file.slice(0, 1).arrayBuffer().then(
    () => null,
    () => new Refusal("This file cannot be read. It may be a folder, or it has been moved.", 400),
  );
}

/** Tell the service what a photo really shows; says whether the prediction was right. */
export function tell(id, label) {
  const headers = { "Content-Type": "application/json" };
  return ask("feedback", { method: "POST", headers, body: JSON.stringify({ id, label }) });
}

/** The contract of the model that answers. */
export function model() {
  return ask("model");
}

/** Whether the service answers soon. */
export function alive(signal) {
  return ask("health", { signal, patience: SOON }).then(
    () => true,
    () => false,
  );
}

/** A file of the page's own, as a blob. */
export async function asset(name) {
  const answer = await fetch(address(`assets/${name}`)).catch(() => ({ ok: false }));
  if (!answer.ok) throw new Refusal(UNREACHABLE);
  return answer.blob();
}

// The page's own address may have a key in it, with which nothing can be fetched.
function address(path) {
  return new URL(path, location.origin + location.pathname);
}

async function ask(path, { signal, patience = PATIENCE, ...options } = {}) {
  const enough = AbortSignal.timeout(patience);
  let response;
  try {
    response = await fetch(address(path), { ...options, signal: signal ? AbortSignal.any([signal, enough]) : enough });
    if (response.ok) return await response.json();
  } catch {
    throw new Refusal(UNREACHABLE);
  }
  const problem = await response.json().catch(() => ({}));
  throw refusal(problem, response.status, Number(response.headers.get("Retry-After")) || undefined);
}

function refusal({ code, detail }, status, retryAfter) {
  const said = detail ?? `the service answered with error ${status}`;
  return new Refusal(IN_WORDS[code] ?? `${said[0].toUpperCase()}${said.slice(1)}.`, status, retryAfter);
}
