// Requests to the service, and messages for its errors.

const PATIENCE = 60_000; // milliseconds; the service itself gives up on a picture much sooner
const FOR_GOOD = [400, 403, 404, 405, 413, 415, 421, 422]; // a retry would get the same answer
const PASSING = [0, 408, 429, 503]; // a retry may succeed
const UNREACHABLE = "The service cannot be reached. Is it still running?";
const IN_WORDS = {
  unsupported_format: "This is not a picture I can read. JPEG, PNG, WebP, GIF, BMP and AVIF work.",
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
  unknown_prediction: "The service no longer remembers this photo.",
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

/** The prediction for one file. */
export function predict(file, signal) {
  const body = new FormData();
  body.append("file", file);
  return ask("predict?explain=true", { method: "POST", body, signal });
}

/** For each file, in order, its prediction or a Refusal. */
export async function predictBatch(files, signal) {
  const read = await Promise.all(files.map(base64));
  const images = read.filter((data) => data !== null).map((data) => ({ data }));
  const { results } = await post("predict/batch?explain=true", { images }, signal);
  return read.map((data) => {
    if (data === null) return new Refusal("This file cannot be read. It may be a folder, or it has been moved.", 400);
    const result = results.shift();
    return result.error ? refusal(result.error, result.error.status) : result;
  });
}

/** Tell the service what a photo really shows; says whether the prediction was right. */
export function tell(id, label) {
  return post("feedback", { id, label });
}

/** The contract of the model that answers. */
export function model() {
  return ask("model");
}

/** Whether the service answers. */
export async function alive() {
  return ask("health").then(
    () => true,
    () => false,
  );
}

function post(path, message, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(message), signal });
}

async function ask(path, { signal, ...options } = {}) {
  const patience = AbortSignal.timeout(PATIENCE);
  let response;
  try {
    response = await fetch(path, { ...options, signal: signal ? AbortSignal.any([signal, patience]) : patience });
    if (response.ok) return await response.json();
  } catch {
    throw new Refusal(UNREACHABLE);
  }
  const problem = await response.json().catch(() => ({}));
  throw refusal(problem, response.status, Number(response.headers.get("Retry-After")) || undefined);
}

function refusal({ code, detail }, status, retryAfter) {
  return new Refusal(IN_WORDS[code] ?? detail ?? `The service answered with error ${status}.`, status, retryAfter);
}

// The bytes of a file, or null where the browser cannot read it.
function base64(file) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1] ?? "");
    reader.onerror = () => resolve(null);
    reader.readAsDataURL(file);
  });
}
