// Now playing: a sheet over the page, in the colours of the cover, with the words as they are sung, and the parts of the song, each of which
// can be repeated while it is heard, or replaced in Edit.
(() => {
  const { clock, fill, lineAt, make, sign, wave } = studio.tools;
  const { player } = studio;
  let sheet;
  let texts;
  let part; // the chosen one
  let repeats = false;
  const parts = {};

  const button = (name, text, click, more = {}) =>
    (parts[name] = make("button", { type: "button", class: name, text, click, ...more }));

  const sectionsOf = ({ settings, lines, bar, seconds }) =>
    studio.spans.sections({ lyrics: settings?.request?.lyrics, lines, bar, seconds });

  // The chosen part, or the one that is heard.
  const current = () => {
    const { card } = player.track();
    return part ?? sectionsOf(card).find(({ start, end }) => start <= player.now() && player.now() < end);
  };

  const choose = (next) => {
    part = part?.start === next?.start ? undefined : next;
    if (part) player.seek(player.track(), part.start, true);
    player.repeat(repeats && part ? part : undefined);
    mark();
  };
  const toggleLoop = () => {
    part ??= current();
    repeats = !repeats;
    player.repeat(repeats ? part : undefined);
    mark();
  };
  const mark = () => {
    for (const chip of parts.sections.children) chip.setAttribute("aria-pressed", String(chip.start === part?.start));
    parts.loop.setAttribute("aria-pressed", String(repeats));
    const { seconds } = player.track().card;
    const there = parts.place.querySelector(".chosen") ?? make("i", { class: "chosen" });
    there.hidden = !part;
    there.style.left = `${(100 * (part?.start ?? 0)) / seconds}%`;
    there.style.right = `${100 - (100 * (part?.end ?? 0)) / seconds}%`;
    parts.place.firstChild.prepend(there);
  };

  const use = (name, more) => {
    const { card } = player.track();
    sheet.close();
    studio.useTake(card, name, more);
  };
  const replace = () => {
    const { start, end } = current();
    use("edit", { region: [start, end] });
  };
  const goOn = () => use("extend", { until: player.now() });

  const leave = () => {
    repeats = false;
    player.repeat();
    parts.back.focus();
  };

  const build = () => {
    texts = studio.texts.player;
    const box = (name, children = []) => (parts[name] = make("div", { class: name }, children));
    sheet = make("dialog", { class: "now-playing", "aria-label": texts.stage, close: leave }, [
      make("img", { class: "art", alt: "" }),
      box("about"),
      box("words"),
      box("place"),
      box("sections"),
      box("controls", [
        button("play", "", () => player.toggle()),
        make("span", { class: "time" }),
        box("switch"),
        button("loop", texts.loop, toggleLoop, { "aria-pressed": "false" }),
        button("replace", texts.replace, replace),
        button("on", texts.go_on, goOn),
      ]),
      make("button", {
        type: "button",
        class: "close",
        icon: "close",
        "aria-label": texts.close_stage,
        click: () => sheet.close(),
      }),
    ]);
    parts.sections.role = "group";
    parts.sections.ariaLabel = texts.sections;
    parts.switch.role = "group";
    parts.switch.ariaLabel = texts.switch;
    document.body.append(sheet);
  };

  const lineOf = (line) =>
    make("li", {}, [
      make("button", { type: "button", text: line.text, click: () => player.seek(player.track(), line.start, true) }),
    ]);

  const draw = () => {
    const { card, name, where, song } = player.track();
    const sections = sectionsOf(card);
    sheet.drawn = card;
    sheet.lines = card.lines;
    sheet.querySelector(".art").src = card.art ?? "";
    parts.about.replaceChildren(
      make("h2", { text: name }),
      make("p", { text: [where, clock(card.seconds), ...(card.facts ?? [])].join(" · ") })
    );
    parts.words.replaceChildren(
      card.lines ? make("ol", {}, card.lines.map(lineOf)) : make("p", { text: texts.untimed }),
      ...(card.lines || !card.can_be_timed || !card.run
        ? []
        : [make("button", { type: "button", text: texts.time_them, click: () => studio.timeTake(card) })])
    );
    parts.place.replaceChildren(
      wave(
        texts.position,
        card,
        (seconds, pointed) => player.seek(player.track(), seconds, pointed),
        () => player.toggle()
      )
    );
    parts.sections.replaceChildren(
      ...sections.map((each) => {
        const chip = make("button", { type: "button", text: each.name, click: () => choose(each) });
        chip.start = each.start;
        return chip;
      })
    );
    for (const name of ["loop", "replace"]) parts[name].hidden = !sections.length || (name === "replace" && !card.run);
    parts.on.hidden = !card.run;
    const all = player.tracks();
    parts.switch.replaceChildren(
      ...(all.length > 1
        ? all.map((each) =>
            make("button", {
              type: "button",
              text: each.letter,
              "aria-label": fill(texts.take, each),
              "aria-pressed": String(player.is(each.card)),
              click: () => player.goTo(each),
            })
          )
        : [])
    );
    if (sheet.song !== song) {
      part = undefined;
      repeats = false;
    }
    sheet.song = song;
    mark();
  };

  const follow = () => {
    const track = player.track();
    if (!sheet?.open) return;
    if (!track) return sheet.close();
    const { card } = track;
    if (sheet.drawn?.id !== card.id || sheet.lines !== card.lines) draw();
    parts.place.firstChild.show(player.now());
    sign(parts.play, player.paused() ? "play" : "pause", texts);
    sheet.querySelector(".time").textContent = `${clock(player.now())} / ${clock(card.seconds)}`;
    const { at } = lineAt(card.lines ?? [], player.now());
    const list = parts.words.querySelector("ol");
    const line = list?.children[at]?.firstChild;
    const last = list?.querySelector("[aria-current]");
    if (!line || last === line) return;
    last?.removeAttribute("aria-current");
    line.setAttribute("aria-current", "true");
    parts.words.scrollTop = line.offsetTop - (parts.words.clientHeight - line.offsetHeight) / 2;
  };
  document.addEventListener("studio-player", follow);

  studio.stage = (back) => {
    if (!sheet) build();
    parts.back = back;
    sheet.drawn = undefined;
    draw();
    sheet.showModal();
    follow();
  };
})();
