// The song to be: the source with new music before and after it, whose ends are dragged. Gradio runs this text as it runs
// static/region.js. The scale rests while an end is dragged, and makes room again afterwards.
const FINE = 1; // seconds
const COARSE = 10;
const KEYS_REST_MS = 200; // after the last key press the fields are written

const JOIN = 4; // seconds that are heard of a join

const find = (selector) => element.querySelector(selector);
const { clamp, fill } = studio.tools;
const track = find(".track");
const grips = { before: find(".grip.before"), after: find(".grip.after") };
const SIDE = { before: -1, after: 1 };

let length = 0; // seconds of the source
let drawn;
let added = { before: 0, after: 0 }; // seconds
let view = { from: 0, to: 1 };
let drag = null;
let keysRest = 0;

const other = (side) => (side === "before" ? "after" : "before");
const most = (side) => studio.spans.most(length, added[other(side)], props.most, props.longest);

const scale = () => {
  view = studio.spans.scale(length, added);
};

const show = () => {
  const share = (seconds) => `${(100 * (seconds - view.from)) / (view.to - view.from)}%`;
  const places = { start: -added.before, source: 0, end: length, last: length + added.after };
  for (const [name, seconds] of Object.entries(places)) track.style.setProperty(`--${name}`, share(seconds));
  for (const [side, grip] of Object.entries(grips)) {
    const text = fill(props.texts.seconds, { seconds: Math.round(added[side] * 100) / 100 });
    const said = { valuemin: 0, valuemax: Math.floor(most(side)), valuenow: added[side], valuetext: text };
    for (const [name, value] of Object.entries(said)) grip.setAttribute(`aria-${name}`, value);
    find(`.part.${side} span`).textContent = added[side] ? text : "";
  }
};

// Impossible values are clamped; the line below the fields and validation explain them.
const take = () => {
  const value = props.value || {};
  length = value.seconds || 0;
  find(".timeline").hidden = !length;
  listen.open(value.path);
  if (value.peaks !== drawn) {
    drawn = value.peaks;
    studio.tools.outline(find(".wave"), drawn);
  }
  for (const side of ["before", "after"]) {
    const blank = String(value[side] ?? "").trim() === "";
    added[side] = clamp((blank ? props.usual[side] : studio.seconds(value[side])) || 0, 0, props.most);
  }
  scale();
  show();
};

const write = () => {
  clearTimeout(keysRest);
  keysRest = 0;
  props.value = { ...props.value, ...added };
  trigger("input");
};

const move = (side, seconds) => {
  added = { ...added, [side]: clamp(Math.round(seconds / FINE) * FINE, 0, Math.floor(most(side))) };
  show();
};

for (const [side, grip] of Object.entries(grips)) {
  grip.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button) return;
    drag = { x: event.clientX, from: added[side] };
    grip.setPointerCapture(event.pointerId);
  });
  grip.addEventListener("pointermove", (event) => {
    if (!drag || !event.isPrimary) return;
    const seconds = ((event.clientX - drag.x) * (view.to - view.from)) / track.clientWidth;
    drag.moved = true;
    move(side, drag.from + SIDE[side] * seconds);
  });
  const drop = (keep) => {
    if (!drag) return;
    const { moved } = drag;
    drag = null;
    if (!moved || !keep) return take();
    scale();
    show();
    write();
  };
  grip.addEventListener("pointerup", () => drop(true));
  grip.addEventListener("pointercancel", () => drop(false));
  grip.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const now = added[side];
    const step = SIDE[side] * (event.shiftKey ? COARSE : FINE);
    const next = {
      ArrowLeft: now - step,
      ArrowRight: now + step,
      ArrowDown: now - Math.abs(step),
      ArrowUp: now + Math.abs(step),
      PageDown: now - COARSE,
      PageUp: now + COARSE,
      Home: 0,
      End: most(side),
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    move(side, next);
    scale();
    show();
    clearTimeout(keysRest);
    keysRest = setTimeout(write, KEYS_REST_MS);
  });
  for (const name of ["keyup", "blur"]) grip.addEventListener(name, () => keysRest && write());
}

// --- hearing it ---

let part = [0, 0]; // seconds
const whole = () => [0, length];
const play = find(".play");
// Before the press is heard.
play.addEventListener("click", () => (part = whole()), true);
const listen = studio.listen(find(".timeline"), props.texts, {
  part: () => (part[1] ? part : whole()),
  moved: (seconds) => find(".head").style.setProperty("left", `${length ? (100 * seconds) / length : 0}%`),
});
find(".join").addEventListener("click", () => {
  const last = [Math.max(length - JOIN, 0), length];
  part = added.after ? last : [0, Math.min(JOIN, length)];
  listen.renew();
  if (play.dataset.state === "play") listen.toggle();
});

// --- the page ---

watch("value", () => {
  // An echo of the fields must not pull an end back that is being moved.
  if ((drag || keysRest) && props.value?.peaks === drawn) return;
  drag = null;
  clearTimeout(keysRest);
  keysRest = 0;
  take();
});
take();
