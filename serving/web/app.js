// The page: photos come in, cards go up, and everything else follows from the cards.

import { Album } from "./album.js";
import { Card } from "./cards.js";
import { save } from "./csv.js";
import { dropped, photos } from "./files.js";
import { openPanel } from "./panel.js";
import { progress } from "./progress.js";
import { Sending } from "./sending.js";
import { asset } from "./service.js";
import { onFilter, tally } from "./tally.js";
import { count } from "./words.js";

const find = (id) => document.querySelector(`#${id}`);
const [statusLine, stop, again, undo, everywhere] = ["status", "stop", "again", "undo", "everywhere"].map(find);
const [tools, sort] = ["tools", "sort"].map(find);
const album = new Album();
const sending = new Sending(settled, changed);

function add(found) {
  if (!found.length) return say(statusLine, "I found no photos there.");
  const cards = found.map((photo) => new Card(photo, changed));
  album.add(cards);
  sending.add(cards);
}

function settled(card, outcome) {
  card.settle(outcome);
  if (everywhere.checked) card.explain(true);
  album.judge(card);
}

// Everything that is about more than one card.
function changed() {
  const { cards } = album;
  const open = cards.filter((card) => card.open).length;
  progress(sending);
  tally(album);
  say(statusLine, sentence(open));
  stop.hidden = !sending.busy || sending.total === 1;
  again.hidden = sending.busy || open === 0;
  again.textContent = open === 1 ? "Try again" : `Try all ${open.toLocaleString("en")} again`;
  undo.hidden = album.cleared.length === 0;
  tools.hidden = cards.length === 0;
  everywhere.parentElement.hidden = !cards.some(({ outcome }) => outcome?.evidence);
  if (!sending.busy && sort.value === "doubt") album.arrange();
}

// Screen readers read it aloud, so it changes rarely; the progress bar has the details.
function sentence(open) {
  const { total, busy, held } = sending;
  if (album.cleared.length) return `${count(album.cleared.length, "photo")} cleared.`;
  if (held) return `${held.why} I will try again in ${held.seconds} s.`;
  if (busy) return total === 1 ? "Looking…" : `Looking at ${count(total, "photo")}…`;
  if (open) return `${count(open, "photo")} without an answer.`;
  if (total) return total === 1 ? "Done." : `All ${total.toLocaleString("en")} photos done.`;
  return "";
}

function say(line, text) {
  if (line.textContent !== text) line.textContent = text;
}

function on(element, event, act) {
  element.addEventListener(event, act);
}

on(stop, "click", () => sending.stop());

on(again, "click", () => {
  const open = album.cards.filter((card) => card.open);
  for (const card of open) card.wait();
  album.show("all");
  sending.add(open);
});

on(everywhere, "change", () => {
  for (const card of album.cards) card.explain(everywhere.checked);
});

onFilter((filter) => {
  album.show(filter);
  changed();
});

on(sort, "change", () => album.arrange(sort.value));

on(find("export"), "click", () => save(album.shown));

on(find("clear"), "click", () => {
  if (sending.busy) sending.stop();
  album.clear();
  changed();
  undo.focus();
});

on(undo, "click", () => {
  album.bringBack();
  changed();
  find("clear").focus();
});

on(find("about"), "click", openPanel);

for (const chooser of ["choose", "folder"].map(find)) {
  on(chooser, "change", () => {
    add(photos(chooser.files));
    chooser.value = ""; // so that the same photo can be chosen again
  });
}

for (const example of document.querySelectorAll(".examples button")) {
  on(example, "click", async () => {
    const photo = await asset(example.value).catch(({ message }) => say(statusLine, message));
    if (photo) add(photos([new File([photo], example.value, { type: photo.type })]));
  });
}

on(window, "paste", ({ clipboardData: { files } }) => files.length && add(photos(files)));

on(window, "dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
on(window, "dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
on(window, "drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.items.length) add(await dropped(event.dataTransfer));
});
