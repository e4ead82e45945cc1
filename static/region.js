// The region on a waveform. Gradio runs this text as the body of a function whenever it builds the component, with
// `element`, `props`, `trigger` and `watch`. Listeners stay on the component's own elements, so they go when it goes.
const STEP = 0.1;
const LEAP = 1;
const CLICK_PIXELS = 3; // a press that moves less is a click, which chooses nothing
const KEYS_REST_MS = 200; // after the last key press the fields are written
const SAY_AFTER_MS = 500;

const find = (selector) => element.querySelector(selector);
const stage = find(".stage");
const track = find(".track");
const handles = { start: find(".handle.start"), end: find(".handle.end") };

let length = 0; // seconds of the file, 0 without one
let region = { start: 0, end: 0 }; // seconds, as drawn
let drawn; // the peaks that the picture shows
let began = ""; // the region that they came with
let drag = null;
let own = false; // the region is the visitor's, not the one that a new file begins with
let keysRest = 0; // a timer while key presses are not written yet
let saying = 0;

// --- time ---

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const floor = (seconds) => Math.floor(seconds * 10 + 1e-6) / 10;
const ceil = (seconds) => Math.ceil(seconds * 10 - 1e-6) / 10;
const exact = (seconds) => Math.round(seconds * 1000) / 1000;

// To a tenth of a second, or to the end of the file, which is seldom at a tenth.
const snap = (seconds) => (seconds >= length - STEP / 2 ? length : Math.max(Math.round(seconds * 10) / 10, 0));

const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
};

const timeAt = (event) => {
  const box = track.getBoundingClientRect();
  return clamp((event.clientX - box.left) / box.width, 0, 1) * length;
};

// --- what the fields say ---

const number = (value) => Number(String(value ?? "").trim().replace(",", "."));

// The region of the two fields, and whether they are one of this file.
const chosen = () => {
  const start = number(props.value?.start);
  const last = number(props.value?.end);
  const end = last === 0 ? length : last;
  if (start >= 0 && end <= length && end - start >= props.least - 1e-6) return { region: { start, end }, fits: true };
  // Somewhere near, so that a handle can mend it.
  const from = clamp(start || 0, 0, Math.max(length - props.least, 0));
  const to = clamp(Number.isNaN(end) ? length : end, Math.min(from + props.least, length), length);
  return { region: { start: from, end: to }, fits: false };
};

const take = () => {
  const value = props.value || {};
  length = value.seconds || 0;
  find(".empty").textContent = props.value ? props.texts.unreadable : props.texts.empty;
  find(".empty").hidden = length > 0;
  find(".chooser").hidden = !length;
  if (value.peaks !== drawn) {
    own = false;
    began = `${value.start} ${value.end}`;
    draw(value.peaks);
  } else if (`${value.start} ${value.end}` !== began) own = true;
  const found = chosen();
  region = found.region;
  show(found.fits);
};

const write = () => {
  own = true;
  clearTimeout(keysRest);
  keysRest = 0;
  const { start, end } = region;
  props.value = { ...props.value, start, end: end >= length ? 0 : end };
  trigger("input");
};

// --- what is seen and heard ---

const draw = (peaks) => {
  drawn = peaks;
  const bytes = Uint8Array.from(atob(peaks || ""), (letter) => letter.charCodeAt(0));
  const values = new Int8Array(bytes.buffer);
  const columns = values.length / 2;
  const points = [];
  for (let at = 0; at < columns; at++) points.push(`${at + 0.5},${-values[2 * at + 1]}`);
  for (let at = columns - 1; at >= 0; at--) points.push(`${at + 0.5},${-values[2 * at]}`);
  for (const wave of element.querySelectorAll(".wave")) {
    wave.setAttribute("viewBox", `0 -128 ${columns || 1} 256`);
    wave.firstElementChild.setAttribute("d", points.length ? `M${points.join("L")}Z` : "");
  }
};

