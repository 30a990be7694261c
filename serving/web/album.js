// The cards on the page: which are shown, in which order; taken away, and brought back.

import { FILTERS } from "./tally.js";

const list = document.querySelector("#cards");
const order = new Intl.Collator("en", { numeric: true });
const ORDERS = {
  newest: () => 0,
  name: (one, other) => order.compare(one.path, other.path),
  doubt: (one, other) => one.sureness - other.sureness,
};

export class Album {
  cards = []; // the newest first
  cleared = []; // those that `bringBack` brings back
  filter = "all";
  #order = "newest";

  add(added) {
    this.cards.unshift(...added);
    this.cleared = [];
    this.show("all");
    this.arrange();
  }

  /** Those that are shown, in their order. */
  get shown() {
    return this.#sorted().filter(({ element }) => !element.hidden);
  }

  show(filter) {
    this.filter = filter;
    for (const card of this.cards) this.judge(card);
  }

  /** Show a card or not. What a person says of it does not take it away under their hands. */
  judge(card) {
    card.element.hidden = !FILTERS[this.filter](card);
  }

  arrange(order = this.#order) {
    this.#order = order;
    let next = list.firstElementChild;
    for (const { element } of this.#sorted()) {
      // One that is moved loses the keyboard's focus.
      if (element === next) next = next.nextElementSibling;
      else list.insertBefore(element, next);
    }
  }

  clear() {
    [this.cards, this.cleared] = [[], this.cards];
    list.replaceChildren();
  }

  bringBack() {
    this.add(this.cleared);
  }

  #sorted() {
    return this.cards.toSorted(ORDERS[this.#order]);
  }
}
