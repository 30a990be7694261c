// Photos on their way to the service: in requests that take about a second each, one or two at a time.

import { alive, predict, Refusal, unreadable } from "./service.js";

const AT_ONCE = 2; // requests under way: one is looked at while the next comes in
const SLOW = 8; // seconds; after a request that took longer, the next has the line to itself
const PHOTOS = 8; // in a request: few enough that answers keep coming
const BYTES = [128_000, 4_000_000]; // in a request of several photos, on the slowest and the fastest line
const SLOW_REQUEST = 408;
const TRIES = 5; // more, at a photo that the service asks to come back with later
const LONGEST_WAIT = 30; // seconds, between two tries

/**
 * A queue of things with a `file`. `settled(thing, outcome)` is called once for each, with its prediction or a Refusal;
 * `changed()` whenever there is something new to say about the whole.
 */
export class Sending {
  total = 0; // of this run, from the first photo to the last
  done = 0;
  held = null; // why nothing is sent right now, and for how many seconds
  #waiting = [];
  #senders = 0;
  #atOnce = 1; // until the first answer
  #bytes = BYTES[0]; // in the next request, if it has several photos
  #stopping = new AbortController();

  constructor(settled, changed) {
    this.settled = settled;
    this.changed = changed;
  }

  get busy() {
    return this.done < this.total;
  }

  add(things) {
    if (!this.busy) [this.total, this.done] = [0, 0];
    if (this.#stopping.signal.aborted) this.#stopping = new AbortController();
    this.total += things.length;
    this.#waiting = this.#waiting.concat(things.map((thing) => ({ thing, tries: 0, alone: false })));
    this.#start();
    this.changed();
  }

  stop() {
    this.#stopping.abort();
    this.#refuseWaiting(stopped());
    this.changed();
  }

  #start() {
    while (this.#senders < Math.min(this.#atOnce, this.#waiting.length)) this.#send();
  }

  async #send() {
    this.#senders += 1;
    for (;;) {
      await this.held?.over; // or for a moment, so that `changed` has been called for all photos
      if (!this.#waiting.length || this.#senders > this.#atOnce) break;
      const batch = this.#take();
      const outcomes = await this.#outcomes(batch);
      this.#waiting.unshift(...batch.filter((_, place) => outcomes[place] === null));
      batch.forEach(({ thing }, place) => outcomes[place] && this.#settle(thing, outcomes[place]));
      this.changed();
    }
    this.#senders -= 1;
  }

  // The photos of the next request.
  #take() {
    let [count, bytes] = [0, 0];
    for (const { thing, alone } of this.#waiting.slice(0, PHOTOS)) {
      bytes += thing.file.size;
      if (count && (bytes > this.#bytes || alone || this.#waiting[0].alone)) break;
      count += 1;
    }
    return this.#waiting.splice(0, count);
  }

  // For each photo its prediction, a Refusal, or null where it is to be sent again.
  async #outcomes(batch) {
    const files = batch.map(({ thing }) => thing.file);
    const { signal } = this.#stopping;
    const begun = performance.now();
    let outcomes;
    try {
      outcomes = await predict(files, signal);
      this.#adapt(files, (performance.now() - begun) / 1000);
    } catch (refusal) {
      if (signal.aborted) return files.map(stopped);
      if (refusal.status === 0 && !(await alive(signal))) {
        if (signal.aborted) return files.map(stopped);
        this.#refuseWaiting(refusal); // rather than find it out for each of them
        return files.map(() => refusal);
      }
      if (refusal.status === SLOW_REQUEST) this.#atOnce = 1;
      const broken = refusal.status === 0 ? await Promise.all(files.map(unreadable)) : [];
      if (broken.some(Boolean)) return broken;
      if (refusal.forGood && batch.length > 1) {
        // It is about the batch, such as a limit lower than ours; each photo by itself may well be answered.
        return batch.map((one) => (one.alone = true) && null);
      }
      outcomes = files.map(() => refusal);
    }
    return outcomes.map((outcome, place) => (this.#comesBack(batch[place], outcome, signal) ? null : outcome));
  }

  // The next request is to take a second at the pace of this one.
  #adapt(files, seconds) {
    const bytes = files.reduce((sum, { size }) => sum + size, 0);
    this.#bytes = Math.min(Math.max(BYTES[0], bytes / seconds), BYTES[1]);
    this.#atOnce = seconds > SLOW ? 1 : AT_ONCE;
    this.#start();
  }

  #comesBack(one, outcome, signal) {
    if (!(outcome instanceof Refusal && outcome.passing) || one.tries === TRIES || signal.aborted) return false;
    one.tries += 1;
    this.held ??= this.#hold(outcome, signal);
    return true;
  }

  #hold({ message, retryAfter }, signal) {
    const seconds = Math.min(retryAfter, LONGEST_WAIT);
    const over = new Promise((resolve) => {
      setTimeout(resolve, seconds * 1000);
      signal.addEventListener("abort", resolve);
    });
    over.then(() => (this.held = null)).then(this.changed);
    return { why: message, seconds, over };
  }

  #refuseWaiting(refusal) {
    for (const { thing } of this.#waiting.splice(0)) this.#settle(thing, refusal);
  }

  #settle(thing, outcome) {
    this.done += 1;
    this.settled(thing, outcome);
  }
}

function stopped() {
  return new Refusal("You stopped before I got to it.");
}
