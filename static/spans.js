// The arithmetic of regions (static/region.js), of an extension's timeline (static/timeline.js) and of the closer look
// (static/zoom.js): numbers in, numbers out. All times are in seconds.
studio.spans = (() => {
  const { clamp, clock } = studio.tools;
  const STEP = 0.1;
  const ROOM = 0.25; // of the song, beside each end of the timeline

  const floor = (seconds) => Math.floor(seconds * 10 + 1e-6) / 10;
  const ceil = (seconds) => Math.ceil(seconds * 10 - 1e-6) / 10;
  const exact = (seconds) => Math.round(seconds * 1000) / 1000;

  // --- a region {start, end} of a file; `least` is how long one lasts ---

  // To a tenth of a second, or to the end of the file, which is seldom at a tenth; to a beat where there are `beats`.
  const snap = (seconds, length, beats = []) => {
    const nearer = (one, other) => (Math.abs(other - seconds) < Math.abs(one - seconds) ? other : one);
    if (beats.length) return [0, ...beats, length].reduce(nearer);
    return seconds >= length - STEP / 2 ? length : Math.max(Math.round(seconds * 10) / 10, 0);
  };

  // The region of two fields, whose end 0 is that of the file, and whether it is one of this file.
  const chosen = (start, last, length, least) => {
    const end = last === 0 ? length : last;
    if (start >= 0 && end <= length && end - start >= least - 1e-6) return { region: { start, end }, fits: true };
    // Somewhere near, so that a handle can mend it.
    const from = clamp(start || 0, 0, Math.max(length - least, 0));
    const to = clamp(Number.isNaN(end) ? length : end, Math.min(from + least, length), length);
    return { region: { start: from, end: to }, fits: false };
  };

  // With hardly any room to move: a drag inside of it marks another one.
  const isFull = (region, length) => region.end - region.start > 0.9 * length;

  // How far a handle may go.
  const range = (part, region, length, least) =>
    part === "start"
      ? [0, Math.max(floor(region.end - least), 0)]
      : [Math.min(ceil(region.start + least), length), length];

  // `from` moved as a whole, to begin near `seconds`.
  const moved = (from, seconds, length, beats = []) => {
    const width = from.end - from.start;
    const start = clamp(snap(seconds, length, beats), 0, Math.max(floor(length - width), 0));
    // The end of the file is seldom at a tenth: what pushes against it reaches it.
    const end = seconds + width >= length ? length : exact(start + width);
    return { start, end: Math.min(end, length) };
  };

  // The region that a drag from `anchor` to `seconds` marks.
  const marked = (anchor, seconds, length, least, beats = []) => {
    let start = snap(Math.min(anchor, seconds), length, beats);
    let end = snap(Math.max(anchor, seconds), length, beats);
    if (end - start < least - 1e-6) {
      if (seconds < anchor) start = end - least;
      end = start + least;
    }
    start = clamp(exact(start), 0, Math.max(floor(length - least), 0));
    const [low, high] = range("end", { start }, length, least);
    return { start, end: clamp(snap(end, length, beats), low, high) };
  };

  // --- further regions, as a text such as "12-15.5, 0:30-0:35" ---

  // Those of a text that are regions of the file.
  const listed = (text, length) => {
    const parts = String(text ?? "").split(/[,;]\s/);
    const found = parts.map((part) => {
      const [, start, end] = /^([^-]+)-([^-]+)$/.exec(part.trim()) ?? [];
      return { start: studio.seconds(start), end: studio.seconds(end) };
    });
    return found.filter(({ start, end }) => start >= 0 && end > start && end <= length);
  };

  const written = (regions) => regions.map(({ start, end }) => `${start}-${end}`).join(", ");

  // A `region` and `others` with a `further` one, which joins those that it overlaps.
  const united = (region, others, further) => {
    const touches = (one) => one.start < further.end && further.start < one.end;
    const join = (one) => ({ start: Math.min(one.start, further.start), end: Math.max(one.end, further.end) });
    for (const one of others) if (touches(one)) further = join(one);
    const rest = others.filter((one) => !touches(one));
    if (touches(region)) return { region: join(region), others: rest };
    return { region, others: [...rest, further].sort((one, other) => one.start - other.start) };
  };

  // --- a timeline: `length` of the source, and what is `added` {before, after} ---

  // What is in view, with room at both ends.
  const scale = (length, added) => {
    const room = ROOM * (added.before + length + added.after);
    return { from: -added.before - room, to: length + added.after + room };
  };

  // The most that one side may get beside `other` seconds of the other one, in a song of up to `longest`.
  const most = (length, other, limit, longest) => Math.max(Math.min(limit, longest - length - other), 0);

  // --- the sections of a song ---

  // [{name, start, end}] of a song of `seconds`: those of its `lyrics`, if its lines are timed, else parts of eight bars, if it is
  // known how long a `bar` is.
  const BARS = 8;
  const sections = ({ lyrics = "", lines = [], bar = 0, seconds }) => {
    const found = [];
    let name = "";
    let next = 0; // of the timed lines
    for (const text of lyrics.split("\n").map((line) => line.trim())) {
      const [, tag] = /^\[(.+)\]$/.exec(text) ?? [];
      if (tag) name = tag;
      const at = lines.findIndex((line, place) => place >= next && line.text.trim() === text);
      if (tag || at < 0) continue;
      if (name) found.push({ name, start: lines[at].start });
      name = "";
      next = at + 1;
    }
    if (!found.length && bar > 0)
      for (let start = 0; start < seconds - bar; start += BARS * bar)
        found.push({ name: `${clock(start)} - ${clock(Math.min(start + BARS * bar, seconds))}`, start });
    return found.map((each, at) => ({
      ...each,
      start: exact(each.start),
      end: exact(found[at + 1]?.start ?? seconds),
    }));
  };

  // The one that is heard at a moment: before the first it is the first.
  const sectionAt = (all, now) => all.findLast(({ start }) => start <= now) ?? all[0];

  // --- a closer look: a stage scrolls over a track that is wider; all sizes are in pixels ---

  const CLOSEST = 2; // seconds across the stage
  const mostZoom = (length) => Math.max(length / CLOSEST, 1);
  // How many seconds are in view; the track has room of `edge` at its ends, in view where nothing is zoomed.
  const inView = (length, stage, track, edge, zoom) => {
    const room = zoom > 1 ? 0 : 2 * edge;
    return Math.min((length * (stage - room)) / (track || 1), length);
  };
  // Where what is in view begins.
  const viewFrom = (length, scrolled, track, edge, shown) =>
    clamp(((scrolled - edge) / (track || 1)) * length, 0, length - shown);

  return {
    ceil,
    chosen,
    exact,
    floor,
    inView,
    isFull,
    listed,
    marked,
    most,
    mostZoom,
    moved,
    range,
    scale,
    sectionAt,
    sections,
    snap,
    united,
    viewFrom,
    written,
  };
})();
