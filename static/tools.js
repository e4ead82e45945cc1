// What the other scripts share.

// Words and digits as the server reads them (plain_text.py): line breaks of any kind, nothing that cannot be seen, and digits
// and minus signs of any keyboard.
studio.plain = (text) =>
  text
    .replace(/\r\n|[\r\v\f\u0085\u2028\u2029]|(?:\\+r)?\\+n/g, "\n")
    .replace(/[\u00a0\u2000-\u200a\u202f\u205f\u2800\u3164\uffa0]/g, " ")
    .replace(/[\u00ad\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g, "");
studio.digits = (text) =>
  text
    .normalize("NFKC")
    .replace(/[\u2010-\u2015\u2212]/g, "-")
    .replace(/\p{Nd}/gu, (digit) => {
      const point = digit.codePointAt(0);
      let zero = point;
      while (point - zero < 9 && /\p{Nd}/u.test(String.fromCodePoint(zero - 1))) zero--;
      return point - zero;
    });

// Numbers and times as the server reads them (page_form.py): "1,024" is grouped, "2,5" has a decimal comma, "2:30" are
// minutes and seconds. NaN for anything else, 0 for a blank.
studio.number = (value) => {
  const text = studio.digits(String(value ?? "")).trim();
  return Number(/^-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$/.test(text) ? text.replaceAll(",", "") : text.replace(",", "."));
};
studio.seconds = (value) => {
  const [, minutes, seconds] =
    /^(\d{1,3}):([0-5]\d(?:[.,]\d+)?)$/.exec(studio.digits(String(value ?? "")).trim()) ?? [];
  return minutes === undefined ? studio.number(value) : 60 * Number(minutes) + studio.number(seconds);
};

// What a tab of the browser has chosen. A reload brings back what that tab had; a new tab begins with what the last one chose.
studio.chosen = {
  read: (key) => {
    try {
      return sessionStorage.getItem(key) ?? localStorage.getItem(key);
    } catch {
      return null; // a browser that keeps nothing
    }
  },
  write: (key, value) => {
    for (const name of ["sessionStorage", "localStorage"])
      try {
        window[name].setItem(key, value);
      } catch {}
  },
};

// What the browser keeps, as JSON: for all its tabs, or for one. One that keeps nothing, or has no room left, is no fault.
const stored = (name) => ({
  read: (key) => {
    try {
      return JSON.parse(window[name].getItem(key));
    } catch {
      return null;
    }
  },
  // Whether it was kept.
  write: (key, value) => {
    try {
      window[name].setItem(key, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  },
});
studio.local = stored("localStorage");
studio.session = stored("sessionStorage");

studio.tools = (() => {
  const MODES = ["generate", "cover", "extend", "edit"]; // the tabs that make songs
  const ICONS = {
    play: "M8 5v14l11-7z",
    pause: "M6 5h4v14H6zM14 5h4v14h-4z",
    download: "M11 4h2v8l3-3 1.4 1.4L12 15.8 6.6 10.4 8 9l3 3zM5 18h14v2H5z",
    menu: "M6 10a2 2 0 1 0 0 4 2 2 0 0 0 0-4zm6 0a2 2 0 1 0 0 4 2 2 0 0 0 0-4zm6 0a2 2 0 1 0 0 4 2 2 0 0 0 0-4z",
    star: "m12 3 2.7 5.6 6.1.9-4.4 4.3 1 6.1L12 17l-5.4 2.9 1-6.1L3.2 9.5l6.1-.9z",
    note: "M9 4v10.3a3.5 3.5 0 1 0 2 3.2V8h7V4z",
    close: "M6.4 5 12 10.6 17.6 5 19 6.4 13.4 12l5.6 5.6-1.4 1.4-5.6-5.6L6.4 19 5 17.6l5.6-5.6L5 6.4z",
  };

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  // To a tenth of a second, as a region is chosen.
  const exactClock = (seconds) => {
    const tenths = Math.round(seconds * 10);
    return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
  };
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"></path></svg>`;

  // Prompts and file names are set as text, never as HTML.
  const make = (tag, settings = {}, children = []) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(settings))
      if (name === "text") made.textContent = value;
      else if (name === "icon") made.innerHTML = icon(value);
      else if (typeof value === "function") made.addEventListener(name, value);
      else if (value === true || value === false) made.toggleAttribute(name, value);
      else if (value !== undefined) made.setAttribute(name, value);
    made.append(...children.filter(Boolean));
    return made;
  };

  // A button that plays or pauses, with its sign in a `box` if there is more in it.
  const sign = (button, state, label, box = button) => {
    if (button.dataset.state === state) return;
    button.dataset.state = state;
    box.innerHTML = icon(state);
    button.setAttribute("aria-label", label);
  };

  // The contents of a box are made again; the focus stays at its place among them.
  const refill = (box, children) => {
    const stops = () => [...box.querySelectorAll("button, [tabindex]")];
    const at = stops().indexOf(document.activeElement);
    box.replaceChildren(...children);
    if (at >= 0) (stops()[at] ?? stops().at(-1))?.focus({ preventScroll: true });
  };

  // The button of Gradio that empties a file's block: the one that opens no menu, whose name is in the browser's language.
  // The sentence at a wrong file has such a button as well, before it.
  const empty = (block) => [...block.querySelectorAll("button[aria-haspopup]")].at(-1)?.click();

  // Listens on the document until a component is gone: Gradio does not notify the script when it rebuilds a component.
  const whileThere = (element) => {
    const gone = new AbortController();
    let built = element.isConnected;
    return (kind, act) =>
      document.addEventListener(
        kind,
        (event) => {
          built ||= element.isConnected;
          if (built && !element.isConnected) gone.abort();
          else act(event);
        },
        { signal: gone.signal }
      );
  };

  // Where the studio is: at the page's own origin. The server knows the path alone; its scheme and host are those of the
  // last proxy, which may have told it too little.
  const root = () => {
    const { root = "" } = window.gradio_config ?? {};
    return location.origin + new URL(root, location.origin).pathname.replace(/\/+$/, "");
  };
  const api = (path) => `${root()}${window.gradio_config?.api_prefix ?? "/gradio_api"}${path}`;
  const address = (path) => api(`/file=${path.split("/").map(encodeURIComponent).join("/")}`);

  // Where a take is served: by its run for as long as it is kept, a copy in another format by its path. The page has a
  // `blob` itself.
  const where = ({ blob, url, path }) => blob ?? (url ? `${root()}${url}` : address(path));

  // Whether a file has been deleted: only an answer that says so tells.
  const isGone = async (at) => {
    try {
      const { status } = await fetch(at, { method: "HEAD", cache: "no-store" });
      return [404, 410].includes(status);
    } catch {
      return false;
    }
  };

  return {
    MODES,
    address,
    api,
    clamp,
    clock,
    empty,
    exactClock,
    fill,
    icon,
    isGone,
    make,
    refill,
    root,
    sign,
    where,
    whileThere,
  };
})();
