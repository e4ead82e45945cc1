// Where the beats of a song are, once its tempo is known: the chain of moments about one beat apart that meets the most
// onsets, by dynamic programming (Ellis, "Beat Tracking by Dynamic Programming", 2007). It follows small drifts of tempo.
studio.beats = (onsets, seconds, bpm) => {
  const TIGHT = 100; // how much a beat that comes early or late costs, against an onset of its own
  const heard = Uint8Array.from(atob(onsets || ""), (letter) => letter.charCodeAt(0));
  if (!heard.length || !(bpm > 0)) return [];
  const rate = heard.length / seconds;
  const beat = (60 * rate) / bpm;
  const usual = Math.hypot(...heard) / Math.sqrt(heard.length) || 1;
  const best = new Float64Array(heard.length);
  const former = new Int32Array(heard.length).fill(-1);
  const least = Math.max(Math.round(beat / 2), 1);
  const most = Math.round(2 * beat);
  for (let at = 0; at < heard.length; at++) {
    let found = 0;
    for (let gap = least; gap <= Math.min(most, at); gap++) {
      const score = best[at - gap] - TIGHT * Math.log(gap / beat) ** 2;
      if (score <= found) continue;
      found = score;
      former[at] = at - gap;
    }
    best[at] = heard[at] / usual + found;
  }
  // The chain ends with the best of the last beat.
  let at = best.length - 1;
  const from = Math.max(at - Math.round(beat), 0);
  for (let each = from; each < best.length; each++) if (best[each] > best[at]) at = each;
  const found = [];
  for (; at >= 0; at = former[at]) found.unshift(at / rate);
  // A quiet beginning and a quiet end are counted, as a musician would.
  const step = 60 / bpm;
  while (found[0] - step >= 0) found.unshift(found[0] - step);
  while (found.at(-1) + step <= seconds) found.push(found.at(-1) + step);
  return found.map((time) => Math.round(time * 100) / 100);
};
