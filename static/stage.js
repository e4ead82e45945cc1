// Now playing: a sheet over the page, in the colours of the cover, with the words as they are sung, and the parts of the song, each of
// which can be repeated while it is heard, or replaced in Edit.
(() => {
  const { clock, lineAt, make, refill, sing } = studio.tools;
  const { player } = studio;
  let sheet;
  let texts;
  let part; // the chosen one
  let repeats = false;
  let timing; // {id, bar, begun}: the take whose words are being timed, and the bar that shows it
  let drawn = []; // what the sheet was drawn from
  let song;
  const parts = {};

  const element = (name, tag, settings = {}, children = []) => {
    parts[name] = make(tag, { class: name, ...settings }, children);
    return parts[name];
  };
  const box = (name, children = []) => element(name, "div", {}, children);
  const button = (name, text, click, more = {}) => element(name, "button", { type: "button", text, click, ...more });

  const sectionsOf = ({ settings, lines, bar, seconds }) =>
    studio.spans.sections({ lyrics: settings?.request?.lyrics, lines, bar, seconds });

  // The chosen part, or the one that is heard.
  const current = () => part ?? studio.spans.sectionAt(sectionsOf(player.track().card), player.now());

  const choose = (next) => {
    part = part?.start === next?.start ? undefined : next;
    if (part) player.seek(player.track(), part.start, true);
    player.repeat(repeats && part ? part : undefined);
    mark();
  };
  const toggleLoop = () => {
    part = current();
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
    document.querySelector(".foot-player .close").before(player.speed());
    parts.back.focus();
  };

  const build = () => {
    texts = studio.texts.player;
    sheet = make("dialog", { class: "now-playing", "aria-label": texts.stage, close: leave }, [
      element("art", "img", { alt: "" }),
      box("about"),
      box("words"),
      box("place"),
      box("sections"),
      box("controls", [
        button("play", "", () => player.toggle()),
        element("time", "span"),
        box("switch"),
        button("loop", texts.loop, toggleLoop, { "aria-pressed": "false" }),
        button("replace", texts.replace, replace),
        button("on", texts.go_on, goOn),
      ]),
      button("close", "", () => sheet.close(), { icon: "close", "aria-label": texts.close_stage }),
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

  // Its words with their times, or how to get these.
  const words = (card) => {
    if (card.lines) return [make("ol", {}, card.lines.map(lineOf))];
    if (timing?.id === card.id) return [make("p", { role: "status", tabindex: "-1", text: texts.timing })];
    const untimed = make("p", { text: texts.untimed });
    if (!card.can_be_timed || !card.run) return [untimed];
    const time = () => {
      Object.assign(card, { note: "", wrong: false });
      timing = { id: card.id, bar: studio.timeTake(card) };
      follow();
    };
    const wrong = card.wrong && make("p", { role: "alert", text: card.note });
    return [untimed, wrong, make("button", { type: "button", text: texts.time_them, click: time })].filter(Boolean);
  };
  const chip = (section) => {
    const made = make("button", { type: "button", text: section.name, click: () => choose(section) });
    made.start = section.start;
    return made;
  };

  const draw = () => {
    const track = player.track();
    const { card, name, where } = track;
    const sections = sectionsOf(card);
    parts.art.hidden = !card.art;
    if (card.art) parts.art.src = card.art;
    parts.about.replaceChildren(
      make("h2", { text: name }),
      make("p", { text: [where, clock(card.seconds), ...(card.facts ?? [])].join(" · ") })
    );
    refill(parts.words, words(card));
    refill(parts.place, [player.place()]);
    refill(parts.sections, sections.map(chip));
    refill(parts.switch, player.switches());
    parts.loop.hidden = !sections.length;
    parts.replace.hidden = !sections.length || !card.run;
    parts.on.hidden = !card.run;
    if (song !== track.song) {
      part = undefined;
      repeats = false;
    }
    song = track.song;
    mark();
  };

  const show = () => {
    const { card } = player.track();
    if (timing?.id === card.id && (card.lines || card.note)) timing = undefined;
    const state = [card.id, card.lines, card.note, player.source(), timing];
    if (state.some((each, at) => each !== drawn[at])) draw();
    drawn = state;
    parts.place.firstChild.show(player.now());
    player.signPlay(parts.play);
    parts.time.textContent = `${clock(player.now())} / ${clock(card.seconds)}`;
    const { at } = lineAt(card.lines ?? [], player.now());
    const line = parts.words.querySelector("ol")?.children[at]?.firstChild;
    if (line) sing(parts.words, line);
  };
  const follow = () => {
    if (!sheet?.open) return;
    if (player.track()) show();
    else sheet.close();
  };
  document.addEventListener("studio-player", follow);
  // However the timing went, it has ended with the last run of its bar.
  document.addEventListener("studio-runs", ({ detail: { bar, runs } }) => {
    if (bar !== timing?.bar) return;
    if (runs.length) timing.begun = true;
    else if (timing.begun) timing = undefined;
    follow();
  });

  studio.stage = (back) => {
    if (!sheet) build();
    parts.back = back;
    drawn = [];
    show();
    // The bar has no room for it on a phone.
    parts.switch.after(player.speed());
    sheet.showModal();
  };
})();
