// The latest takes of all tabs, which this browser remembers (static/takes.js), to choose one as a source with one click.
studio.latest = (element, props, trigger) => {
  const MOST = 5;
  const { address, clock, fill, make, whileThere } = studio.tools;
  const box = element.querySelector(".latest");
  const { texts, modes } = JSON.parse(box.dataset.settings);
  const asked = new Map(); // whether a file is still there, by path

  const there = (path) => {
    if (!asked.has(path))
      asked.set(
        path,
        fetch(address(path), { method: "HEAD" }).then(
          ({ ok }) => ok,
          () => false
        )
      );
    return asked.get(path);
  };

  const choose = ({ path }) => {
    const name = path.split("/").at(-1);
    props.value = { path, url: address(path), orig_name: name, meta: { _type: "gradio.FileData" } };
    trigger("input");
  };

  const row = (card) => {
    const name = card.title || card.path.split("/").at(-1);
    const label = fill(texts.use, { name, length: clock(card.seconds) });
    return make("li", {}, [
      make("button", { type: "button", "aria-label": label, title: name, click: () => choose(card) }, [
        card.art && make("img", { src: card.art, alt: "" }),
        make("span", { class: "name", text: name }),
        make("span", { class: "length", text: clock(card.seconds) }),
      ]),
    ]);
  };

  let drawn = 0;
  const draw = async () => {
    if (!element.offsetParent) return;
    const turn = ++drawn;
    const all = modes.flatMap((mode) => studio.remembered(mode)).sort((one, other) => (other.at ?? 0) - (one.at ?? 0));
    const found = [];
    for (const card of all) {
      if (!card.gone && (await there(card.path))) found.push(card);
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
