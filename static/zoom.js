// A closer look at a waveform: the stage scrolls sideways over a track that is wider than it. Buttons, + and -, Ctrl and the
// wheel, and two fingers zoom; the overview, a slider, shows the whole file and moves what is in view.
studio.zoom = (element, texts, { clock, pinched, viewed }) => {
  const { clamp } = studio.tools;
  const { inView, mostZoom, viewFrom } = studio.spans;
  const find = (selector) => element.querySelector(selector);
  const [stage, track, overview] = [".stage", ".track", ".overview"].map(find);
  const [less, more] = [".less", ".more"].map(find);
  let length = 0;
  let zoom = 1;

  const most = () => mostZoom(length);
  const edge = () => track.offsetLeft; // the room at the ends of the track
  const span = () => inView(length, stage.clientWidth, track.clientWidth, edge(), zoom);
  const from = () => viewFrom(length, stage.scrollLeft, track.clientWidth, edge(), span());

  const show = () => {
    const start = from();
    const end = start + span();
    const first = clock(start);
    const last = clock(end);
    overview.hidden = zoom === 1;
    overview.style.setProperty("--from", `${(100 * start) / (length || 1)}%`);
    overview.style.setProperty("--to", `${(100 * end) / (length || 1)}%`);
    overview.setAttribute("aria-valuemax", (length - span()).toFixed(1));
    overview.setAttribute("aria-valuenow", start.toFixed(1));
    overview.setAttribute("aria-valuetext", studio.tools.fill(texts.view, { start: first, end: last }));
    less.setAttribute("aria-disabled", String(zoom === 1));
    more.setAttribute("aria-disabled", String(zoom >= most()));
    find(".scale").firstElementChild.textContent = first;
    find(".scale").lastElementChild.textContent = last;
    viewed();
  };

  const look = (seconds) => {
    stage.scrollLeft = edge() + (seconds / (length || 1)) * track.clientWidth;
    show();
  };

  // What is at `x`, in pixels of the stage, stays there.
  const to = (next, x = stage.clientWidth / 2) => {
    const share = (stage.scrollLeft + x - edge()) / (track.clientWidth || 1);
    zoom = clamp(next, 1, most());
    stage.style.setProperty("--zoom", zoom);
    stage.scrollLeft = share * track.clientWidth + edge() - x;
    show();
  };

  more.addEventListener("click", () => to(zoom * 2));
  less.addEventListener("click", () => to(zoom / 2));
  stage.addEventListener("scroll", show, { passive: true });
  new ResizeObserver(show).observe(stage);

  const place = (event) => event.clientX - stage.getBoundingClientRect().left;
  // A pinch on a touchpad comes as a wheel with Ctrl.
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      to(zoom * 2 ** clamp(-event.deltaY / 100, -1, 1), place(event));
    },
    { passive: false }
  );

  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "+" || event.key === "=") to(zoom * 2);
    else if (event.key === "-") to(zoom / 2);
    else return;
    event.preventDefault();
  });

  // --- two fingers ---

  const fingers = new Map();
  let pinch = null;
  const spread = () => {
    const [one, other] = [...fingers.values()];
    return { apart: Math.max(Math.abs(one - other), 1), middle: (one + other) / 2 };
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    if (event.isPrimary) fingers.clear();
    fingers.set(event.pointerId, place(event));
    if (fingers.size !== 2) return;
    pinch = { ...spread(), zoom };
    pinched();
  });
  stage.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, place(event));
    if (!pinch || fingers.size !== 2) return;
    const { apart, middle } = spread();
    stage.scrollLeft -= middle - pinch.middle;
    pinch.middle = middle;
    to((pinch.zoom * apart) / pinch.apart, middle);
  });
  for (const name of ["pointerup", "pointercancel"])
    stage.addEventListener(name, (event) => {
      fingers.delete(event.pointerId);
      pinch = null;
    });

  // --- the overview ---

  const point = (event) => {
    const box = overview.getBoundingClientRect();
    look(((event.clientX - box.left) / box.width) * length - span() / 2);
  };
  overview.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    overview.setPointerCapture(event.pointerId);
    point(event);
  });
  overview.addEventListener("pointermove", (event) => overview.hasPointerCapture(event.pointerId) && point(event));
  overview.addEventListener("keydown", (event) => {
    const start = from();
    const step = span() / 4;
    const next = {
      ArrowLeft: start - step,
      ArrowDown: start - step,
      ArrowRight: start + step,
      ArrowUp: start + step,
      PageDown: start - 4 * step,
      PageUp: start + 4 * step,
      Home: 0,
      End: length,
    }[event.key];
    if (next === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    look(clamp(next, 0, length));
  });

  return {
    open: (seconds) => {
      length = seconds;
      to(1);
    },
    // Into the middle of the view, unless it is in view.
    bring: (seconds) => {
      if (zoom > 1 && (seconds < from() || seconds > from() + span())) look(seconds - span() / 2);
    },
    // A drag beyond the stage takes the view along.
    push: (event) => {
      const box = stage.getBoundingClientRect();
      const beyond = Math.max(event.clientX - box.right, 0) + Math.min(event.clientX - box.left, 0);
      if (zoom > 1 && beyond) stage.scrollLeft += beyond / 4;
    },
  };
};
