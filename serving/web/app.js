"use strict";

const AT_ONCE = 4; // requests under way together: enough to keep a few lanes busy, few enough to leave room for others
const VERDICTS = { cats: "It’s a cat", dogs: "It’s a dog", unsure: "I’m unsure" };
const BECAUSE = {
  close_call: "It is too close between the two for me to say.",
  unfamiliar: "It does not look like the cats and dogs I know.",
};
const IN_WORDS = {
  unsupported_format: "This is not a picture I can read. JPEG, PNG, WebP, GIF, BMP and AVIF work.",
  undecodable_image: "This picture is damaged or incomplete.",
  image_too_large: "This picture has too many pixels.",
  body_too_large: "This file is too large.",
  overloaded: "Too many people are asking right now. Try again in a moment.",
  deadline_exceeded: "It took too long. Try again in a moment.",
  draining: "The service is restarting. Try again in a moment.",
  not_ready: "The service is still getting ready. Try again in a moment.",
  slow_request: "The upload took too long.",
};

const cards = document.querySelector("#cards");
const statusLine = document.querySelector("#status");
const template = document.querySelector("#card");
const waiting = [];
let underWay = 0;
let total = 0;
let done = 0;

function show(files) {
  for (const file of files) {
    const card = template.content.firstElementChild.cloneNode(true);
    const picture = card.querySelector("img");
    picture.src = URL.createObjectURL(file);
    picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
    picture.alt = file.name;
    card.classList.add("waiting");
    card.querySelector("h2").textContent = "Looking…";
    card.querySelector(".name").textContent = file.name;
    cards.prepend(card);
    waiting.push({ file, card });
  }
  total += files.length;
  next();
}

function next() {
  while (underWay < AT_ONCE && waiting.length) {
    const { file, card } = waiting.shift();
    underWay += 1;
    ask(file)
      .then((answer) => say(card, answer), (error) => apologise(card, error.message))
      .finally(() => {
        underWay -= 1;
        done += 1;
        next();
      });
  }
  if (done < total) {
    statusLine.textContent = `${done} of ${total} photos looked at…`;
  } else if (total) {
    statusLine.textContent = total === 1 ? "Done." : `All ${total} photos looked at.`;
  }
}

async function ask(file) {
  const form = new FormData();
  form.append("file", file);
  let response;
  try {
    response = await fetch("/predict", { method: "POST", body: form });
  } catch {
    throw new Error("The service cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(IN_WORDS[answer.code] ?? answer.detail ?? `The service answered with error ${response.status}.`);
  }
  return answer;
}

function say(card, answer) {
  const { cats, dogs } = answer.probabilities;
  card.classList.replace("waiting", `verdict-${answer.verdict}`);
  card.querySelector("h2").textContent = VERDICTS[answer.verdict];
  card.querySelector(".why").textContent = BECAUSE[answer.unsure_because] ?? "";
  card.querySelector(".bar .cats").style.width = `${cats * 100}%`;
  card.querySelector(".bar .dogs").style.width = `${dogs * 100}%`;
  card.querySelector(".bar").setAttribute("aria-label", `cat ${percent(cats)}, dog ${percent(dogs)}`);
  card.querySelector(".shares .cats").textContent = `cat ${percent(cats)}`;
  card.querySelector(".shares .dogs").textContent = `dog ${percent(dogs)}`;
}

function apologise(card, reason) {
  card.classList.replace("waiting", "error");
  card.querySelector("h2").textContent = "No answer";
  card.querySelector(".why").textContent = reason;
}

function percent(share) {
  // Never round a doubt away: 100 % and 0 % are not what a model can know.
  if (share > 0.999) return "> 99.9 %";
  if (share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}

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
