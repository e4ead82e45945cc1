// The latest takes of all tabs, which this browser remembers (static/takes.js), to choose one as a source with one click.
studio.latest = (element, props, trigger) => {
  const MOST = 5;
  const { address, api, clock, fill, isGone, make, where, whileThere } = studio.tools;
  const box = element.querySelector(".latest");
  const { texts, modes } = JSON.parse(box.dataset.settings);
  const asked = new Map(); // whether a file is still there, by address

  const there = (at) => {
    if (!asked.has(at))
      asked.set(
        at,
        isGone(at).then((gone) => !gone)
      );
    return asked.get(at);
  };

  // The copy that Gradio serves is deleted after a day; a take that is kept for longer is uploaded like any other file.
  // Returns its path, or what is wrong as a sentence, and whether it is gone.
  const copied = async (card) => {
    if (!(await isGone(address(card.path)))) return { path: card.path };
    const song = await fetch(where(card), { cache: "no-store" });
    if (!song.ok) return { wrong: texts.gone, gone: true };
    const form = new FormData();
    form.append("files", await song.blob(), card.path.split("/").at(-1));
    const answer = await fetch(api("/upload"), { method: "POST", body: form });
    const found = await answer.json();
    return answer.ok ? { path: found[0] } : { wrong: found.detail };
  };

  const choose = async (card, item) => {
    const { path, wrong, gone } = await copied(card).catch(() => ({ wrong: texts.lost }));
    if (path) {
      const name = path.split("/").at(-1);
      props.value = { path, url: address(path), orig_name: name, meta: { _type: "gradio.FileData" } };
      trigger("input");
      return;
    }
    item.querySelector("p")?.remove();
    item.append(make("p", { role: "alert", text: wrong }));
    if (!gone) return;
    asked.set(where(card), false);
    item.querySelector("button").remove();
  };

  const row = (card) => {
    const name = card.title || card.path.split("/").at(-1);
    const label = fill(texts.use, { name, length: clock(card.seconds) });
    const item = make("li", {}, [
      make("button", { type: "button", "aria-label": label, title: name, click: () => choose(card, item) }, [
        card.art && make("img", { src: card.art, alt: "" }),
        make("span", { class: "name", text: name }),
        make("span", { class: "length", text: clock(card.seconds) }),
      ]),
    ]);
    return item;
  };

  // The source that was here before a reload.
  const again = async () => {
    const mode = element.closest("[id$=-latest]").id.replace(/-latest$/, "");
    const file = studio.formerSource(mode);
    if (!file) return;
    const gone = await isGone(address(file.path));
    if (studio.hasSource(mode)) return; // the visitor has chosen one meanwhile
    if (gone) return studio.sourceIsGone(mode, texts.source_gone);
    props.value = { ...file, again: true };
    trigger("input");
  };

  let drawn = 0;
  const draw = async () => {
    if (!element.offsetParent) return;
    again();
    const turn = ++drawn;
    const all = modes.flatMap((mode) => studio.remembered(mode)).sort((one, other) => (other.at ?? 0) - (one.at ?? 0));
    const found = [];
    for (const card of all) {
      if (!card.gone && (await there(where(card)))) found.push(card);
      if (turn !== drawn) return; // a newer list is on its way
      if (found.length === MOST) break;
    }
    box.hidden = !found.length;
    box.querySelector("ul").replaceChildren(...found.map(row));
  };

  // A tab that is opened, and a take that comes or goes.
  new IntersectionObserver(draw).observe(element);
  whileThere(element)("studio-remembered", draw);
};
