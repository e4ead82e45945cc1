// The region on a waveform. This text is the body of a function in the page's head (theme.py), which Gradio calls whenever it
// builds the component, with `element`, `props`, `trigger` and `watch`. Listeners stay on the component's own elements, so
// they go when it goes.
// static/listen.js plays it, static/zoom.js has the closer look, static/beats.js knows where the beats are.
const STEP = 0.1;
const LEAP = 1;
const CLICK_PIXELS = 3; // a press that moves less is a click, which chooses nothing
const KEYS_REST_MS = 200; // after the last key press the fields are written
const SAY_AFTER_MS = 500;

const find = (selector) => element.querySelector(selector);
const { clamp, exactClock: clock, fill } = studio.tools;
const { spans } = studio;
const stage = find(".stage");
const track = find(".track");
const handles = { start: find(".handle.start"), end: find(".handle.end") };

let length = 0; // seconds of the file, 0 without one
let region = { start: 0, end: 0 }; // seconds, as drawn
let others = []; // further regions, which were marked with Shift
let drawn; // the peaks that the picture shows
let began = ""; // the region that they came with
let drag = null;
let own = false; // the region is the visitor's, not the one that a new file begins with
let keysRest = 0; // a timer while key presses are not written yet
let saying = 0;
let counted = ""; // the source and the tempo that the beats are of
let beats = []; // seconds, none where the tempo is not known

// --- time ---

const snapper = find(".snap");
const snaps = () => beats.length > 0 && snapper.getAttribute("aria-pressed") === "true";
const snappedTo = () => (snaps() ? beats : []);

const timeAt = (event) => {
  const box = track.getBoundingClientRect();
  return clamp((event.clientX - box.left) / box.width, 0, 1) * length;
};

// --- what the fields say ---

// The region of the two fields, and whether they are one of this file.
const chosen = () =>
  spans.chosen(studio.seconds(props.value?.start), studio.seconds(props.value?.end), length, props.least);

const take = () => {
  const value = props.value || {};
  length = value.seconds || 0;
  find(".empty").textContent = props.value ? props.texts.unreadable : props.texts.empty;
  find(".empty").hidden = length > 0;
  find(".chooser").hidden = !length;
  listen.open(value.path);
  if (value.peaks !== drawn) {
    own = false;
    began = `${value.start} ${value.end}`;
    draw(value.peaks);
    zoom.open(length);
  } else if (`${value.start} ${value.end}` !== began) own = true;
  const found = chosen();
  region = found.region;
  others = spans.listed(value.regions, length);
  count();
  show(found.fits);
  listen.rest();
};

// What the visitor typed is the tempo, else what the record of the file says.
const count = () => {
  const { typed, bpm, onsets, path } = props.value || {};
  const tempo = studio.number(typed) >= 30 && studio.number(typed) <= 300 ? studio.number(typed) : bpm;
  if (counted === `${path} ${tempo}`) return;
  counted = `${path} ${tempo}`;
  beats = studio.beats(onsets, length, tempo);
  snapper.hidden = !beats.length;
  find(".tempo").hidden = beats.length > 0;
  find(".keys").textContent = beats.length ? props.texts.keys_on_beats : props.texts.keys;
  snapper.textContent = fill(props.texts.snap, { bpm: tempo });
  const ticks = beats.map((seconds) => `M${seconds},0V1`).join("");
  find(".beats").setAttribute("viewBox", `0 0 ${length || 1} 1`);
  find(".beats path").setAttribute("d", ticks);
  tick();
};

// Beats that would stand closer than this are not drawn.
const tick = () => (find(".beats").style.display = snaps() && track.clientWidth > 5 * beats.length ? "" : "none");

const write = () => {
  own = true;
  clearTimeout(keysRest);
  keysRest = 0;
  const { start, end } = region;
  props.value = {
    ...props.value,
    start,
    end: end >= length && !others.length ? 0 : end,
    regions: spans.written(others),
  };
  trigger("input");
  listen.renew();
};

// --- what is seen and heard ---

const draw = (peaks) => {
  drawn = peaks;
  for (const wave of element.querySelectorAll(".wave, .overview svg")) studio.tools.outline(wave, peaks);
};

const show = (fits = true) => {
  const { start, end } = region;
  const share = (seconds) => `${length ? (100 * seconds) / length : 0}%`;
  stage.style.setProperty("--from", share(start));
  stage.style.setProperty("--to", share(end));
  const boxes = others.map((other) => {
    const box = studio.tools.make("div", { class: "other" });
    box.style.left = share(other.start);
    box.style.width = share(other.end - other.start);
    return box;
  });
  find(".others").replaceChildren(...boxes);
  stage.classList.toggle("late", start + end > length);
  stage.classList.toggle("unfit", !fits);
  stage.classList.toggle("full", full() || !own);
  for (const part of ["start", "end"]) {
    const [low, high] = range(part);
    const said = { min: low, max: high, now: region[part], text: clock(region[part]) };
    for (const [name, value] of Object.entries(said))
      handles[part].setAttribute(`aria-value${name}`, name === "text" ? value : spans.exact(value));
  }
  const shown = { start, end, length: end - start };
  for (const [name, seconds] of Object.entries(shown)) find(`[data-shows="${name}"]`).textContent = clock(seconds);
  const wrong = find(".wrong");
  find(".facts").hidden = !fits;
  wrong.hidden = fits;
  wrong.textContent = fits ? "" : fill(props.texts.wrong, { seconds: spans.floor(length), least: props.least });
};

