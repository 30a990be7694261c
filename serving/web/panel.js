// What this model is: GET /model, for people.

import { model } from "./service.js";
import { count, percent } from "./words.js";

const dialog = document.querySelector("#model");
const fault = dialog.querySelector(".fault");
const facts = dialog.querySelector(".facts");

/** Open the panel and fill it with what the service says now. */
export async function openPanel() {
  if (!dialog.open) dialog.showModal();
  facts.hidden = true;
  say(fault, "Asking…");
  try {
    fill(await model());
    say(fault, "");
    facts.hidden = false;
  } catch (refusal) {
    say(fault, refusal.message);
  }
}

function fill({ version, precision, file, fallback, unsure, provenance, test, production, hard }) {
  put("version", version);
  put("file", file);
  put("precision", precision === "int8" ? "8-bit integers (int8)" : "32-bit floats (fp32)");
  put("fallback", fallback ? `In place of the int8 file: ${fallback}` : "");
  put("close-call", percent(unsure.close_call));
  put("unfamiliar", percent(unsure.unfamiliar));
  fillProvenance(provenance);
  dialog.querySelector(".measured").hidden = test === null;
  if (test) fillTest(test);
  put("production", production ? `Of what users sent, picked by chance: ${rightOf(production)}.` : "");
  put("hard", hard ? `Of what it was unsure of, or users disputed: ${rightOf(hard)}.` : "");
}

function fillProvenance({ created, registry, git_commit: commit, mlflow_run_id: run, dataset_digest: data }) {
  put("created", new Date(created).toLocaleDateString("en", { dateStyle: "long" }));
  put("registry", registry ?? "not promoted from the registry");
  put("commit", commit.replace(/^([0-9a-f]{10})[0-9a-f]+/, "$1").replace("-dirty", ", with changes not committed"));
  put("run", run.slice(0, 10));
  put("data", data.slice(0, 10));
}

function fillTest({ pictures, accuracy, audited, log_loss: loss, confusion }) {
  put("accuracy", percent(accuracy.value));
  put("pictures", count(pictures, "photo"));
  put("interval", between(accuracy));
  put("audited", audited ? `With wrong labels corrected: ${percent(audited.value)}, ${between(audited)}.` : "");
  put("log-loss", loss.toFixed(4));
  showInterval(accuracy);
  const cells = dialog.querySelectorAll(".confusion tbody td");
  confusion.flat().forEach((number, place) => {
    cells[place].textContent = number.toLocaleString("en");
    cells[place].className = place % 3 === 0 ? "right" : "wrong";
  });
}

function rightOf({ pictures, accuracy }) {
  return `${percent(accuracy.value)} of ${count(pictures, "photo")} right, ${between(accuracy)}`;
}

function between({ low, high }) {
  return `between ${percent(low)} and ${percent(high)}`;
}

// On a scale up to no mistake at all, wide enough for the interval to be seen.
function showInterval({ value, low, high }) {
  const start = low > 0.95 ? 0.95 : 0.5;
  const at = (share) => (100 * Math.max(0, share - start)) / (1 - start);
  put("start", start === 0.5 ? "50 %, a guess" : `${start * 100} %`);
  const range = dialog.querySelector(".scale i");
  const point = dialog.querySelector(".scale b");
  range.style.left = `${at(low)}%`;
  range.style.width = `${at(high) - at(low)}%`;
  point.style.left = `${at(value)}%`;
}

function put(name, text) {
  for (const place of dialog.querySelectorAll(`[data-fact="${name}"]`)) say(place, text);
}

function say(element, text) {
  element.textContent = text;
  element.hidden = text === "";
}

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop
});
