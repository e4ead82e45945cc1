// The takes of a tab as cards, drawn from one value: {at, takes, kept, record} for a new run, after whose `kept` first
// takes the new ones come, and {at, number, change} for news of one take. Earlier takes stay in this browser's storage. static/player.js
// plays them all.
(() => {
  const MOST_EARLIER = 50;
  const STORAGE = "ace-music-studio-takes";
  const { address, clock, fill, icon, isGone, lineAt, make, sketch, wave, where, whileThere } = studio.tools;
  const { player } = studio;

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
      if (!menu.contains(target) || target.closest(".sheet :is(a, button:not(.copy))")) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of menus()) {
      menu.open = false;
      menu.firstChild.focus();
    }
  });

  // The takes of a tab that this browser knows of, the newest first.
  studio.remembered = (mode) => {
    try {
      const found = JSON.parse(localStorage.getItem(`${STORAGE}-${mode}`));
      return Array.isArray(found)
        ? found.filter((each) => typeof each?.path === "string").map((each) => ({ id: each.path, ...each }))
        : [];
    } catch {
      return [];
    }
  };

  studio.takes = (element, props, trigger, watch) => {
    const find = (selector) => element.querySelector(selector);
    const onPage = whileThere(element);
    const { texts, uses, formats, tab } = JSON.parse(find(".takes").dataset.settings);
    const { mode } = find(".takes").dataset;
    const list = find(".list");
    const fold = find(".earlier");
    let cards = [];
    let order = []; // of the cards on the page: the newest ones first
    let record;
    let runs = []; // those that run or wait, from static/runs.js

    const named = (name, values) => fill(texts[name], values);

    // --- what plays ---

    const gain = (card) => {
      const all = cards.map(({ lufs }) => lufs).filter(Number.isFinite);
      const equal =
        find(".level input").checked && all.length > 1 && cards.includes(card) && Number.isFinite(card.lufs);
      return equal ? 10 ** ((Math.min(...all) - card.lufs) / 20) : 1;
    };

    const track = (card, number) => ({
      mode,
      card,
      number,
      name: card.title || card.path.split("/").at(-1),
      where: number ? `${tab}, ${named("title", { number }).toLowerCase()}` : tab,
      gain: () => gain(card),
      lost: () => lose(card),
    });
    const tracks = () => cards.map((card, at) => track(card, at + 1));

    // --- a card ---

    const note = (card) =>
      card.note &&
      make("p", { class: card.wrong ? "notice" : "said", role: card.wrong ? "alert" : "status", text: card.note });

    const lyrics = (card, number) => {
      if (!card.lines) return;
      const lines = card.lines.map((line) =>
        make("li", {}, [
          make("button", { type: "button", click: () => player.seek(track(card, number), line.start, true) }, [
            make("span", { text: clock(line.start) }),
            line.text,
          ]),
        ])
      );
      const link = { class: "button", href: address(card.lrc), download: card.lrc.split("/").at(-1), text: texts.lrc };
      return make("div", { class: "lines" }, [
        make("ol", { class: "timed", "aria-label": named("timed_title", { number }) }, lines),
        make("p", { class: "remark", text: card.alignment }),
        make("a", link),
      ]);
    };

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
      const below = innerHeight - bottom >= sheet.offsetHeight + 8 || innerHeight - bottom > top;
      sheet.style.left = `${Math.max(Math.min(right, innerWidth - 8) - sheet.offsetWidth, Math.min(left, 8))}px`;
      sheet.style.top = `${below ? bottom + 4 : Math.max(top - 4 - sheet.offsetHeight, 8)}px`;
      sheet.style.maxHeight = `${below ? innerHeight - bottom - 12 : top - 12}px`;
    };

    const menu = (label, children) => {
      const made = make("details", { class: "menu" }, [
        make("summary", { icon: "menu", "aria-label": label }),
        make("div", { class: "sheet" }, children),
      ]);
      made.addEventListener("toggle", () => {
        for (const other of menus()) if (made.open && other !== made) other.open = false;
        place(made);
      });
      return made;
    };

    const download = (card, of) => {
      if (card.preparing)
        return make("span", {
          class: "button download",
          role: "status",
          text: named("preparing", { format: card.preparing.toUpperCase() }),
        });
      const values = { format: card.kind.toUpperCase() };
      const link = make("a", {
        class: "button download",
        icon: "download",
        href: where(card),
        download: card.path.split("/").at(-1),
        "aria-label": of(named("download", values)),
      });
      link.append(make("span", { text: values.format }));
      return link;
    };

    const seed = (card) =>
      make("button", {
        type: "button",
        class: "copy",
        "data-copy": card.seed,
        "data-copied": texts.copied,
        text: named("seed", card),
      });

    // What a take of this run has in its menu; `of` adds to a button's text which take it is about.
    const ways = (card, number, act) => [
      ...["finish", "retake", "timed"]
        .filter((name) => name !== "timed" || card.can_be_timed)
        .filter((name) => name !== "finish" || card.is_draft)
        .map((name) => act(texts[name], () => trigger("submit", { name, number }), { class: `starts ${name}` })),
      act(texts.settings, () => trigger("edit", { settings: card.settings, link: false }), { class: "settings" }),
      ...Object.entries(uses)
        .filter(([use]) => use !== "extend")
        .map(([use, label]) => act(label, () => trigger("select", { use, number }))),
      make("label", { class: "formats" }, [
        texts.format,
        make(
          "select",
          {
            class: "format",
            "aria-label": named("format_of", { number }),
            change: ({ target: { value } }) => {
              change(number, { preparing: value });
              trigger("input", { number, kind: value });
            },
          },
          formats.map((kind) =>
            make("option", { value: kind, selected: kind === (card.preparing || card.kind), text: kind.toUpperCase() })
          )
        ),
      ]),
      ...studio.shareButtons(mode, card, act, texts),
      seed(card),
      make(
        "p",
        { class: "facts" },
        (card.levels || []).map((text) => make("span", { text }))
      ),
    ];

    // What is done most with a take; the download is at its head.
    const verbs = (number, act) =>
      make("div", { class: "verbs" }, [
        act(texts.more, () => trigger("submit", { name: "more", number }), { class: "starts more" }),
        act(texts.extend, () => trigger("select", { use: "extend", number })),
      ]);

    const former = (card, act) => [
      again(card, act),
      act(texts.settings, () => trigger("edit", { settings: card.settings, link: false })),
      act(texts.remove, () => {
        keep(stored().filter(({ id }) => id !== card.id));
        earlier();
        fold.firstElementChild.focus();
      }),
      ...studio.shareButtons(mode, card, act, texts),
      seed(card),
    ];
    const again = (card, act) =>
      act(texts.make, () => trigger("retry", { settings: card.settings }), { class: "starts" });

    const shown = new Set(); // follow what plays
    const draw = (card, number) => {
      const what = track(card, number);
      const of = (text) =>
        number ? `${text}, ${named("title", { number }).toLowerCase()}` : `${text}: ${what.name}, ${card.seed}`;
      const act = (label, click, more = {}) =>
        make("button", { type: "button", text: label, "aria-label": of(label), click, ...more });
      const play = make("button", { type: "button", class: "play", click: () => player.toggle(what) });
      const line = wave(
        of(texts.position),
        card,
        (seconds, pointed) => player.seek(what, seconds, pointed),
        () => player.toggle(what)
      );
      const words = lyrics(card, number);
      const name = make("h3", { text: what.name, title: what.name });
      const facts = make(
        "p",
        { class: "facts" },
        [...(number ? [named("title", { number })] : []), ...(card.facts || [])].map((text) => make("span", { text }))
      );
      const take = make(
        number ? "article" : "li",
        {
          class: "take",
          "data-seed": card.seed,
          ...(number && { id: `${mode}-take-${number}`, "aria-label": named("title", { number }) }),
        },
        [
          make("div", { class: "cover" }, [card.art && make("img", { src: card.art, alt: "" }), !card.gone && play]),
          make("div", { class: "what" }, [name, facts]),
          make("div", { class: "actions" }, [
            card.gone ? !number && again(card, act) : download(card, of),
            menu(of(texts.menu), number ? ways(card, number, act) : former(card, act)),
          ]),
          !card.gone && line,
          number && !card.gone && verbs(number, act),
          card.gone && make("p", { class: "gone", text: texts.gone }),
          card.unheard && make("p", { class: "gone unheard", role: "status", text: texts.unheard }),
          card.best && make("p", { class: "best", text: card.best }),
          card.words &&
            make("details", { class: "written" }, [
              make("summary", { text: texts.words }),
              make("p", { text: card.words }),
            ]),
          ...(card.warnings || []).map((text) => make("p", { class: "warning", text })),
          words,
          note(card),
        ]
      );
      take.card = card;
      take.follow = () => {
        const here = player.is(card);
        const state = here && !player.paused() ? "pause" : "play";
        take.classList.toggle("current", here);
        line.show(here ? player.now() : 0);
        if (card.unheard && here && player.now() > 0) {
          card.unheard = false;
          take.querySelector(".unheard")?.remove();
        }
        if (play.dataset.state !== state) {
          play.dataset.state = state;
          play.innerHTML = icon(state);
          play.setAttribute("aria-label", number ? named(state, { number }) : of(texts[`${state}_earlier`]));
        }
        if (words) sing(words.firstChild, card.lines, here);
      };
      take.follow();
      shown.add(take);
      return take;
    };

    const sing = (box, lines, here) => {
      const { at, sung } = lineAt(lines, player.now());
      const line = here && sung ? box.children[at].firstChild : null;
      const last = box.querySelector("[aria-current]");
      if (last === line) return;
      last?.removeAttribute("aria-current");
      if (!line) return;
      line.setAttribute("aria-current", "true");
      // Not scrollIntoView, which would move the page as well.
      box.scrollTop = line.offsetTop - (box.clientHeight - line.offsetHeight) / 2;
    };

    onPage("studio-player", () => {
      for (const take of shown) element.contains(take) ? take.follow() : shown.delete(take);
    });

    const listed = () => {
      if (!find(".sort input").checked) return order;
      return order.toSorted((one, other) => (other.score ?? -1) - (one.score ?? -1));
    };

    const redraw = () => {
      list.replaceChildren(...listed().map((card) => draw(card, cards.indexOf(card) + 1)));
      find(".sort").hidden = new Set(cards.map(({ score }) => score)).size < 2;
      find(".level").hidden = cards.length < 2;
      find(".record").hidden = !record;
      find(".record pre").textContent = JSON.stringify(record, null, 2);
      empty();
      earlier();
      player.renew(mode);
    };

    // News of one take; its menu stays open.
    const refresh = (card) => {
      const there = [...list.children].find((take) => take.card === card);
      if (!there) return;
      const next = draw(card, cards.indexOf(card) + 1);
      const [one, other] = [there, next].map((take) => take.querySelector(".menu"));
      const inside = one.contains(document.activeElement);
      other.open = one.open && inside;
      there.replaceWith(next);
      if (inside) (other.open ? other.querySelector(".format") : other.firstChild).focus({ preventScroll: true });
    };

    const change = (number, news) => {
      const card = cards[number - 1];
      if (!card) return;
      Object.assign(card, news);
      refresh(card);
      player.renew(mode);
    };

    // --- songs that are being made ---

    const empty = () => {
      const none = find(".empty");
      none.hidden = cards.length > 0 && !runs.length;
      none.textContent = runs.length ? texts.making : texts.empty;
      none.classList.toggle("heard", runs.length > 0);
    };

    const makings = new Map(); // cards by the id of their run
    const begin = (run) => {
      const name = run.title || texts.in_the_making;
      const picture = make("div", { class: "wave" });
      picture.innerHTML = sketch();
      const cancel = {
        type: "button",
        text: texts.cancel,
        "aria-label": `${texts.cancel}: ${name}`,
        click: () => studio.cancel(run.run),
      };
      const made = make("article", { class: "take making", "data-run": run.run, "aria-label": name }, [
        make("div", { class: "cover" }),
        make("div", { class: "what" }, [make("p", { class: "name", text: name }), make("p", { class: "stage" })]),
        make("div", { class: "actions" }, [make("button", cancel)]),
        picture,
        make("p", { class: "draft", hidden: true }),
      ]);
      makings.set(run.run, made);
      return made;
    };

    // The words of a song that is being made, as they are written.
    const draft = (box, text) => {
      if (!text || box.textContent === text) return;
      box.hidden = false;
      box.textContent = text;
      box.scrollTop = box.scrollHeight;
    };

    const follow = () => {
      const there = new Set(runs.map(({ run }) => run));
      for (const [id, made] of makings) {
        if (there.has(id)) continue;
        made.remove();
        makings.delete(id);
      }
      for (const run of runs) {
        const made = makings.get(run.run) ?? begin(run);
        if (!made.isConnected) find(".makings").append(made);
        const share = Math.floor(100 * (run.facts?.share ?? 0));
        made.querySelector(".stage").textContent = run.facts?.sentence ?? "";
        draft(made.querySelector(".draft"), run.facts?.draft);
        made.querySelector(".wave").style.setProperty("--at", `${share}%`);
      }
      empty();
    };

    onPage("studio-runs", ({ detail }) => {
      if (detail.bar !== mode) return;
      runs = detail.runs;
      awaited ||= runs.length > 0;
      find(".notify").hidden = !runs.length || !window.Notification;
      find(".notify input").checked = studio.notifies();
      follow();
    });
    find(".notify input").addEventListener("change", async ({ target }) => {
      target.checked = await studio.notify(target.checked);
    });

    // A song that is there comes into sight and plays with the space bar, unless the visitor is busy elsewhere.
    let awaited = false;
    const arrive = () => {
      const { activeElement } = document;
      if (!awaited || !element.offsetParent || activeElement?.matches("input, textarea, select")) return;
      awaited = false;
      list.firstChild.scrollIntoView({ block: "nearest" });
      const idle = [document.body, ...["go", "cancel"].map((name) => document.getElementById(`${mode}-${name}`))];
      if (idle.includes(activeElement)) list.querySelector(".play").focus({ preventScroll: true });
    };

    // --- earlier takes ---

    const stored = () => studio.remembered(mode);
    const keep = (all) => {
      try {
        localStorage.setItem(`${STORAGE}-${mode}`, JSON.stringify(all.slice(0, MOST_EARLIER)));
      } catch {
        // A browser that keeps nothing, or has no room left, shows the takes of this run alone.
      }
      document.dispatchEvent(new CustomEvent("studio-remembered"));
    };
    const KEPT = [
      "id",
      "at",
      "seed",
      "title",
      "seconds",
      "path",
      "url",
      "kind",
      "facts",
      "peaks",
      "art",
      "lines",
      "lrc",
      "alignment",
      "words",
      "settings",
    ];
    const remember = () => {
      for (const card of order) card.at ??= Date.now();
      const brief = order.map((card) => Object.fromEntries(KEPT.map((name) => [name, card[name]])));
      const here = new Set(brief.map(({ id }) => id));
      keep([...brief, ...stored().filter(({ id }) => !here.has(id))]);
    };

    // A file that does not play: whether it is gone, only the studio can tell.
    const lose = async (card) => {
      card.gone = await isGone(where(card));
      card.unheard = !card.gone;
      if (cards.includes(card)) return refresh(card);
      for (const row of fold.querySelectorAll("li")) if (row.card === card) row.replaceWith(draw(card));
    };

    const earlier = () => {
      const here = new Set(cards.map(({ id }) => id));
      const all = stored().filter(({ id }) => !here.has(id));
      fold.hidden = !all.length;
      fold.querySelector("summary").textContent = named("earlier", { count: all.length });
      fold.querySelector("ol").replaceChildren(...(fold.open ? all.map((card) => draw(card)) : []));
      if (!fold.open) return;
      for (const card of all) isGone(where(card)).then((gone) => gone && lose(card));
    };
    fold.addEventListener("toggle", ({ target }) => target === fold && earlier());
    fold.querySelector(".clear").addEventListener("click", () => {
      keep(stored().filter(({ id }) => cards.some((card) => card.id === id)));
      earlier();
    });

    // --- the page ---

    find(".level input").addEventListener("change", player.level);
    find(".sort input").addEventListener("change", redraw);

    const receive = () => {
      const value = props.value;
      if (Array.isArray(value?.takes)) {
        cards = value.takes.map((card) => ({ ...card }));
        record = value.record;
        order = [...cards.slice(value.kept), ...cards.slice(0, value.kept)];
        remember();
        redraw();
        // Once the buttons have changed, which moves the focus.
        if (cards.length) setTimeout(arrive, 100);
      } else if (value?.change) {
        change(value.number, { preparing: "", ...value.change });
        remember();
        // Gradio may build the component again from its value.
        props.value = { at: value.at, takes: cards, kept: cards.indexOf(order[0]), record };
      }
    };
    player.add(mode, tracks, texts.player);
    studio.opensRecipes(mode, (recipe) => trigger("edit", recipe));
    watch("value", receive);
    receive();
    empty();
    earlier();
  };
})();
