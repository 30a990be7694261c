// One card for each photo: the photo, the answer, why, and whether it was right.

import { draw } from "./evidence.js";
import { Refusal, tell } from "./service.js";
import { enlarge } from "./viewer.js";
import { percent } from "./words.js";

const VERDICTS = { cats: "It’s a cat", dogs: "It’s a dog", unsure: "I’m unsure" };
const BECAUSE = {
  close_call: "It is too close between the two for me to say.",
  unfamiliar: "It does not look like a cat or dog I know.",
};
const OTHER = { cats: "dogs", dogs: "cats" };
const SHOWN = { cats: "a cat", dogs: "a dog", neither: "neither", both: "both" };

const SPOKEN = {
  canvas: "Red where it looks like a cat, blue where it looks like a dog",
  ".enlarge": "Enlarge",
  ".why-button": "Show why",
  ".feedback": "What does the photo show?",
};

const template = document.querySelector("#card");
const ofElement = new WeakMap();
// Only cards in sight or near it hold a photo and a drawing, so memory does not grow with their number.
const sight = new IntersectionObserver(
  (entries) => entries.forEach(({ target, isIntersecting }) => ofElement.get(target).look(isIntersecting)),
  { rootMargin: "100% 0px" },
);

export class Card {
  state = "waiting"; // then "cats", "dogs", "unsure", "unreadable", or "failed"
  told = null; // what a person says it shows: "cats", "dogs", "neither" or "both"
  outcome = null; // a prediction or a Refusal
  #inSight = false;
  #broken = false; // whether the browser cannot show the photo
  #shown = Promise.resolve(); // the photo, or the browser's failure to show it
  #leave = () => {}; // no longer wait for it
  #chosen = null; // the feedback button that counts, while one is on its way

  /** `changed()` is called when a person has told the service what the photo shows. */
  constructor({ file, path }, changed) {
    this.file = file;
    this.path = path;
    this.changed = changed;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.picture = this.find("img");
    this.picture.alt = file.name;
    this.find(".name").textContent = file.name;
    this.find(".name").title = path;
    this.find(".enlarge").addEventListener("click", () => enlarge(this));
    this.whyButton = this.find(".why-button");
    this.whyButton.addEventListener("click", () => this.explain(!this.explained));
    for (const button of this.element.querySelectorAll(".feedback button")) {
      button.addEventListener("click", () => this.#tell(button));
    }
    for (const [selector, words] of Object.entries(SPOKEN)) this.#speak(this.find(selector), words);
    this.wait();
    ofElement.set(this.element, this);
    sight.observe(this.element);
  }

  // To a screen reader, a card's parts have its photo's name.
  #speak(element, words) {
    element.setAttribute("aria-label", `${words}: ${this.file.name}`);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  get explained() {
    return this.element.classList.contains("explained");
  }

  /** Whether asking again may bring an answer. */
  get open() {
    return this.state === "failed";
  }

  /** Whether the answer was right, as a person says; null where it claimed nothing, or they said nothing. */
  get right() {
    return this.told === null || this.state === "unsure" ? null : this.told === this.state;
  }

  /** From the least sure answer, 0, to those without any, 2. */
  get sureness() {
    if (!this.outcome?.verdict) return 2;
    const { unsure_because: because, probabilities } = this.outcome;
    return because === "unfamiliar" ? 0 : Math.max(probabilities.cats, probabilities.dogs);
  }

  wait() {
    this.#show("waiting", "Looking…", "");
  }

  /** Show a prediction or a Refusal. */
  settle(outcome) {
    this.outcome = outcome;
    if (!(outcome instanceof Refusal)) this.#answer(outcome);
    else if (outcome.forGood) this.#show("unreadable", "Unreadable", outcome.message);
    else this.#show("failed", "No answer", outcome.message);
  }

  #show(state, title, why) {
    this.state = state;
    this.element.dataset.state = state;
    this.find("h2").textContent = title;
    this.#speak(this.find("h2"), title);
    this.find(".why").textContent = why;
  }

