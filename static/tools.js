// What the other scripts share.

// Numbers and times as the server reads them (page_form.py): "1,024" is grouped, "2,5" has a decimal comma, "2:30" are
// minutes and seconds. NaN for anything else, 0 for a blank.
studio.number = (value) => {
  const text = String(value ?? "").trim();
  return Number(/^-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$/.test(text) ? text.replaceAll(",", "") : text.replace(",", "."));
};
studio.seconds = (value) => {
  const [, minutes, seconds] = /^(\d{1,3}):([0-5]\d(?:[.,]\d+)?)$/.exec(String(value ?? "").trim()) ?? [];
  return minutes === undefined ? studio.number(value) : 60 * Number(minutes) + studio.number(seconds);
};

studio.tools = (() => {
  const ICONS = {
    play: "M8 5v14l11-7z",
    pause: "M6 5h4v14H6zM14 5h4v14h-4z",
    download: "M11 4h2v8l3-3 1.4 1.4L12 15.8 6.6 10.4 8 9l3 3zM5 18h14v2H5z",
    menu: "M6 10a2 2 0 1 0 0 4 2 2 0 0 0 0-4zm6 0a2 2 0 1 0 0 4 2 2 0 0 0 0-4zm6 0a2 2 0 1 0 0 4 2 2 0 0 0 0-4z",
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

  const address = (path) => {
    const { root = location.origin, api_prefix = "/gradio_api" } = window.gradio_config ?? {};
    return `${root}${api_prefix}/file=${path.split("/").map(encodeURIComponent).join("/")}`;
  };

  // Where a take is served: by its run for as long as it is kept, a copy in another format by its path.
  const where = ({ url, path }) => (url ? `${window.gradio_config?.root ?? location.origin}${url}` : address(path));

  return { address, clamp, clock, exactClock, fill, icon, make, where, whileThere };
})();
