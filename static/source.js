// The source of a tab as a card with its picture, name and length, in Gradio's own block. A reload brings it back for as long
// as the studio has it: Gradio keeps no files, but the browser keeps what they are called.
(() => {
  const KEPT = "ace-music-studio-sources";
  const shown = {}; // the path on each tab's card
  const kept = studio.session.read(KEPT) ?? {}; // by tab
  const former = { ...kept };

  const keep = (mode, file) => {
    kept[mode] = file;
    studio.session.write(KEPT, kept);
  };

  // The file that the tab had before a reload, once.
  studio.formerSource = (mode) => {
    const file = former[mode];
    delete former[mode];
    return studio.hasSource(mode) ? undefined : file;
  };
  studio.hasSource = (mode) => Boolean(shown[mode]);

  // The take of this browser that a file is.
  const takeOf = (name) => {
    const takes = studio.tools.MODES.flatMap((mode) => studio.remembered(mode));
    return takes.find(({ path }) => path.split("/").at(-1) === name);
  };

  const card = (block, file) => {
    const { address, clock, empty, make } = studio.tools;
    const name = file.orig_name ?? file.path.split("/").at(-1);
    const { art, title } = takeOf(name) ?? {};
    const length = make("span");
    const sound = new Audio();
    sound.preload = "metadata";
    sound.addEventListener("loadedmetadata", () => {
      if (Number.isFinite(sound.duration)) length.textContent = clock(sound.duration);
    });
    sound.src = address(file.path);
    return make("div", { class: "source-card" }, [
      art ? make("img", { src: art, alt: "" }) : make("span", { class: "art", icon: "note" }),
      make("p", {}, [make("strong", { text: title || name, title: name }), length]),
      make("button", { type: "button", text: studio.texts.change, click: () => empty(block) }),
    ]);
  };

  // The block is drawn when its tab is opened, which may be a moment later than its file is there.
  const whenDrawn = (mode, act) => {
    const block = document.getElementById(`${mode}-source`);
    if (block) act(block);
    else requestAnimationFrame(() => whenDrawn(mode, act));
  };

  const place = (mode, file) =>
    whenDrawn(mode, (block) => {
      if (shown[mode] !== file?.path) return;
      for (const old of block.querySelectorAll(".source-card, .source-gone")) old.remove();
      block.toggleAttribute("data-filled", Boolean(file));
      if (file) block.append(card(block, file));
    });

  // The next reload does not ask for it again.
  studio.sourceIsGone = (mode, text) => {
    keep(mode);
    whenDrawn(mode, (block) => block.append(studio.tools.make("p", { class: "source-gone", role: "status", text })));
  };

  // Called with every change of a source, and more often: Gradio takes an answer of the server for one.
  studio.source = (mode, file) => {
    const path = file?.path;
    if (shown[mode] === path) return file;
    shown[mode] = path;
    place(mode, file);
    keep(mode, file);
    return file;
  };
})();
