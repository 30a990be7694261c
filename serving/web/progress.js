// How far the sending of many photos is.

import { count, span } from "./words.js";

const RECENT = 5; // seconds that the pace is taken from

const section = document.querySelector("#progress");
const bar = section.querySelector("progress");
const text = section.querySelector("p");
let marks = []; // [seconds, photos done] of late

/** Show it for a Sending; of one photo there is nothing to see. */
export function progress({ total, done, busy }) {
  section.hidden = !busy || total === 1;
  if (!busy) marks = [];
  if (section.hidden) return;
  const now = performance.now() / 1000;
  marks.push([now, done]);
  while (marks.length > 2 && marks[1][0] < now - RECENT) marks.shift();
  const [then, before] = marks[0];
  const pace = (done - before) / (now - then);
  bar.max = total;
  bar.value = done;
  const parts = [`${done.toLocaleString("en")} of ${count(total, "photo")}`];
  if (pace > 0) parts.push(`${pace < 10 ? pace.toFixed(1) : Math.round(pace)} a second`, `${span((total - done) / pace)} left`);
  text.textContent = parts.join(" · ");
}
