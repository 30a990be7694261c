// The page: photos come in, cards go up, and everything else follows from the cards.

import { Card } from "./cards.js";
import { openPanel } from "./panel.js";
import { progress } from "./progress.js";
import { Sending } from "./sending.js";
import { tally } from "./tally.js";
import { count } from "./words.js";

const list = document.querySelector("#cards");
const statusLine = document.querySelector("#status");
const stop = document.querySelector("#stop");
const again = document.querySelector("#again");
const everywhere = document.querySelector("#everywhere");
const cards = [];
const sending = new Sending(settled, changed);

function show(files) {
  const added = files.map((file) => new Card(file, changed));
  list.prepend(...added.map(({ element }) => element));
  cards.push(...added);
  sending.add(added);
}

function settled(card, outcome) {
  card.settle(outcome);
  if (everywhere.checked) card.explain(true);
}

// Everything that is about more than one card.
function changed() {
  const open = cards.filter((card) => card.open).length;
  progress(sending);
  tally(cards);
  say(statusLine, sentence(open));
  stop.hidden = !sending.busy || sending.total === 1;
  again.hidden = sending.busy || open === 0;
  again.textContent = open === 1 ? "Try again" : `Try all ${open.toLocaleString("en")} again`;
  everywhere.parentElement.hidden = !cards.some(({ outcome }) => outcome?.evidence);
}

// Screen readers read it aloud, so it changes rarely; the progress bar has the details.
function sentence(open) {
  const { total, busy, held } = sending;
  if (held) return `${held.why} I will try again in ${held.seconds} s.`;
  if (busy) return total === 1 ? "Looking…" : `Looking at ${count(total, "photo")}…`;
  if (open) return `${count(open, "photo")} without an answer.`;
  if (total) return total === 1 ? "Done." : `All ${total.toLocaleString("en")} photos done.`;
  return "";
}

function say(line, text) {
  if (line.textContent !== text) line.textContent = text;
}

stop.addEventListener("click", () => sending.stop());

again.addEventListener("click", () => {
  const open = cards.filter((card) => card.open);
  for (const card of open) card.wait();
  sending.add(open);
});

everywhere.addEventListener("change", () => {
  for (const card of cards) card.explain(everywhere.checked);
});

document.querySelector("#about").addEventListener("click", openPanel);

document.querySelector("#choose").addEventListener("change", (event) => {
  show([...event.target.files]);
  event.target.value = ""; // so that the same photo can be chosen again
});

addEventListener("paste", (event) => show([...event.clipboardData.files]));

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  show([...event.dataTransfer.files]);
});
