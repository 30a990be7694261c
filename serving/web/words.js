// Numbers as people read them.

/** A share of 0 to 1 in percent. */
export function percent(share) {
  // Never round a doubt away: 100 % and 0 % are not what a model can know.
  if (share > 0.999) return "> 99.9 %";
  if (share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}

/** "1 photo", "2 photos". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** A time span, roughly. */
export function span(seconds) {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`;
}