  #answer({ verdict, unsure_because: because, probabilities: { cats, dogs } }) {
    this.#show(verdict, VERDICTS[verdict], BECAUSE[because] ?? "");
    // Which of the two it would be more likely says nothing where it looks like neither.
    this.find(".likely").hidden = because === "unfamiliar";
    this.find(".bar .cats").style.width = `${cats * 100}%`;
    this.find(".bar .dogs").style.width = `${dogs * 100}%`;
    this.#speak(this.find(".bar"), `cat ${percent(cats)}, dog ${percent(dogs)}`);
    this.find(".shares .cats").textContent = `cat ${percent(cats)}`;
    this.find(".shares .dogs").textContent = `dog ${percent(dogs)}`;
    this.whyButton.hidden = false;
    const unsure = verdict === "unsure";
    const labels = [...(unsure ? ["cats", "dogs"] : [verdict, OTHER[verdict]]), "neither", "both"];
    const words = [...(unsure ? [VERDICTS.cats, VERDICTS.dogs] : ["Right", "Wrong"]), "Neither", "Both"];
    this.find(".thanks").textContent = unsure ? "What is it?" : "Was I right?";
    this.element.querySelectorAll(".feedback button").forEach((button, place) => {
      button.value = labels[place];
      button.textContent = words[place];
      this.#speak(button, words[place]);
    });
    this.find(".feedback").hidden = false;
  }

  /** Show the evidence over the photo, or no longer. */
  explain(explained) {
    if (!this.outcome?.evidence) return;
    this.element.classList.toggle("explained", explained);
    this.whyButton.setAttribute("aria-pressed", explained);
    this.#draw();
  }

  /** Hold the photo and its drawing while the card is in sight. */
  look(inSight) {
    this.#inSight = inSight;
    if (!inSight) {
      this.picture.removeAttribute("src");
      this.#leave();
    } else if (!this.#broken && !this.picture.hasAttribute("src")) {
      const url = URL.createObjectURL(this.file);
      this.#shown = new Promise((resolve) => {
        this.#leave = this.picture.onload = resolve;
        this.picture.onerror = () => resolve(this.#giveUp());
      }).then(() => URL.revokeObjectURL(url));
      this.picture.src = url;
    }
    this.#draw();
  }

  // A word in place of the browser's broken picture.
  #giveUp() {
    this.#broken = true;
    this.picture.hidden = this.find(".enlarge").hidden = true;
    this.find(".no-preview").hidden = false;
  }

  async #draw() {
    await this.#shown;
    const canvas = this.find("canvas");
    if (this.explained && this.#inSight) {
      draw(canvas, this.outcome.evidence, this.picture.naturalWidth, this.picture.naturalHeight);
    } else {
      canvas.width = canvas.height = 0;
    }
  }

  async #tell(button) {
    const busy = this.#chosen;
    this.#chosen = button;
    if (busy) return; // it is sent when the other one has been noted
    do {
      button = this.#chosen;
      if (button.value !== this.told) await this.#send(button);
    } while (button !== this.#chosen);
    this.#chosen = null;
    this.changed();
  }

  async #send(button) {
    const thanks = this.find(".thanks");
    button.setAttribute("aria-busy", "true");
    try {
      const { label, correct } = await tell(this.outcome.id, button.value);
      this.told = label;
      for (const one of this.element.querySelectorAll(".feedback button")) {
        one.setAttribute("aria-pressed", one.value === label);
      }
      const mine = this.state !== "unsure";
      thanks.textContent = mine && !correct ? `Thank you. So it is ${SHOWN[label]}.` : "Thank you.";
      thanks.classList.remove("fault");
    } catch (refusal) {
      thanks.textContent = `Not noted. ${refusal.message}`;
      thanks.classList.add("fault");
    } finally {
      button.removeAttribute("aria-busy");
    }
  }
}
