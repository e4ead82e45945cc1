// A recipe is a link whose fragment, which no server is ever sent, holds the settings and seeds of a song: whoever opens it finds
// them in the form. What comes with a link is untrusted; page_form.py checks each value.
(() => {
  const SIGN = "#recipe=";
  const { where } = studio.tools;
  const openers = new Map(); // by mode: what fills its form

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

  // The recipe in the page's address, {mode, text}, which leaves the address: a reload must not bring it again.
  let pending;
  const take = () => {
    if (!location.hash.startsWith(SIGN)) return;
    const [, mode, text] = /^([a-z]+)\.(.+)$/.exec(location.hash.slice(SIGN.length)) ?? [];
    history.replaceState(null, "", location.pathname + location.search);
    if (!mode) return;
    studio.touch(mode);
    pending = { mode, text };
    serve();
  };

  const serve = async () => {
    if (!pending || !openers.size) return;
    const { mode, text } = pending;
    const tab = document.querySelector(`#studio-tabs [data-tab-id="${mode}"]`);
    if (tab?.getAttribute("aria-selected") === "false") tab.click();
    const open = openers.get(mode);
    if (!open) return;
    pending = undefined;
    const settings = await unpack(text).catch(() => ({}));
    open({ settings, link: true });
  };

  studio.opensRecipes = (mode, open) => {
    openers.set(mode, open);
    setTimeout(serve);
  };
  window.addEventListener("hashchange", take);
  take();

  // The buttons of a take that give its recipe away, and on a phone its file.
  studio.shareButtons = (mode, card, act, texts) => {
    const copy = async ({ currentTarget: button }) => {
      await studio.copy(await studio.recipe(mode, card.settings));
      button.textContent = texts.copied;
      setTimeout(() => (button.textContent = texts.link), 1500);
    };
    const share = async () => {
      const url = await studio.recipe(mode, card.settings);
      const blob = await (await fetch(where(card))).blob();
      const files = [new File([blob], card.path.split("/").at(-1), { type: blob.type })];
      await navigator.share(navigator.canShare({ files }) ? { title: card.title, files } : { title: card.title, url });
    };
    const buttons = [act(texts.link, copy, { class: "copy" })];
    // A sheet that was closed again is no error.
    if (navigator.canShare && matchMedia("(pointer: coarse)").matches)
      buttons.push(act(texts.share, () => share().catch(() => {})));
    return buttons;
  };
})();
