// How many of this session's photos were what, and how often a person said that it was right.

import { count } from "./words.js";

const STATES = ["cats", "dogs", "unsure", "failed"];
const WORDS = {
  cats: (number) => count(number, "cat"),
  dogs: (number) => count(number, "dog"),
  unsure: (number) => `${number.toLocaleString("en")} unsure`,
  failed: (number) => `${number.toLocaleString("en")} unanswered`,
};
const section = document.querySelector("#tally");

/** Count cards and show it; of a single one there is nothing to count. */
export function tally(cards) {
  const states = Object.fromEntries(STATES.map((state) => [state, 0]));
  let [told, right] = [0, 0];
  for (const { state, told: label } of cards) {
    if (state in states) states[state] += 1;
    // Where it was unsure it claimed nothing, so there is nothing to be right about.
    if (label === null || state === "unsure") continue;
    told += 1;
    right += label === state;
  }
  section.hidden = cards.length < 2 || cards.every(({ state }) => state === "waiting");
  for (const state of STATES) {
    show(section.querySelector(`.stripe .${state}`), states[state]);
    const entry = section.querySelector(`li.${state}`);
    entry.hidden = states[state] === 0;
    entry.textContent = WORDS[state](states[state]);
  }
  showChecked(told, right);
}

function showChecked(told, right) {
  const checked = section.querySelector(".checked");
  checked.hidden = told === 0;
  show(checked.querySelector(".right"), right);
  show(checked.querySelector(".wrong"), told - right);
  checked.querySelector("p").textContent = `${right} of ${count(told, "answer")} right, you say`;
}

function show(stripe, number) {
  stripe.hidden = number === 0;
  stripe.style.flexGrow = number;
}
