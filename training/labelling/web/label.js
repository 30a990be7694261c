// One sample after the other: a key decides, the next picture is there already, and the decision is saved meanwhile.

const LABELS = { c: "cats", d: "dogs", b: "both", n: "neither" };
const WORDS = { cats: "a cat", dogs: "a dog", both: "both", neither: "neither" };
const AHEAD = 8; // pictures that are loaded before they are wanted
const PAUSE = 200; // milliseconds that a picture is shown before a key counts: one that bounces is not about it
const REFRESH = 20; // decisions after which the queue is asked for again: others label too, and samples come and go

const find = (id) => document.querySelector(`#${id}`);
const figure = document.querySelector("figure");
const bar = document.querySelector("progress");
const buttons = Object.fromEntries([...document.querySelectorAll("[data-key]")].map((each) => [each.dataset.key, each]));

let about = {}; // the queue's answer, but for its samples
let queue = []; // what is to come; the first one is shown
const seen = new Set(); // what was decided or skipped here
const past = []; // the same in order, with the label, or null for a skip; at first what was decided on an earlier visit
const pictures = new Map(); // promises of images, by the sample's id
let ready = false; // whether the picture is shown: a key pressed before is not about it
let stuck = false; // whether loading it failed
let asking = false; // whether there may be more than the queue has
let lost = null; // the sample whose decision could not be saved, which the alert is about
let done = 0;
let unsaved = 0;
let saving = Promise.resolve();

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options).catch(() => {
    throw new Error("the page’s server does not answer; is `catsdogs label` running?");
  });
  if (!answer.ok) {
    const { detail } = await answer.json().catch(() => ({ detail: answer.statusText }));
    throw Object.assign(new Error(detail), { gone: answer.status === 410 });
  }
  return answer;
}

async function load(id) {
  const blob = await (await ask(`samples/${id}/picture`)).blob();
  const image = new Image();
  image.alt = "The sample";
  image.src = URL.createObjectURL(blob);
  await image.decode().finally(() => URL.revokeObjectURL(image.src));
  return image;
}

function prefetch() {
  for (const { id } of queue.slice(0, AHEAD)) {
    if (pictures.has(id)) continue;
    const picture = load(id);
    picture.catch(() => pictures.delete(id)); // callers that wait get the error; it may be asked for again
    pictures.set(id, picture);
  }
}

async function refresh() {
  const { samples, latest, ...rest } = await (await ask("queue")).json();
  const [current] = queue;
  if (!about.who) past.push(...latest.map(({ label, ...sample }) => ({ sample, label })));
  about = rest;
  done = rest.done + unsaved;
  const others = samples.filter(({ id }) => !seen.has(id) && id !== current?.id);
  queue = current ? [current, ...others] : others;
  prefetch();
}

async function show() {
  ready = false;
  hide();
  const [sample] = queue;
  if (sample) prefetch();
  try {
    const image = sample && (await pictures.get(sample.id));
    if (sample !== queue[0]) return;
    figure.replaceChildren(...(image ? [image] : []));
    figure.hidden = !image;
    if (!lost) find("fault").hidden = true;
    stuck = false;
    setTimeout(() => {
      if (sample !== queue[0]) return;
      ready = Boolean(sample);
      figure.dataset.sample = sample?.id ?? "";
    }, PAUSE);
  } catch (error) {
    if (sample !== queue[0]) return;
    stuck = !error.gone;
    if (stuck) return fail(`Not shown: ${error.message}. S skips it, another key tries again.`);
    queue.shift(); // forgotten meanwhile
    return show();
  }
  find("said").hidden = !sample?.said;
  find("said").textContent = Object.entries(sample?.said ?? {}).map(([who, label]) => `${who}: ${WORDS[label]}`).join(" · ");
  draw();
}

function draw() {
  find("who").textContent = `${about.settle ? "settled" : "labelled"} by ${about.who}`;
  const left = queue.length;
  [bar.value, bar.max] = [done, Math.max(1, done + left)];
  find("count").textContent = `${done.toLocaleString("en")} done, ${left.toLocaleString("en")} to go`;
  document.body.dataset.unsaved = unsaved;
  for (const [key, button] of Object.entries(buttons)) button.disabled = key === "u" ? !past.length : !left && !asking;
  if (!left && !asking) say(ended());
  else if (find("status").textContent.startsWith("Nothing is left")) say("");
}