// For screen readers, once things rest. Key presses need none of it: a slider says its own value.
const say = () => {
  clearTimeout(saying);
  saying = setTimeout(() => {
    const { start, end } = region;
    const facts = { start: clock(start), end: clock(end), length: clock(end - start) };
    const more = others.map((other) => `${clock(other.start)}-${clock(other.end)}`).join(", ");
    const said = [fill(props.texts.said, facts), more && fill(props.texts.others, { regions: more })];
    find(".said").textContent = length ? find(".wrong").textContent || said.filter(Boolean).join(" ") : "";
  }, SAY_AFTER_MS);
};

// --- changing the region ---

// Whether there is a region at all: the page may have a use for the waveform alone.
const marks = () => handles.start.offsetParent !== null;

// A drag inside of it marks another one, as in one that nobody has chosen yet.
const full = () => spans.isFull(region, length);

// How far a handle may go, in seconds.
const range = (part) => spans.range(part, region, length, props.least);

const moveHandle = (part, seconds) => {
  region = { ...region, [part]: clamp(spans.snap(seconds, length, snappedTo()), ...range(part)) };
};

const moveMiddle = (from, seconds) => {
  region = spans.moved(from, seconds, length, snappedTo());
};

const choose = (anchor, seconds) => {
  region = spans.marked(anchor, seconds, length, props.least, snappedTo());
};

// --- pointer ---

stage.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button || !length) return;
  const { part } = event.target.dataset;
  drag = {
    part: part === "middle" && (full() || !own) ? undefined : part,
    at: timeAt(event),
    x: event.clientX,
    from: region,
    others: event.shiftKey && own ? others : null, // as they were before a further one
  };
  if (drag.others) drag.part = undefined;
  if (!marks()) drag.part = "none";
  stage.setPointerCapture(event.pointerId);
});

stage.addEventListener("pointermove", (event) => {
  if (!drag || !event.isPrimary || (!drag.moved && Math.abs(event.clientX - drag.x) < CLICK_PIXELS)) return;
  drag.moved = true;
  stage.classList.toggle("dragging", drag.part === "middle");
  zoom.push(event);
  const seconds = timeAt(event);
  if (drag.others) {
    const further = spans.marked(drag.at, seconds, length, props.least, snappedTo());
    ({ region, others } = spans.united(drag.from, drag.others, further));
  } else if (!drag.part) choose(drag.at, seconds);
  else if (drag.part === "middle") moveMiddle(drag.from, drag.from.start + seconds - drag.at);
  else if (handles[drag.part]) moveHandle(drag.part, drag.from[drag.part] + seconds - drag.at);
  show();
});

const drop = (keep) => {
  if (!drag) return;
  const { moved, part, at, others: before } = drag;
  drag = null;
  stage.classList.remove("dragging");
  // The capture keeps the browser from doing it. What was dragged can now be fine-tuned by keys.
  if (keep) (handles[part] ?? (marks() ? handles.start : find(".play"))).focus({ preventScroll: true });
  const removed = before?.find((other) => other.start <= at && at <= other.end);
  if (keep && !moved && removed && marks()) {
    others = before.filter((other) => other !== removed);
    show();
    write();
    say();
  } else if (moved && keep && marks()) {
    write();
    say();
  } else {
    take();
    if (keep && !handles[part]) listen.seek(at);
  }
};

stage.addEventListener("pointerup", (event) => event.isPrimary && drop(true));
// The browser takes a touch over when it turns out to be scrolling.
stage.addEventListener("pointercancel", (event) => event.isPrimary && drop(false));

// --- keyboard ---

const keyed = (part, event) => {
  const [low, high] = range(part);
  const now = region[part];
  const step = event.shiftKey ? LEAP : STEP;
  const byBeat = snaps() && !event.shiftKey;
  const less = byBeat ? (beats.findLast((beat) => beat < now - 1e-6) ?? 0) : now - step;
  const more = byBeat ? (beats.find((beat) => beat > now + 1e-6) ?? length) : now + step;
  return {
    ArrowLeft: less,
    ArrowDown: less,
    ArrowRight: more,
    ArrowUp: more,
    PageDown: now - LEAP,
    PageUp: now + LEAP,
    Home: low,
    End: high,
  }[event.key];
};

for (const [part, handle] of Object.entries(handles)) {
  handle.addEventListener("keydown", (event) => {
    const seconds = event.ctrlKey || event.altKey || event.metaKey ? undefined : keyed(part, event);
    if (seconds === undefined) return;
    event.preventDefault();
    moveHandle(part, seconds);
    show();
    zoom.bring(region[part]);
    clearTimeout(saying);
    find(".said").textContent = "";
    clearTimeout(keysRest);
    keysRest = setTimeout(write, KEYS_REST_MS);
  });
  for (const name of ["keyup", "blur"]) handle.addEventListener(name, () => keysRest && write());
}

// --- hearing it, and looking closer ---

const listen = studio.listen(find(".region"), props.texts, {
  part: () => (marks() && !stage.classList.contains("unfit") ? [region.start, region.end] : [0, length]),
  moved: (seconds, playing) => {
    stage.style.setProperty("--head", `${length ? (100 * seconds) / length : 0}%`);
    find('[data-shows="now"]').textContent = clock(seconds);
    if (playing && !drag) zoom.bring(seconds);
  },
});
const zoom = studio.zoom(find(".region"), props.texts, { clock, pinched: () => drop(false), viewed: () => tick() });

snapper.addEventListener("click", () => {
  snapper.setAttribute("aria-pressed", String(!snaps()));
  tick();
});

// The space bar plays wherever the selector has the focus; a button of its own is pressed by it.
find(".region").addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("button") || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  if (!event.repeat) listen.toggle();
});

// --- the page ---

watch("value", () => {
  const other = props.value?.peaks !== drawn;
  // An echo of the fields must not pull a handle back that is being moved.
  if ((drag || keysRest) && !other) return;
  drag = null;
  clearTimeout(keysRest);
  keysRest = 0;
  take();
  say();
});
take();
