// The map of what speaks for a cat or a dog, drawn over a photo. The same drawing as POST /explain's
// (serving/evidence.py); style.css makes it translucent and the photo grey.

const LONGER_SIDE = 224; // of a drawing: a map of 7×7 has no detail that would need more

/** Draw a map (rows of numbers, positive for dogs) for a photo of this size. */
export function draw(canvas, evidence, naturalWidth, naturalHeight) {
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