function ended() {
  const skipped = past.filter(({ label }) => !label).length;
  const disagree = !about.settle && about.disputed;
  return `Nothing is left to ${about.settle ? "settle" : "label"}.${skipped ? ` You skipped ${skipped}: load the page again to see them.` : ""}${
    disagree ? ` People disagree about ${disagree}: \`catsdogs label --settle\` shows those.` : ""}`;
}

function say(text) {
  find("status").textContent = text;
}

function fail(text) {
  find("fault").hidden = false;
  find("fault").textContent = text;
}

function decide(label) {
  const sample = queue.shift();
  seen.add(sample.id);
  past.push({ sample, label });
  if (past.length > 50) pictures.delete(past.at(-51).sample.id);
  say(label ? `${WORDS[label]}.`.replace(/^./, (letter) => letter.toUpperCase()) : "Skipped.");
  if (label) {
    done += 1;
    save("decisions", { id: sample.id, label });
  }
  asking = !queue.length;
  if (asking || past.length % REFRESH === 0) {
    const next = asking ? show : draw;
    saving.then(refresh).finally(() => { asking = false; }).then(next, (error) => fail(error.message));
  }
  show();
}

// In their order: an undo comes after what it takes back.
function save(path, body) {
  unsaved += 1;
  saving = saving
    .then(() => ask(path, body))
    .then(() => {
      if (lost === body.id) [lost, find("fault").hidden] = [null, true];
    })
    .catch((error) => {
      say("");
      lost = body.id;
      fail(`Not saved: ${error.message}${error.gone || path === "undo" ? "" : ". The picture comes again."}`);
      const place = past.findLastIndex(({ sample }) => sample.id === body.id);
      if (path === "undo" || place < 0) return; // or taken back meanwhile
      const { sample } = takeOut(place);
      if (error.gone) return;
      queue.splice(1, 0, sample); // not first: a key may be on its way for what is shown
      if (queue.length === 1) show();
    })
    .finally(() => {
      unsaved -= 1;
      draw();
    });
}

function takeOut(place) {
  const [taken] = past.splice(place, 1);
  seen.delete(taken.sample.id);
  if (taken.label) done -= 1;
  return taken;
}

function undo() {
  const { sample, label } = takeOut(past.length - 1);
  queue.unshift(sample);
  say(label ? "Taken back." : "Back to what you skipped.");
  if (label) save("undo", { id: sample.id });
  show();
}

function hide() {
  find("answer").hidden = true;
  figure.querySelector("canvas")?.remove();
  for (const key of "em") buttons[key].ariaPressed = "false";
}

async function reveal(key, id, path, act) {
  const on = buttons[key].ariaPressed !== "true";
  buttons[key].ariaPressed = String(on);
  if (!on) return act(null);
  try {
    const found = await (await ask(`samples/${id}/${path}`)).json();
    if (queue[0]?.id === id && buttons[key].ariaPressed === "true") act(found);
  } catch (error) {
    buttons[key].ariaPressed = "false";
    fail(error.message);
  }
}

// Where the model looks, not for which animal: that would be its answer.
function evidence(places) {
  figure.querySelector("canvas")?.remove();
  if (!places) return;
  const canvas = Object.assign(document.createElement("canvas"), { width: places[0].length, height: places.length });
  const context = canvas.getContext("2d");
  places.forEach((row, y) => row.forEach((strength, x) => {
    context.fillStyle = `rgb(240 190 20 / ${0.75 * strength})`;
    context.fillRect(x, y, 1, 1);
  }));
  figure.append(canvas);
}

function answer(sample) {
  find("answer").hidden = !sample;
  if (!sample) return;
  const { label, verdict, probabilities, model } = sample.prediction;
  const share = `${(100 * probabilities[label]).toFixed(1)} %`;
  const said = sample.feedback ? ` A client said: ${WORDS[sample.feedback]}.` : "";
  const guess = verdict === "unsure" ? `was unsure; its guess was ${WORDS[label]}` : `said ${WORDS[label]}`;
  find("answer").textContent = `The model ${guess} (${share}).${said} Kept as: ${sample.why.join(", ")}. Version ${model}.`;
}

function press(key) {
  if (key === "u") past.length && undo();
  else if (!ready) stuck && (key === "s" ? decide(null) : show());
  else if (key in LABELS) decide(LABELS[key]);
  else if (key === "s") decide(null);
  else if (key === "e") reveal("e", queue[0].id, "evidence", evidence);
  else if (key === "m") reveal("m", queue[0].id, "answer", answer);
}

addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !(key in buttons)) return;
  event.preventDefault();
  press(key);
});
for (const [key, button] of Object.entries(buttons)) {
  button.addEventListener("click", ({ detail }) => detail > 1 || press(key)); // a double click is about one picture
}
addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});

await refresh().then(show, (error) => fail(error.message));
find("sample").focus();