const show = (fits = true) => {
  const { start, end } = region;
  const share = (seconds) => `${length ? (100 * seconds) / length : 0}%`;
  stage.style.setProperty("--from", share(start));
  stage.style.setProperty("--to", share(end));
  stage.classList.toggle("late", start + end > length);
  stage.classList.toggle("unfit", !fits);
  stage.classList.toggle("full", full() || !own);
  for (const part of ["start", "end"]) {
    const [low, high] = range(part);
    const said = { min: low, max: high, now: region[part], text: clock(region[part]) };
    for (const [name, value] of Object.entries(said))
      handles[part].setAttribute(`aria-value${name}`, name === "text" ? value : exact(value));
  }
  const shown = { start, end, length: end - start, seconds: length };
  for (const [name, seconds] of Object.entries(shown)) find(`[data-shows="${name}"]`).textContent = clock(seconds);
  const wrong = find(".wrong");
  find(".facts").hidden = !fits;
  wrong.hidden = fits;
  wrong.textContent = fits ? "" : fill(props.texts.wrong, { seconds: floor(length), least: props.least });
};

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

// For screen readers, once things rest. Key presses need none of it: a slider says its own value.
const say = () => {
  clearTimeout(saying);
  saying = setTimeout(() => {
    const { start, end } = region;
    const facts = { start: clock(start), end: clock(end), length: clock(end - start) };
    find(".said").textContent = length ? find(".wrong").textContent || fill(props.texts.said, facts) : "";
  }, SAY_AFTER_MS);
};

// --- changing the region ---

// A region with hardly any room to move: a drag inside of it marks another one, as in one that nobody has chosen yet.
const full = () => region.end - region.start > 0.9 * length;

// How far a handle may go, in seconds.
const range = (part) =>
  part === "start"
    ? [0, Math.max(floor(region.end - props.least), 0)]
    : [Math.min(ceil(region.start + props.least), length), length];

const moveHandle = (part, seconds) => {
  region = { ...region, [part]: clamp(snap(seconds), ...range(part)) };
};

const moveMiddle = (from, seconds) => {
  const width = from.end - from.start;
  const start = clamp(snap(seconds), 0, Math.max(floor(length - width), 0));
  // The end of the file is seldom at a tenth: what pushes against it reaches it.
  const end = seconds + width >= length ? length : exact(start + width);
  region = { start, end: Math.min(end, length) };
};

const choose = (anchor, seconds) => {
  let [start, end] = [snap(Math.min(anchor, seconds)), snap(Math.max(anchor, seconds))];
  if (end - start < props.least - 1e-6) {
    if (seconds < anchor) start = end - props.least;
    end = start + props.least;
  }
  start = clamp(floor(start), 0, Math.max(floor(length - props.least), 0));
  region = { start, end: clamp(snap(end), Math.min(ceil(start + props.least), length), length) };
};

// --- pointer ---

stage.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button || !length) return;
  const { part } = event.target.dataset;
  drag = { part: part === "middle" && (full() || !own) ? undefined : part, at: timeAt(event), x: event.clientX, from: region };
  stage.setPointerCapture(event.pointerId);
});

stage.addEventListener("pointermove", (event) => {
  if (!drag || !event.isPrimary || (!drag.moved && Math.abs(event.clientX - drag.x) < CLICK_PIXELS)) return;
  drag.moved = true;
  stage.classList.toggle("dragging", drag.part === "middle");
  const seconds = timeAt(event);
  if (!drag.part) choose(drag.at, seconds);
  else if (drag.part === "middle") moveMiddle(drag.from, drag.from.start + seconds - drag.at);
  else moveHandle(drag.part, drag.from[drag.part] + seconds - drag.at);
  show();
});

const drop = (keep) => {
  if (!drag) return;
  const { moved, part } = drag;
  drag = null;
  stage.classList.remove("dragging");
  // The capture keeps the browser from doing it. What was dragged can now be fine-tuned by keys.
  if (keep) handles[part]?.focus({ preventScroll: true });
  if (moved && keep) {
    write();
    say();
  } else take();
};

stage.addEventListener("pointerup", (event) => event.isPrimary && drop(true));
// The browser takes a touch over when it turns out to be scrolling.
stage.addEventListener("pointercancel", (event) => event.isPrimary && drop(false));

// --- keyboard ---

const keyed = (part, event) => {
  const [low, high] = range(part);
  const step = event.shiftKey ? LEAP : STEP;
  const now = region[part];
  return {
    ArrowLeft: now - step,
    ArrowDown: now - step,
    ArrowRight: now + step,
    ArrowUp: now + step,
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
    clearTimeout(saying);
    find(".said").textContent = "";
    clearTimeout(keysRest);
    keysRest = setTimeout(write, KEYS_REST_MS);
  });
  for (const name of ["keyup", "blur"]) handle.addEventListener(name, () => keysRest && write());
}

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
