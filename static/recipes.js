// A recipe is a link whose fragment, which no server is ever sent, holds the settings and seeds of a song: whoever opens it finds
// them in the form. What comes with a link is untrusted; page_form.py checks each value.
(() => {
  const SIGN = "#recipe=";

  // --- what is to be done in a tab, which is opened for it ---

  const panels = new Map(); // by tab that was opened: what triggers an event of its songs
  const waiting = []; // {mode, act}
  const show = (mode) => {
    const tab = document.querySelector(`#studio-tabs [data-tab-id="${mode}"]`);
    if (tab?.getAttribute("aria-selected") === "false") tab.click();
  };
  const serve = () => {
    // Before the page is built there is no tab to open.
    if (!waiting.length || !panels.size) return;
    const next = waiting.find(({ mode }) => panels.has(mode)) ?? waiting[0];
    show(next.mode);
    const trigger = panels.get(next.mode);
    if (!trigger) return;
    waiting.splice(waiting.indexOf(next), 1);
    next.act(trigger);
    serve();
  };
  studio.inTab = (mode, act) => {
    studio.touch(mode);
    waiting.push({ mode, act });
    serve();
  };
  studio.panel = (mode, trigger) => {
    panels.set(mode, trigger);
    setTimeout(serve);
  };

  // --- recipes ---

  const through = async (bytes, stream) =>
    new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

  const pack = async (settings) => {
    const bytes = await through(JSON.stringify(settings), new CompressionStream("deflate-raw"));
    const letters = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
    return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  };
  const unpack = async (text) => {
    const letters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(await through(bytes, new DecompressionStream("deflate-raw"))));
  };

  studio.recipe = async (mode, settings) =>
    `${location.origin}${location.pathname}${SIGN}${mode}.${await pack(settings)}`;

  // The recipe leaves the page's address: a reload must not bring it again.
  const take = () => {
    if (!location.hash.startsWith(SIGN)) return;
    const [, mode, text] = /^([a-z]+)\.(.+)$/.exec(location.hash.slice(SIGN.length)) ?? [];
    history.replaceState(null, "", location.pathname + location.search);
    if (!studio.tools.MODES.includes(mode)) return;
    studio.inTab(mode, async (trigger) => {
      const settings = await unpack(text).catch(() => ({}));
      trigger("edit", { settings, link: true });
    });
  };
  window.addEventListener("hashchange", take);
  take();
})();
