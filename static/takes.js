// The songs of this browser, one list for all tabs, which lies in the tab that is looked at. A song is what one run has made: up to four
// takes, which keep their letters. What was made of a take stands under its song. What a take is comes from the server (page_takes.py) and
// stays in this browser's storage. static/player.js plays them all.
(() => {
  const MOST = 100; // takes of each tab that are kept, and those with a star
  const STORAGE = "ace-music-studio-takes";
  const LEVEL = "ace-music-studio-level-equal";
  const SORTED = "ace-music-studio-level-sorted";
  const PLAYS = "ace-music-studio-plays";
  const UNDO_MS = 8000;
  const SEARCHED = 4; // songs from which there is something to search
  const LOSSY = ["mp3", "ogg"];
  const { MODES, address, clock, fill, isGone, lineAt, make, root, shape, sign, sing, wave, where, whileThere } =
    studio.tools;
  const { chosen, player } = studio;
  let texts;
  let uses;
  let formats;
  const named = (name, values) => fill(texts[name], values);

  // --- menus ---

  // A menu closes with a click anywhere else, with Esc, which then cancels nothing (studio.js), and when its button
  // moves. What grows above it scrolls the page without moving it in the window.
  const menus = () => document.querySelectorAll(".menu[open]");
  const openedAt = new WeakMap(); // the top of the button's place in the window, by menu
  const topOf = (menu) => Math.round(menu.firstChild.getBoundingClientRect().top);
  const shut = () => {
    for (const menu of menus()) if (openedAt.has(menu) && topOf(menu) !== openedAt.get(menu)) menu.open = false;
  };
  window.addEventListener("scroll", shut, { capture: true, passive: true });
  window.addEventListener("resize", () => {
    for (const menu of menus()) menu.open = false;
  });
  document.addEventListener("click", ({ target }) => {
    for (const menu of menus())
      if (!menu.contains(target) || target.closest(".sheet button:not(.copy)")) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of menus()) {
      menu.open = false;
      menu.firstChild.focus();
    }
  });

  // The sheet of an open menu lies on top of everything, below its button or above it: nothing moves under the pointer.
  const place = (made) => {
    const [button, sheet] = made.children;
    sheet.popover = "manual";
    sheet.togglePopover?.(made.open);
    if (!made.open) {
      openedAt.delete(made);
      return;
    }
    openedAt.set(made, topOf(made));
    const { left, right, top, bottom } = button.getBoundingClientRect();
    const room = innerHeight - bottom;
    const below = room >= sheet.offsetHeight + 8 || room > top;
    const fromLeft = Math.max(Math.min(right, innerWidth - 8) - sheet.offsetWidth, Math.min(left, 8));
    const fromTop = below ? bottom + 4 : Math.max(top - 4 - sheet.offsetHeight, 8);
    sheet.style.left = `${fromLeft}px`;
    sheet.style.top = `${fromTop}px`;
    sheet.style.maxHeight = `${(below ? room : top) - 12}px`;
  };

  // Its content is made when it is opened: a long list has many menus, and nobody opens them all.
  const menu = (label, children) => {
    const sheet = make("div", { class: "sheet" });
    const made = make("details", { class: "menu" }, [make("summary", { icon: "menu", "aria-label": label }), sheet]);
    made.addEventListener("toggle", () => {
      for (const other of menus()) if (made.open && other !== made) other.open = false;
      if (made.open) sheet.replaceChildren(...children().filter(Boolean));
      place(made);
    });
    return made;
  };

  // --- what is kept ---

  const KEPT =
    "id run number mode at star renamed seed title label parent made_from sha256 changed seconds path url kind facts levels score lufs peaks art lines lrc alignment words source can_be_timed is_draft bar settings".split(
      " "
    );
  const takes = new Map(); // by id
  const of = (mode) => [...takes.values()].filter((card) => card.mode === mode).sort((one, other) => other.at - one.at);
  const told = () => document.dispatchEvent(new CustomEvent("studio-remembered"));

  const read = (mode) => {
    const found = studio.local.read(`${STORAGE}-${mode}`);
    return (Array.isArray(found) ? found : [])
      .filter((each) => typeof each?.path === "string")
      .map((each) => {
        // What an earlier version kept knows its run by its address alone.
        const [, run, number] = /\/runs\/(\w+)\/takes\/(\d+)$/.exec(each.url ?? "") ?? [];
        const id = run ? `${run}/${number}` : each.path;
        return { at: 0, run: run ?? "", number: Number(number ?? 1), ...each, mode, id };
      });
  };

  const brief = (card) => Object.fromEntries(KEPT.map((name) => [name, card[name]]));
  const write = (mode) => {
    const all = of(mode);
    const starred = all.filter(({ star }) => star);
    // Fewer where the browser has no room for as many.
    for (let most = MOST; most; most = Math.floor(most / 2)) {
      const wanted = new Set([...all.slice(0, most), ...starred.slice(0, most)]);
      const kept = all.filter((card) => wanted.has(card)).map(brief);
      if (studio.local.write(`${STORAGE}-${mode}`, kept)) break;
    }
    told();
  };

  // What a card is comes again: its songs and rows keep the one that they know.
  const know = (card) => takes.set(card.id, Object.assign(takes.get(card.id) ?? {}, card));

  const load = (mode) => {
    const found = read(mode);
    const there = new Set(found.map(({ id }) => id));
    for (const card of of(mode)) if (!there.has(card.id)) takes.delete(card.id);
    found.forEach(know);
  };
  for (const mode of MODES) load(mode);

  // Another window of this browser has changed them.
  window.addEventListener("storage", ({ key }) => {
    const mode = MODES.find((each) => key === `${STORAGE}-${each}`);
    if (!mode) return;
    load(mode);
    draw();
    told();
  });

  // The takes of a tab that this browser knows of, the newest first.
  studio.remembered = (mode) => of(mode);

  // --- songs ---

  // A song is {key, takes, at, title, label, parent, children, latest}; `parent` is the take that it was made of.
  let songs = new Map(); // by key
  let roots = [];
  let newest = new Map(); // by tab, and with the key "" that of all
  const keyOf = (card) => card.run || card.id;
  const gather = () => {
    const found = new Map();
    const byHash = new Map();
    for (const card of takes.values()) {
      const key = keyOf(card);
      if (!found.has(key)) found.set(key, { key, takes: [], children: [] });
      found.get(key).takes.push(card);
      if (card.sha256) byHash.set(card.sha256, card);
    }
    songs = found;
    for (const song of found.values()) {
      song.takes.sort((one, other) => one.number - other.number);
      song.at = Math.max(...song.takes.map(({ at }) => at));
      [song.first] = song.takes;
      song.latest = song.at;
    }
    newest = new Map();
    const old = [...found.values()].sort((one, other) => other.at - one.at);
    for (const song of old) {
      for (const key of [song.first.mode, ""]) if (!newest.has(key)) newest.set(key, song);
      const { parent, made_from } = song.first;
      const origin = takes.get(parent) ?? byHash.get(made_from);
      const above = origin && found.get(keyOf(origin));
      if (!above || above.at >= song.at) continue;
      song.parent = origin;
      above.children.push(song);
      above.latest = Math.max(above.latest, song.latest);
    }
    roots = old.filter((song) => !song.parent).sort((one, other) => other.latest - one.latest);
  };

  const songOf = (card) => songs.get(keyOf(card));
  const letter = ({ number }) => String.fromCharCode(64 + number);
  const score = (points) => {
    const shown = Math.round(points);
    const said = named("score", { score: shown });
    return make("span", { class: "score", role: "img", text: shown, title: said, "aria-label": said });
  };
  const lineage = (song) => (song.parent ? [song, ...lineage(songOf(song.parent))] : [song]);
  const family = (song) => [song, ...song.children.flatMap(family)];

  // What a song is called: by its visitor, by what it is to the take that it was made of, or by its words.
  const isNamedAfterParent = ({ first, parent }) => parent && first.label && !first.renamed;
  const titled = (song) => {
    const { title, label, path } = song.first;
    if (isNamedAfterParent(song)) return fill(label, { take: letter(song.parent) });
    return title || path.split("/").at(-1);
  };
  const inFull = (song) =>
    isNamedAfterParent(song) ? `${inFull(songOf(song.parent))}, ${titled(song)}` : titled(song);

  const change = (song, news) => {
    for (const card of song.takes) Object.assign(card, news);
    write(song.first.mode);
    draw();
  };

  // --- what plays ---

  let level = chosen.read(LEVEL) !== "false";
  let sorted = chosen.read(SORTED) === "true";
  let plays = chosen.read(PLAYS) !== "false";

  // The loudest takes of a song are turned down to the quietest.
  const gain = (card) => {
    const loudness = (songOf(card)?.takes ?? []).map(({ lufs }) => lufs);
    const all = loudness.filter(Number.isFinite);
    const equal = level && all.length > 1 && Number.isFinite(card.lufs);
    return equal ? 10 ** ((Math.min(...all) - card.lufs) / 20) : 1;
  };
  const track = (card) => ({
    mode: "songs",
    song: keyOf(card),
    card,
    number: card.number,
    letter: letter(card),
    name: songOf(card) ? inFull(songOf(card)) : card.title,
    where: fill(studio.texts.player.take, { letter: letter(card) }),
    gain: () => gain(card),
    lost: () => lose(card),
  });
  const tracks = (key) => (songs.get(key) ?? newest.get(""))?.takes.map(track) ?? [];

  // The files of a song that is opened may have been deleted.
  const check = async (card) => {
    if (card.gone || !(await isGone(where(card)))) return;
    card.gone = true;
    draw();
  };

  // A file that does not play: whether it is gone, only the studio can tell.
  const lose = async (card) => {
    card.gone = await isGone(where(card));
    card.unheard = !card.gone;
    draw();
  };

  // --- files ---

  const fileTitle = (card) => {
    const song = songOf(card);
    return song.takes.length > 1 ? `${inFull(song)} ${letter(card)}` : inFull(song);
  };
  // A take as a file of a kind; its own kind is the file itself, unless it has another title by now.
  const fileOf = async (card, kind) => {
    const title = fileTitle(card);
    const asked = new URLSearchParams({ format: kind, title });
    const isItself = !card.url || (kind === card.kind && !card.renamed);
    const answer = await fetch(isItself ? where(card) : `${where(card)}?${asked}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const blob = await answer.blob();
    const name = title.replace(/[\\/:*?"<>|\p{Cc}]/gu, "-");
    return new File([blob], `${name}.${kind}`, { type: blob.type });
  };
  const kindsOf = (card) => (card.url ? ["mp3", ...formats.filter((kind) => kind !== "mp3")] : [card.kind]);

  const say = (card, note, wrong = false) => {
    if ((card.note ?? "") === note) return;
    Object.assign(card, { note, wrong });
    draw();
  };
  const preparing = new Set(); // ids and kinds: a second press asks for nothing more
  const prepared = async (card, kind) => {
    const key = `${card.id} ${kind}`;
    if (preparing.has(key)) return;
    preparing.add(key);
    const buttons = [...document.querySelectorAll(".take .download")];
    const busy = buttons.find((each) => each.card === card);
    const text = named("preparing", { format: kind.toUpperCase() });
    const heard = make("span", { class: "heard", role: "status", text });
    busy?.classList.add("busy");
    busy?.after(heard);
    try {
      const file = await fileOf(card, kind);
      const lossy = LOSSY.includes(card.kind) && kind !== card.kind;
      say(card, lossy ? named("from_lossy", { source: card.kind.toUpperCase() }) : "");
      return file;
    } catch {
      await lose(card);
      if (card.gone) return;
      card.unheard = false;
      say(card, texts.not_prepared, true);
    } finally {
      preparing.delete(key);
      busy?.classList.remove("busy");
      heard.remove();
    }
  };
  const download = async (card, kind) => {
    const file = await prepared(card, kind);
    if (!file) return;
    const link = make("a", { href: URL.createObjectURL(file), download: file.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  // A phone hands the file to another app. Where preparing it took longer than a click counts, a second one is asked for.
  const sharesFiles = () => navigator.canShare && matchMedia("(pointer: coarse)").matches;
  const recipe = (card) => studio.recipe(card.mode, card.settings);
  let ready; // {card, title, file}, from the first click to the second
  const share = async (card, button) => {
    const title = fileTitle(card);
    if (ready?.card !== card || ready.title !== title) {
      const file = await prepared(card, kindsOf(card)[0]);
      if (!file) return;
      ready = { card, title, file };
    }
    const shared = { title, files: [ready.file] };
    try {
      if (navigator.canShare(shared)) await navigator.share(shared);
      else await navigator.share({ title, url: await recipe(card) });
      ready = undefined;
      button.textContent = texts.share;
    } catch ({ name }) {
      if (name === "NotAllowedError") button.textContent = texts.share_now;
      else if (name !== "AbortError") say(card, texts.not_shared, true);
    }
  };

  // --- what is done with a take ---

  const send = (kind, data) => panels.get(here)?.trigger(kind, data);
  const pressed = ({ run, number }, more) => ({ run, number, ...more });
  const act = (card, label, click, more = {}) =>
    make("button", {
      type: "button",
      text: label,
      "aria-label": named("of_take", { text: label, letter: letter(card) }),
      click,
      ...more,
    });
  const start = (card, name) =>
    act(card, texts[name], () => send("submit", pressed(card, { name })), { class: `starts ${name}` });
  const again = (card) =>
    act(card, texts.make, () => studio.inTab(card.mode, (trigger) => trigger("retry", { settings: card.settings })), {
      class: "starts",
    });
  // Returns the bar that shows the run.
  studio.timeTake = (card) => {
    send("submit", pressed(card, { name: "timed" }));
    return here;
  };
  studio.useTake = (card, use, more) => send("select", pressed(card, { use, ...more }));

  const remove = (song) => {
    const gone = song.takes;
    for (const { id } of gone) takes.delete(id);
    write(song.first.mode);
    draw();
    offer(gone);
  };
  const removeAll = () => {
    const gone = [...takes.values()];
    takes.clear();
    for (const mode of MODES) write(mode);
    draw();
    offer(gone);
  };
  // Undo, for a while.
  let offered;
  const offer = (gone) => {
    const line = part("removed");
    clearTimeout(offered);
    const hide = () => {
      line.hidden = true;
    };
    const back = () => {
      for (const card of gone) takes.set(card.id, card);
      for (const mode of new Set(gone.map((card) => card.mode))) write(mode);
      hide();
      draw();
      focusOn(songOf(gone[0]));
    };
    line.replaceChildren(
      make("span", { role: "status", text: texts.removed }),
      make("button", { type: "button", text: texts.undo, click: back })
    );
    line.hidden = false;
    line.lastChild.focus({ preventScroll: true });
    // It stays for as long as it has the focus, which would be lost.
    offered = setTimeout(() => {
      if (line.contains(document.activeElement)) line.addEventListener("focusout", hide, { once: true });
      else hide();
    }, UNDO_MS);
  };

  const copyLink = async (card, button) => {
    await studio.copy(await recipe(card));
    button.textContent = texts.copied;
    setTimeout(() => (button.textContent = texts.link), 1500);
  };

  const ways = (song, card) => {
    const rest = [
      act(card, texts.settings, () =>
        studio.inTab(card.mode, (trigger) => trigger("edit", { settings: card.settings, link: false }))
      ),
      act(card, texts.link, ({ currentTarget }) => copyLink(card, currentTarget), { class: "copy" }),
      make("button", {
        type: "button",
        class: "copy",
        "data-copy": card.seed,
        "data-copied": texts.copied,
        text: named("seed", card),
      }),
      act(card, texts.remove, () => remove(song)),
      make(
        "p",
        { class: "facts" },
        (card.levels ?? []).map((text) => make("span", { text }))
      ),
    ];
    if (card.gone || !card.run) return [again(card), ...rest];
    return [
      card.is_draft && start(card, "finish"),
      start(card, "retake"),
      card.can_be_timed && start(card, "timed"),
      ...Object.entries(uses)
        .filter(([use]) => use !== "extend")
        .map(([use, label]) => act(card, label, () => studio.useTake(card, use))),
      ...kindsOf(card).map((kind) =>
        act(card, named("download", { format: kind.toUpperCase() }), () => download(card, kind), { class: "format" })
      ),
      ...rest,
    ];
  };

  // --- a take ---

  const lyrics = (card) => {
    if (!card.lines) return;
    const lines = card.lines.map((line) =>
      make("li", {}, [
        make("button", { type: "button", click: () => player.seek(track(card), line.start, true) }, [
          make("span", { text: clock(line.start) }),
          line.text,
        ]),
      ])
    );
    const link = { class: "button", href: address(card.lrc), download: card.lrc.split("/").at(-1), text: texts.lrc };
    return make("div", { class: "lines" }, [
      make("ol", { class: "timed", "aria-label": named("timed_title", { letter: letter(card) }) }, lines),
      make("p", { class: "remark", text: card.alignment }),
      make("a", link),
    ]);
  };

  const stateOf = (plays) => (plays && !player.paused() ? "pause" : "play");

  const row = (song, card, isNewest) => {
    const what = track(card);
    const play = make("button", { type: "button", class: "play", click: () => player.toggle(what) }, [
      make("span"),
      make("span", { class: "letter", text: letter(card) }),
    ]);
    const line = wave(
      named("of_take", { text: texts.position, letter: letter(card) }),
      card,
      (seconds, pointed) => player.seek(what, seconds, pointed),
      () => player.toggle(what)
    );
    const [kind] = kindsOf(card);
    const get = make("button", {
      type: "button",
      class: "download",
      icon: "download",
      "aria-label": named("of_take", {
        text: named("download", { format: kind.toUpperCase() }),
        letter: letter(card),
      }),
      click: () => download(card, kind),
    });
    get.card = card;
    const lost = [
      make("span", { class: "play letter", text: letter(card) }),
      make("p", { class: "gone", text: texts.gone }),
    ];
    const words = lyrics(card);
    const took = make(
      "article",
      {
        class: "take",
        "data-seed": card.seed,
        "data-take": card.id,
        ...(isNewest && { id: `${card.mode}-take-${card.number}` }),
        "aria-label": what.where,
        focusin: () => select(song, card),
      },
      [
        ...(card.gone ? lost : [play, line]),
        Number.isFinite(card.score) && score(card.score),
        !card.gone && get,
        menu(named("of_take", { text: texts.menu, letter: letter(card) }), () => ways(song, card)),
        card.unheard && make("p", { class: "gone unheard", role: "status", text: texts.unheard }),
        card.best && make("p", { class: "best", text: fill(card.best, { letter: letter(card) }) }),
        card.words &&
          make("details", { class: "written" }, [
            make("summary", { text: texts.words }),
            make("p", { text: card.words }),
          ]),
        ...(card.warnings ?? []).map((text) => make("p", { class: "warning", text })),
        words,
        card.note &&
          make("p", { class: card.wrong ? "notice" : "said", role: card.wrong ? "alert" : "status", text: card.note }),
      ]
    );
    took.follow = () => {
      const plays = player.is(card);
      took.classList.toggle("current", plays);
      line.show(plays ? player.now() : 0);
      if (plays && songs.has(song.key)) select(song, card);
      if (card.unheard && plays && player.now() > 0) {
        card.unheard = false;
        took.querySelector(".unheard")?.remove();
      }
      const state = stateOf(plays);
      sign(play, state, named(state, { letter: letter(card) }), play.firstElementChild);
      if (!words) return;
      const { at, sung } = lineAt(card.lines, player.now());
      sing(words.firstChild, plays && sung ? words.firstChild.children[at].firstChild : null);
    };
    return took;
  };

  // --- a song ---

  const opened = new Set(); // keys of songs whose takes are shown
  const selected = new Map(); // by key: the take that was played or had the focus last
  const take = (song) => song.takes.find(({ id }) => id === selected.get(song.key)) ?? song.first;
  const elements = new Map(); // by key

  const select = (song, card) => {
    if (selected.get(song.key) === card.id) return;
    selected.set(song.key, card.id);
    const there = elements.get(song.key)?.querySelector(".verbs");
    if (there?.closest(".song").dataset.run === song.key) there.replaceWith(verbs(song));
  };

  // What is done most with a take of the song, the one that was played last.
  const verbs = (song) => {
    const card = take(song);
    const values = { letter: letter(card) };
    if (card.gone || !card.run) return make("div", { class: "verbs" }, [again(card)]);
    const button = (text, click, more) => make("button", { type: "button", text, click, ...more });
    return make("div", { class: "verbs" }, [
      button(named("more", values), () => send("submit", pressed(card, { name: "more" })), { class: "starts more" }),
      button(named("extend", values), () => studio.useTake(card, "extend")),
      sharesFiles() && button(texts.share, ({ target }) => share(card, target)),
    ]);
  };

  const UNITS = [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
  ];
  const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  const age = (at) => {
    const seconds = (Date.now() - at) / 1000;
    const [unit, size] = UNITS.find(([, size]) => seconds >= size) ?? [];
    if (!at) return "";
    return seconds < 60 ? texts.now : ago.format(-Math.floor(seconds / size), unit);
  };
  setInterval(() => {
    for (const each of document.querySelectorAll(".library .age")) each.textContent = age(Number(each.dataset.at));
  }, 60000);

  // The title of a song, whose element may have been built again.
  const focusOn = ({ key }) => elements.get(key)?.querySelector(".name").focus();

  const rename = (song, button) => {
    const box = make("input", {
      class: "renaming",
      "aria-label": texts.name,
      maxlength: "120",
      value: titled(song),
      keydown: (event) => {
        const { key, isComposing } = event;
        if (isComposing || !["Enter", "Escape"].includes(key)) return;
        event.preventDefault(); // else Enter would press the button that gets the focus
        if (key === "Escape") box.value = titled(song);
        box.blur();
        focusOn(song);
      },
      blur: () => {
        const title = box.value.trim();
        box.replaceWith(button);
        if (title && title !== titled(song)) change(song, { title, renamed: true });
      },
    });
    button.replaceWith(box);
    box.select();
    box.focus();
  };

  const head = (song) => {
    const { first } = song;
    const title = titled(song);
    const open = opened.has(song.key);
    const play = make(
      "button",
      {
        type: "button",
        class: "cover",
        click: () => player.toggle(track(song.takes.find((card) => player.is(card)) ?? take(song))),
      },
      [make("span", { class: "sign" }), first.art && make("img", { src: first.art, alt: "", loading: "lazy" })]
    );
    const name = make("button", {
      type: "button",
      class: "name",
      text: title,
      title: texts.rename,
      click: () => rename(song, name),
    });
    const length = clock(first.seconds);
    const facts = [length, ...(first.facts ?? []).filter((text) => text !== length)];
    if (song.takes.length > 1 && !open) facts.push(named("count", { count: song.takes.length }));
    const fold = make("button", {
      type: "button",
      class: "fold",
      "aria-expanded": String(open),
      "aria-label": named("fold", { name: title }),
      click: () => {
        if (open) opened.delete(song.key);
        else opened.add(song.key);
        draw();
        if (!open) song.takes.forEach(check);
      },
    });
    const star = make("button", {
      type: "button",
      class: "star",
      icon: "star",
      "aria-pressed": String(Boolean(first.star)),
      "aria-label": named("star", { name: title }),
      click: () => change(song, { star: !first.star }),
    });
    const made = make("header", { class: "head" }, [
      play,
      make("div", { class: "what" }, [
        make("h3", {}, [name]),
        make("p", { class: "facts" }, [
          ...facts.map((text) => make("span", { text })),
          make("span", { class: "age", "data-at": String(song.at), text: age(song.at) }),
        ]),
      ]),
      star,
      fold,
    ]);
    made.follow = () => {
      const plays = song.takes.some((card) => player.is(card));
      made.parentElement?.classList.toggle("current", plays);
      const state = stateOf(plays);
      sign(play, state, named(`${state}_song`, { name: title }), play.firstElementChild);
    };
    return made;
  };

  const fresh = new Set(); // the keys of songs that have just come
  const shown = new Set(); // what follows the player
  const build = (song) => {
    const open = opened.has(song.key);
    const isNewest = newest.get(song.first.mode) === song;
    const top = head(song);
    const rows = open ? ranked(song).map((card) => row(song, card, isNewest)) : [];
    const made = make(
      "section",
      {
        class: `song${song.parent ? " child" : ""}${open ? " open" : ""}${fresh.has(song.key) ? " fresh" : ""}`,
        animationend: () => fresh.delete(song.key),
        "data-run": song.key,
        "aria-label": inFull(song),
      },
      [top, ...rows, open && verbs(song), open && children(song)]
    );
    elements.set(song.key, made);
    for (const each of [top, ...rows]) {
      shown.add(each);
      each.follow();
    }
    return made;
  };
  const ranked = ({ takes }) =>
    sorted ? takes.toSorted((one, other) => (other.score ?? -1) - (one.score ?? -1)) : takes;
  const children = ({ children }) =>
    children.length && make("div", { class: "children" }, children.toReversed().map(build));

  // --- the list ---

  const library = make("div", { class: "library" });
  const part = (name) => library.querySelector(`.${name}`);
  const panels = new Map(); // by tab: what its component is
  let here; // the tab in which the list lies
  let filled = false;

  // What the element of a song shows: as long as it stays the same, so does the element.
  const SEEN = "id title star gone unheard note alignment score best warnings words".split(" ");
  const stamp = (song) =>
    JSON.stringify(
      family(song).map(({ key, takes, first }) => [
        key,
        opened.has(key),
        sorted,
        newest.get(first.mode).key === key,
        takes.map((card) => SEEN.map((name) => card[name])),
      ])
    );
  const stamps = new Map();

  // The focus goes to where it was in an element that is built again.
  const focusOf = (old) => {
    const at = document.activeElement;
    if (!old?.contains(at)) return () => {};
    const song = at.closest("[data-run]").dataset.run;
    const id = at.closest("[data-take]")?.dataset.take;
    const name = at.classList[0] ? `.${at.classList[0]}` : at.localName;
    return () => {
      const all = [...(elements.get(song)?.querySelectorAll(id ? `[data-take="${id}"] ${name}` : name) ?? [])];
      (all[0] ?? elements.get(song)?.querySelector(".fold"))?.focus({ preventScroll: true });
    };
  };

  const draw = () => {
    gather();
    if (!filled) return;
    const list = part("list");
    const wanted = roots.map((song) => {
      const now = stamp(song);
      const old = elements.get(song.key);
      if (old?.isConnected && stamps.get(song.key) === now && old.parentElement === list) return old;
      const focus = focusOf(old);
      stamps.set(song.key, now);
      const made = build(song);
      if (old?.parentElement === list) old.replaceWith(made);
      queueMicrotask(focus);
      return made;
    });
    wanted.forEach((each, at) => {
      if (list.children[at] !== each) list.insertBefore(each, list.children[at] ?? null);
    });
    while (list.children.length > wanted.length) list.lastChild.remove();
    search();
    for (const { element } of panels.values()) empty(element);
    player.renew("songs");
  };

  const search = () => {
    const words = part("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const starred = part("starred").getAttribute("aria-pressed") === "true";
    const few = songs.size < SEARCHED;
    part("find").hidden = few;
    part("tools").classList.toggle("alone", few);
    let count = 0;
    for (const song of roots) {
      const matches = family(song).some((each) => {
        const { first } = each;
        if (starred && !first.star) return false;
        const { prompt = "", lyrics = "" } = first.settings?.request ?? {};
        const text = [inFull(each), first.title, ...(first.facts ?? []), prompt, lyrics].join(" ").toLowerCase();
        return words.every((word) => text.includes(word));
      });
      const shows = matches || songs.size < SEARCHED;
      elements.get(song.key).hidden = !shows;
      count += shows;
    }
    part("none").hidden = count > 0 || !roots.length;
  };

  const fillIn = () => {
    if (filled) return;
    filled = true;
    texts = studio.texts.takes;
    ({ uses, formats } = studio.texts);
    const pick = (name, pressed) =>
      make("button", {
        type: "button",
        class: name,
        text: texts[name],
        "aria-pressed": String(pressed),
        click: ({ target }) => {
          for (const each of target.parentElement.children) each.setAttribute("aria-pressed", String(each === target));
          search();
        },
      });
    const box = (name, checked, set) =>
      make("label", { class: name }, [
        make("input", { type: "checkbox", checked, change: ({ target }) => set(target.checked) }),
        texts[name],
      ]);
    const options = () => [
      box("level", level, (now) => {
        level = now;
        chosen.write(LEVEL, now);
        player.level();
      }),
      make("p", { class: "remark" }, [
        make("span", { class: "level", text: `${texts.level_help} ` }),
        make("span", { class: "keys", text: texts.digits }),
      ]),
      box("sort", sorted, (now) => {
        sorted = now;
        chosen.write(SORTED, now);
        draw();
      }),
      box("plays", plays, (now) => {
        plays = now;
        chosen.write(PLAYS, now);
      }),
      make("button", { type: "button", text: texts.remove_all, click: removeAll }),
      make("p", { class: "remark", text: texts.stays }),
    ];
    library.append(
      make("div", { class: "makings" }),
      make("div", { class: "tools alone" }, [
        make("div", { class: "find", hidden: true }, [
          make("input", {
            type: "search",
            class: "search",
            "aria-label": texts.search,
            placeholder: texts.search,
            input: search,
          }),
          make("div", { class: "segments", role: "group", "aria-label": texts.filter }, [
            pick("all", true),
            pick("starred", false),
          ]),
        ]),
        menu(texts.options, options),
      ]),
      make("p", { class: "removed", hidden: true }),
      make("p", { class: "none", role: "status", hidden: true, text: texts.no_match }),
      make("div", { class: "list" })
    );
    player.add("songs", tracks, studio.texts.player);
    player.add("draft", () => []);
    gather();
    reveal(newest.get(""));
  };

  // A song is opened, and what it hangs under.
  const reveal = (song) => {
    if (!song) return;
    opened.clear();
    for (const each of lineage(song)) opened.add(each.key);
  };

  document.addEventListener("studio-player", () => {
    for (const each of shown)
      if (each.isConnected) each.follow();
      else shown.delete(each);
    for (const [id, made] of makings) offerDraft(runOf(id) ?? {}, made);
    forgetDrafts();
  });

  // --- songs that are being made ---

  const runs = new Map(); // by bar: those that run or wait, from static/runs.js
  const underWay = () => [...runs.values()].flat();
  const makings = new Map(); // cards by the id of their run
  const awaited = new Map(); // by id: whether this page started the run, of those that it has seen under way

  const empty = (element) => {
    const none = element.querySelector(".empty");
    const busy = underWay().length > 0;
    none.hidden = takes.size > 0 && !busy;
    none.textContent = busy ? texts.making : element.querySelector(".takes").dataset.none;
    none.classList.toggle("heard", busy);
  };

  const begin = (run) => {
    const name = run.title || texts.in_the_making;
    const picture = make("div", { class: "wave" });
    awaited.set(run.run, !run.found);
    const cancel = {
      type: "button",
      text: texts.cancel,
      "aria-label": `${texts.cancel}: ${name}`,
      click: () => studio.cancel(run.run),
    };
    const listen = ({ target }) => {
      if (target.ariaDisabled !== "true") hearDraft(runOf(run.run), made);
    };
    const made = make("article", { class: "making", "data-run": run.run, "aria-label": name }, [
      make("div", { class: "cover" }),
      make("div", { class: "what" }, [make("p", { class: "name", text: name }), make("p", { class: "stage" })]),
      make("button", cancel),
      picture,
      make("button", { type: "button", class: "listen", hidden: true, click: listen }),
      make("p", { class: "draft", hidden: true }),
    ]);
    makings.set(run.run, made);
    return made;
  };

  const outlineOf = ({ facts }) => facts?.progress?.outline ?? [];
  const drawOutline = (run, picture) => {
    const outline = outlineOf(run);
    if (picture.outline === String(outline)) return;
    picture.outline = String(outline);
    picture.innerHTML = shape(outline);
  };

  // A song can be heard once on its way, where the studio offers it. The page fetches the draft whole: the studio deletes it
  // with the end of the run.
  const runOf = (id) => underWay().find(({ run }) => run === id);
  const isDraftOf = (id) => player.track()?.mode === "draft" && player.track().song === id;
  const drafts = new Map(); // the page's copies by the ids of their runs
  const forgetDrafts = () => {
    for (const [id, blob] of drafts) {
      if (makings.has(id) || isDraftOf(id)) continue;
      URL.revokeObjectURL(blob);
      drafts.delete(id);
    }
  };
  const draftTrack = async (run) => {
    const answer = await fetch(`${root()}${run.facts.song_draft.url}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const blob = URL.createObjectURL(await answer.blob());
    drafts.set(run.run, blob);
    const file = new Audio(blob);
    await new Promise((done, failed) => Object.assign(file, { onloadedmetadata: done, onerror: failed }));
    const card = { id: `draft ${run.run}`, blob, seconds: file.duration, outline: outlineOf(run) };
    const name = run.title || texts.in_the_making;
    return { mode: "draft", song: run.run, card, name, where: texts.draft, gain: () => 1, lost: () => {} };
  };
  const hearDraft = async (run, made) => {
    if (made.track) return player.toggle(made.track);
    made.wanted = true;
    offerDraft(run, made);
    if (run.facts.song_draft.state !== "offered") return;
    const answer = await fetch(`${root()}${run.facts.song_draft.url}`, { method: "POST" }).catch(() => null);
    made.wanted = Boolean(answer?.ok);
  };
  const playDraft = async (run, made) => {
    made.wanted = false;
    try {
      made.track = await draftTrack(run);
      player.toggle(made.track);
    } catch {} // the song is finished by now, or the studio cannot be reached: the button stays
  };
  const draftText = (run, made, { state, problem }) => {
    if (problem) return `${problem.message} ${problem.hint}`;
    if (made.wanted || state === "asked") return texts.draft_asked;
    return isDraftOf(run.run) && !player.paused() ? texts.draft_pause : texts.draft_play;
  };
  const offerDraft = (run, made) => {
    const offered = run.facts?.song_draft;
    const button = made.querySelector(".listen");
    button.hidden = !offered;
    if (!offered) return;
    if (offered.state === "ready" && made.wanted) playDraft(run, made);
    const text = draftText(run, made, offered);
    // Not disabled, which would take the focus away.
    button.setAttribute("aria-disabled", String(offered.state === "failed" || text === texts.draft_asked));
    if (button.textContent !== text) button.textContent = text;
  };

  // The words of a song that is being made, as they are written.
  const draft = (box, text) => {
    if (!text || box.textContent === text) return;
    box.hidden = false;
    box.textContent = text;
    box.scrollTop = box.scrollHeight;
  };

  const follow = () => {
    const all = underWay();
    const there = new Set(all.map(({ run }) => run));
    for (const [id, made] of makings) {
      if (there.has(id)) continue;
      made.remove();
      makings.delete(id);
    }
    forgetDrafts();
    for (const run of all) {
      const made = makings.get(run.run) ?? begin(run);
      if (!made.isConnected) part("makings").append(made);
      const share = Math.floor(100 * (run.facts?.share ?? 0));
      made.querySelector(".stage").textContent = run.facts?.sentence ?? "";
      draft(made.querySelector(".draft"), run.facts?.draft);
      drawOutline(run, made.querySelector(".wave"));
      offerDraft(run, made);
      made.querySelector(".wave").style.setProperty("--at", `${share}%`);
    }
    for (const { element } of panels.values()) empty(element);
  };

  let expected = false;
  document.addEventListener("studio-runs", ({ detail }) => {
    if (!MODES.includes(detail.bar) || !filled) return;
    runs.set(detail.bar, detail.runs);
    expected ||= detail.runs.length > 0;
    const element = panels.get(detail.bar)?.element;
    if (element) {
      element.querySelector(".notify").hidden = !detail.runs.length || !window.Notification;
      element.querySelector(".notify input").checked = studio.notifies();
    }
    follow();
  });

  // Whether nothing covers the middle of an element, and it is within the window.
  const isSeen = (element) => {
    const { x, y, width, height } = element.getBoundingClientRect();
    return element.contains(document.elementFromPoint(x + width / 2, y + height / 2));
  };

  // A song that is there comes into sight and plays with the space bar, unless the visitor is busy elsewhere.
  const arrive = (mode) => {
    const { activeElement } = document;
    if (!expected || !library.offsetParent || activeElement?.matches("input, textarea, select")) return;
    expected = false;
    const first = document.getElementById(`${mode}-take-1`) ?? part("song");
    // What can be seen already stays where it is, and so does what is under the pointer.
    if (first && !isSeen(first.querySelector(".play") ?? first))
      first.closest(".song").scrollIntoView({ block: "nearest" });
    const idle = [document.body, ...["go", "cancel"].map((name) => document.getElementById(`${here}-${name}`))];
    if (idle.includes(activeElement)) first?.querySelector(".play").focus({ preventScroll: true });
  };

  // It plays by itself if nothing else does, or in place of its own draft. Browsers want a gesture first, and may refuse.
  // Another window of the browser, which found the run, stays silent.
  const playNew = (card) => {
    if (!plays || !awaited.get(card.run) || navigator.userActivation?.hasBeenActive === false) return;
    const heard = studio.isHeard();
    if (heard && isDraftOf(card.run)) player.seek(track(card), player.now(), true);
    else if (!heard) player.seek(track(card), 0, true);
  };

  // --- the tabs ---

  const received = new Set(); // values, which a component that is built again brings a second time
  const receive = ({ element, props }) => {
    const { value } = props;
    if (typeof value?.at !== "number" || received.has(value.at)) return;
    received.add(value.at);
    if (value.change) {
      const card = takes.get(value.take);
      if (!card) return;
      Object.assign(card, value.change);
      write(card.mode);
      return draw();
    }
    for (const card of value.takes) {
      const { title, renamed, at } = takes.get(card.id) ?? {};
      know({ ...card, gone: false, at: at ?? Date.now(), ...(renamed && { title }) });
    }
    element.querySelector(".record").hidden = !value.record;
    element.querySelector(".record pre").textContent = JSON.stringify(value.record, null, 2);
    const [first] = value.takes;
    if (!first) return;
    gather();
    const song = songOf(takes.get(first.id));
    reveal(song);
    if (awaited.has(first.run)) fresh.add(song.key);
    write(first.mode);
    draw();
    // Once the buttons have changed, which moves the focus.
    setTimeout(arrive, 100, first.mode);
    playNew(takes.get(first.id));
  };

  studio.takes = (element, props, trigger, watch) => {
    fillIn();
    const { mode } = element.querySelector(".takes").dataset;
    const panel = { element, props, trigger };
    panels.set(mode, panel);
    const adopt = () => {
      const place = element.querySelector(".place");
      if (!element.offsetParent || !place || library.parentElement === place) return;
      here = mode;
      place.append(library);
      draw();
    };
    new ResizeObserver(adopt).observe(element); // a tab that opens
    whileThere(element)("studio-runs", adopt);
    element.querySelector(".notify input").addEventListener("change", async ({ target }) => {
      target.checked = await studio.notify(target.checked);
    });
    watch("value", () => receive(panel));
    adopt();
    receive(panel);
    empty(element);
    studio.panel(mode, trigger);
  };
})();
