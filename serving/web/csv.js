// The answers as a table for spreadsheets.

import { Refusal } from "./service.js";

const COLUMNS = ["photo", "verdict", "unsure_because", "cats", "dogs", "familiarity", "feedback", "id", "model", "error"];

/** Have the browser save what these cards say. */
export function save(cards) {
  const rows = [COLUMNS, ...cards.map(row)].map((cells) => cells.map(cell).join(",") + "\r\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", ...rows], { type: "text/csv" }));
  link.download = "cats-or-dogs.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function row({ path, outcome, told }) {
  if (outcome === null || outcome instanceof Refusal) return [path, ...Array(8).fill(""), outcome?.message ?? ""];
  const { verdict, unsure_because: because, probabilities, familiarity, id, model } = outcome;
  return [path, verdict, because ?? "", probabilities.cats, probabilities.dogs, familiarity, told ?? "", id, model, ""];
}

function cell(value) {
  // A spreadsheet would compute a file name that begins like a formula.
  const text = String(value).replace(/^[=+\-@\t\r]/, "'$&");
  return `"${text.replaceAll('"', '""')}"`;
}
