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

const LONGER_SIDE = 224; // of a drawing: a map of 7×7 has no detail that would need more

const cards = document.querySelector("#cards");
const statusLine = document.querySelector("#status");
const template = document.querySelector("#card");
const everywhere = document.querySelector("#everywhere");
const waiting = [];
let underWay = 0;
let total = 0;
let done = 0;

function show(files) {
  for (const file of files) {
    const card = template.content.firstElementChild.cloneNode(true);
    const picture = card.querySelector("img");
    picture.src = URL.createObjectURL(file);
    const shown = new Promise((resolve) => (picture.onload = picture.onerror = resolve));
    shown.then(() => URL.revokeObjectURL(picture.src));
    picture.alt = file.name;
    card.classList.add("waiting");
    card.querySelector("h2").textContent = "Looking…";
    card.querySelector(".name").textContent = file.name;
    cards.prepend(card);
    waiting.push({ file, card, shown });
  }
  total += files.length;
  next();
}

function next() {
  while (underWay < AT_ONCE && waiting.length) {
    const { file, card, shown } = waiting.shift();
    underWay += 1;
    ask(file)
      .then(
        (answer) => {
          say(card, answer);
          shown.then(() => offerEvidence(card, answer.evidence));
        },
        (error) => apologise(card, error.message),
      )
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
    response = await fetch("/predict?explain=true", { method: "POST", body: form });
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

function offerEvidence(card, evidence) {
  const button = card.querySelector("button");
  button.addEventListener("click", () => {
    const explained = card.classList.toggle("explained");
    button.setAttribute("aria-pressed", explained);
    if (explained) draw(card, evidence);
  });
  button.hidden = false;
  everywhere.parentElement.hidden = false;
  if (everywhere.checked) button.click();
}

// The same drawing as POST /explain's (serving/evidence.py); style.css makes it translucent and the photo grey.
function draw(card, evidence) {
  const { naturalWidth, naturalHeight } = card.querySelector("img");
  const canvas = card.querySelector("canvas");
  // A photo that the service can read and this browser cannot has no size here; its map is drawn by itself.
  const [width, height] = naturalWidth ? [naturalWidth, naturalHeight] : [4, 3];
  const scale = LONGER_SIDE / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));

  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const [cats, dogs] = [colour("--cats"), colour("--dogs")];
  const peak = Math.max(...evidence.flat().map(Math.abs)) || 1;
  const across = weights(canvas.width, evidence[0].length);
  const down = weights(canvas.height, evidence.length);
  const columns = across.map((shares) => evidence.map((row) => dot(shares, row) / peak));
  for (let y = 0; y < canvas.height; y += 1) {
    for (let x = 0; x < canvas.width; x += 1) {
      const value = dot(down[y], columns[x]);
      image.data.set([...(value > 0 ? dogs : cats), 255 * Math.min(1, Math.abs(value))], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(image, 0, 0);
}

// How much each of `places` counts at each of `points` that they are spread over: bicubic, as Pillow has it.
function weights(points, places) {
  return Array.from({ length: points }, (_, point) => {
    const centre = ((point + 0.5) * places) / points - 0.5;
    const shares = Array.from({ length: places }, (_, place) => cubic(Math.abs(place - centre)));
    const sum = shares.reduce((one, other) => one + other);
    return shares.map((share) => share / sum);
  });
}

function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

function dot(shares, values) {
  return shares.reduce((sum, share, place) => sum + share * values[place], 0);
}

function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function percent(share) {
  // Never round a doubt away: 100 % and 0 % are not what a model can know.
  if (share > 0.999) return "> 99.9 %";
  if (share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}

everywhere.addEventListener("change", () => {
  for (const button of cards.querySelectorAll(`button[aria-pressed="${!everywhere.checked}"]:not([hidden])`)) button.click();
});

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
