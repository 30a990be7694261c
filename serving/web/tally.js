// How many of this session's photos were what, and how often a person said that it was right. The counts are buttons
// that show only those photos.

import { count } from "./words.js";

const is = (state) => (card) => card.state === state;
export const FILTERS = {
  all: () => true,
  cats: is("cats"),
  dogs: is("dogs"),
  unsure: is("unsure"),
  unreadable: is("unreadable"),
  failed: is("failed"),
  wrong: (card) => card.right === false,
};
const WORDS = {
  all: (number) => count(number, "photo"),
  cats: (number) => count(number, "cat"),
  dogs: (number) => count(number, "dog"),
  failed: (number) => `${number.toLocaleString("en")} unanswered`,
};
const section = document.querySelector("#tally");
const buttons = [...section.querySelectorAll("button")];

/** `chosen(filter)` is called with a name of `FILTERS`. */
export function onFilter(chosen) {
  for (const button of buttons) button.addEventListener("click", () => chosen(button.value));
}

/** Count cards and show it; of a single one there is nothing to count. */
export function tally({ cards, filter }) {
  section.hidden = cards.length < 2 || cards.every(({ state }) => state === "waiting");
  for (const button of buttons) {
    const { value } = button;
    const number = cards.filter(FILTERS[value]).length;
    const stripe = section.querySelector(`.counts .stripe .${value}`);
    if (stripe) show(stripe, number);
    button.textContent = WORDS[value]?.(number) ?? `${number.toLocaleString("en")} ${value}`;
    button.setAttribute("aria-pressed", filter === value);
    button.disabled = number === 0 && filter !== value;
  }
  section.querySelector("button[value=failed]").hidden = !cards.some(FILTERS.failed) && filter !== "failed";
  showChecked(cards);
}

function showChecked(cards) {
  const told = cards.filter(({ right }) => right !== null).length;
  const right = cards.filter((card) => card.right).length;
  show(section.querySelector(".checked .right"), right);
  show(section.querySelector(".checked .wrong"), told - right);
  // Said before there is anything to count, so that the first click moves nothing.
  const words = told ? `${right} of ${count(told, "answer")} right, you say` : "Say below what I got right.";
  section.querySelector(".checked p").textContent = words;
}

function show(stripe, number) {
  stripe.hidden = number === 0;
  stripe.style.flexGrow = number;
}
