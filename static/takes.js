// The takes of a tab, drawn from one value: {at, takes} for a new run, {at, number, change} for news of one take. Earlier
// takes stay in this browser's storage. One player plays at a time on the whole page, all at equal loudness where that is
// asked, and timed lyrics follow the song.
(() => {
  const MOST_EARLIER = 50;
  const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 2];
  const ICONS = { play: "M8 5v14l11-7z", pause: "M6 5h4v14H6zM14 5h4v14h-4z" };
  let heard; // the <audio> that was started last

  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // Prompts and file names are set as text, never as HTML.
  const make = (tag, settings = {}, children = []) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(settings))
      if (name === "text") made.textContent = value;
      else if (typeof value === "function") made.addEventListener(name, value);
      else if (value === true || value === false) made.toggleAttribute(name, value);
      else if (value !== undefined) made.setAttribute(name, value);
    made.append(...children.filter(Boolean));
    return made;
  };

  const icon = (button, name, label) => {
    button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"></path></svg>`;
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-pressed", String(name === "pause"));
  };

  const address = (path) => {
    const { root = location.origin, api_prefix = "/gradio_api" } = window.gradio_config ?? {};
    return `${root}${api_prefix}/file=${path.split("/").map(encodeURIComponent).join("/")}`;
  };

  const outline = (peaks) => {
    const bytes = Uint8Array.from(atob(peaks || ""), (letter) => letter.charCodeAt(0));
    const values = new Int8Array(bytes.buffer);
    const columns = values.length / 2;
    const points = [];
    for (let at = 0; at < columns; at++) points.push(`${at + 0.5},${-values[2 * at + 1]}`);
    for (let at = columns - 1; at >= 0; at--) points.push(`${at + 0.5},${-values[2 * at]}`);
    const path = points.length ? `M${points.join("L")}Z` : "";
    return `<svg viewBox="0 -128 ${columns || 1} 256" preserveAspectRatio="none" aria-hidden="true"><path d="${path}"></path></svg>`;
  };

  // Some phones have one volume, set by their buttons alone.
  const probe = document.createElement("audio");
  probe.volume = 0.5;
  document.documentElement.classList.toggle("one-volume", probe.volume !== 0.5);

  const toggle = (audio, from) => {
    if (!audio.paused) return audio.pause();
    if (from !== undefined) audio.currentTime = from;
    if (heard && heard !== audio) heard.pause();
    heard = audio;
    audio.play().catch(() => {}); // a file that is gone says so by its error event
  };

  // What a song in the making looks like: no song's outline in particular.
  const sketch = () => {
    const heights = Array.from({ length: 72 }, (_, at) => 16 + 96 * Math.abs(Math.sin(at * 0.9) * Math.sin(at * 0.13 + 0.4)));
    const path = heights.map((height, at) => `M${at + 0.5},${-height}V${height}`).join("");
    return `<svg viewBox="0 -128 72 256" preserveAspectRatio="none"><path d="${path}"></path></svg>`;
  };

  studio.takes = (element, props, trigger, watch) => {
    const find = (selector) => element.querySelector(selector);
    const { texts, uses, formats } = JSON.parse(find(".takes").dataset.settings);
    const { mode } = find(".takes").dataset;
    const storage = `ace-music-studio-takes-${mode}`;
    const places = new Map(); // <audio>: its card
    let cards = [];
    let running = false;

    // --- one player ---

    const named = (name, values) => fill(texts[name], values);

    const player = (card, number) => {
      const audio = make("audio", { preload: "none", src: address(card.path) });
      const values = { number };
      const wave = make("div", {
        class: "wave", role: "slider", tabindex: "0", "aria-label": named("position", values),
        "aria-valuemin": "0", "aria-valuemax": card.seconds.toFixed(1),
      });
      wave.innerHTML = `${outline(card.peaks)}<div class="played">${outline(card.peaks)}</div><div class="head"></div>`;
      const time = make("span", { class: "time" });
      const button = make("button", { type: "button", class: "play", click: () => toggle(audio) });
      const volume = make("input", {
        type: "range", min: "0", max: "1", step: "0.05", value: "1", class: "volume",
        "aria-label": named("volume", values), input: () => level(),
      });
      const speed = make(
        "select",
        { class: "speed", "aria-label": named("speed", values), change: () => (audio.playbackRate = Number(speed.value)) },
        SPEEDS.map((rate) => make("option", { value: rate, selected: rate === 1, text: `${rate}×` }))
      );
      const seek = (seconds) => {
        audio.currentTime = clamp(seconds, 0, card.seconds);
        show();
      };
      const show = () => {
        const now = clamp(audio.currentTime, 0, card.seconds);
        wave.style.setProperty("--at", `${card.seconds ? (100 * now) / card.seconds : 0}%`);
        wave.setAttribute("aria-valuenow", now.toFixed(1));
        wave.setAttribute("aria-valuetext", `${clock(now)} of ${clock(card.seconds)}`);
        time.textContent = `${clock(now)} / ${clock(card.seconds)}`;
      };
      const state = () => {
        const name = audio.paused || audio.ended ? "play" : "pause";
        icon(button, name, named(name, values));
      };
      wave.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        const box = wave.getBoundingClientRect();
        seek(((event.clientX - box.left) / box.width) * card.seconds);
      });
      wave.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.altKey || event.metaKey) return;
        if (event.key === " " || event.key === "Enter") {
          event.preventDefault();
          return toggle(audio);
        }
        const step = event.shiftKey ? 5 : 1;
        const to = {
          ArrowLeft: audio.currentTime - step, ArrowDown: audio.currentTime - step,
          ArrowRight: audio.currentTime + step, ArrowUp: audio.currentTime + step,
          PageDown: audio.currentTime - 5, PageUp: audio.currentTime + 5, Home: 0, End: card.seconds,
        }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        seek(to);
      });
      for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, state);
      for (const name of ["timeupdate", "seeked"]) audio.addEventListener(name, show);
      state();
      show();
      const box = make("div", { class: "player" }, [audio, button, wave, time, volume, speed]);
      audio.addEventListener("error", () => box.dispatchEvent(new CustomEvent("gone")));
      places.set(audio, { card, volume });
      return { box, audio };
    };

    // --- loudness ---

    const level = () => {
      const here = [...places].filter(([audio, { card }]) => audio.isConnected && cards.includes(card));
      const all = here.map(([, { card }]) => card.lufs).filter(Number.isFinite);
      const equal = find(".level input").checked && all.length > 1;
      for (const [audio, { card, volume }] of places) {
        const gain = equal && cards.includes(card) && Number.isFinite(card.lufs);
        audio.volume = volume.value * (gain ? 10 ** ((Math.min(...all) - card.lufs) / 20) : 1);
      }
    };

    // --- timed lyrics ---

    const lyrics = (card, number, audio) => {
      const box = make("div", { class: "lines" });
      if (!card.lines) return box;
      const lines = card.lines.map((line) =>
        make("li", {}, [
          make("button", { type: "button", click: () => (audio.pause(), toggle(audio, line.start)) }, [
            make("span", { text: clock(line.start) }),
            line.text,
          ]),
        ])
      );
      const list = make("ol", { class: "timed", "aria-label": named("timed_title", { number }) }, lines);
      const follow = () => {
        const at = card.lines.findIndex(({ start, end }) => start <= audio.currentTime && audio.currentTime < end);
        const sung = lines[at]?.firstChild;
        const former = list.querySelector("[aria-current]");
        if (former === (sung ?? null)) return;
        former?.removeAttribute("aria-current");
        if (!sung) return;
        sung.setAttribute("aria-current", "true");
        // Not scrollIntoView, which would move the page as well.
        list.scrollTop = sung.offsetTop - (list.clientHeight - sung.offsetHeight) / 2;
      };
      for (const name of ["timeupdate", "seeked"]) audio.addEventListener(name, follow);
      const link = { class: "button", href: address(card.lrc), download: card.lrc.split("/").at(-1), text: texts.lrc };
      box.append(list, make("p", { class: "remark", text: card.alignment }), make("a", link));
      return box;
    };

    // --- a take ---

    const act = (label, number, press, more = {}) =>
      make("button", { type: "button", text: label, "aria-label": `${label}, ${named("title", { number }).toLowerCase()}`, click: press, ...more });

    const save = (card, number) => {
      const values = { number, format: card.kind.toUpperCase() };
      const select = make(
        "select",
        { class: "format", "aria-label": named("format", values), change: () => (change(number, { preparing: select.value }), trigger("input", { number, kind: select.value })) },
        formats.map((kind) => make("option", { value: kind, selected: kind === (card.preparing || card.kind), text: kind.toUpperCase() }))
      );
      const link = card.preparing
        ? make("span", { class: "button download", role: "status", text: named("preparing", { format: card.preparing.toUpperCase() }) })
        : make("a", { class: "button download", href: address(card.path), download: card.path.split("/").at(-1), text: named("download", values), "aria-label": `${named("download", values)}, ${named("title", values).toLowerCase()}` });
      return make("div", { class: "save" }, [select, link]);
    };

    const note = (card) =>
      card.note ? make("p", { class: card.wrong ? "notice" : "said", role: card.wrong ? "alert" : "status", text: card.note }) : make("span");

    const again = (card, number) =>
      ["retake", "more", "timed"]
        .filter((name) => name !== "timed" || card.can_be_timed)
        .map((name) => act(texts[name], number, () => trigger("submit", { name, number }), { class: `starts ${name}`, disabled: running }));

    const draw = (card, at, all) => {
      const number = at + 1;
      const { box, audio } = player(card, number);
      const listen = () => {
        const from = heard && heard !== audio && element.contains(heard) ? Math.min(heard.currentTime, card.seconds) : undefined;
        toggle(audio, from);
      };
      const several = all.length > 1;
      const seed = make("button", { type: "button", class: "copy", "data-copy": card.seed, "data-copied": texts.copied, text: named("seed", card) });
      const hear = several && act(texts.listen, number, listen, { class: "listen", "aria-pressed": "false" });
      if (hear) for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, () => hear.setAttribute("aria-pressed", String(!audio.paused && !audio.ended)));
      const take = make("article", { class: "take", id: `${mode}-take-${number}`, "aria-label": named("title", { number }) }, [
        make("div", { class: "take-head" }, [make("h3", { text: named("title", { number }) }), hear, seed]),
        make("p", { class: "facts" }, card.facts.map((text) => make("span", { text }))),
        ...card.warnings.map((text) => make("p", { class: "warning", text })),
        box,
        lyrics(card, number, audio),
        make("div", { class: "uses" }, again(card, number)),
        save(card, number),
        note(card),
        make("div", { class: "uses" }, Object.entries(uses).map(([use, label]) => act(label, number, () => trigger("select", { use, number })))),
      ]);
      take.listen = listen;
      return take;
    };

    const list = find(".list");
    const redraw = () => {
      for (const audio of places.keys()) audio.pause();
      places.clear();
      list.replaceChildren(...cards.map(draw));
      find(".level").hidden = cards.length < 2;
      empty();
      earlier();
      level();
    };

    const empty = () => {
      const none = find(".empty");
      none.hidden = cards.length > 0 && !running;
      none.textContent = running ? texts.making : texts.empty;
      find(".making").hidden = !running;
    };

    // --- a song in the making ---

    const making = find(".making .player");
    making.innerHTML = `<div class="wave">${sketch()}<div class="played">${sketch()}</div></div>`;
    document.addEventListener("studio-news", ({ detail }) => {
      if (detail.id !== `${mode}-progress` || !detail.running) return;
      const line = document.querySelector(`#${mode}-progress .progress-line`);
      find(".making p").textContent = line.querySelector("span").textContent;
      making.firstChild.style.setProperty("--at", line.querySelector(".bar div")?.style.width || "0%");
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

    // News of one take; a song that plays goes on.
    const change = (number, news) => {
      const card = cards[number - 1];
      const take = list.children[number - 1];
      if (!card || !take) return;
      Object.assign(card, news);
      const audio = take.querySelector("audio");
      take.querySelector(".save").replaceWith(save(card, number));
      take.querySelector(".lines").replaceWith(lyrics(card, number, audio));
      take.querySelector(".save").nextElementSibling.replaceWith(note(card));
    };

    // --- earlier takes ---

    const stored = () => {
      try {
        const found = JSON.parse(localStorage.getItem(storage));
        return Array.isArray(found) ? found.filter((each) => typeof each?.path === "string") : [];
      } catch {
        return [];
      }
    };
    const keep = (all) => {
      try {
        localStorage.setItem(storage, JSON.stringify(all.slice(0, MOST_EARLIER)));
      } catch {
        // A browser that keeps nothing, or has no room left, shows the takes of this run alone.
      }
    };
    const remember = () => {
      const brief = cards.map(({ seed, title, seconds, path, kind, facts, settings }) => ({ seed, title, seconds, path, kind, facts, settings }));
      const here = new Set(brief.map(({ path }) => path));
      keep([...brief, ...stored().filter(({ path }) => !here.has(path))]);
    };

    const row = (card) => {
      const name = card.title || card.path.split("/").at(-1);
      const of = (text) => `${text}: ${name}, ${card.seed}`;
      const audio = make("audio", { preload: "none", src: address(card.path) });
      const button = make("button", { type: "button", class: "play", click: () => toggle(audio) });
      const state = () => {
        const shown = audio.paused || audio.ended ? "play" : "pause";
        icon(button, shown, of(texts[`${shown}_earlier`]));
      };
      for (const each of ["play", "pause", "ended"]) audio.addEventListener(each, state);
      state();
      const download = make("a", { class: "button", href: address(card.path), download: card.path.split("/").at(-1), text: named("download", { format: card.kind.toUpperCase() }) });
      download.setAttribute("aria-label", of(download.textContent));
      const gone = make("p", { class: "gone", hidden: true, text: texts.gone });
      const lost = () => {
        gone.hidden = false;
        button.hidden = download.hidden = true;
      };
      audio.addEventListener("error", lost);
      const made = make("li", {}, [
        make("p", { class: "name", text: name }),
        make("p", { class: "facts" }, [...(card.facts || []), named("seed_is", card)].map((text) => make("span", { text }))),
        gone,
        audio,
        make("div", { class: "uses" }, [
          button,
          download,
          make("button", { type: "button", class: "starts", text: texts.make, disabled: running, "aria-label": of(texts.make), click: () => trigger("retry", { settings: card.settings }) }),
          make("button", { type: "button", text: texts.remove, "aria-label": of(texts.remove), click: () => (audio.pause(), keep(stored().filter(({ path }) => path !== card.path)), earlier()) }),
        ]),
      ]);
      made.check = () => fetch(address(card.path), { method: "HEAD" }).then((answer) => answer.ok || lost(), () => {});
      return made;
    };

    const fold = find(".earlier");
    const earlier = () => {
      const here = new Set(cards.map(({ path }) => path));
      const former = stored().filter(({ path }) => !here.has(path));
      fold.hidden = !former.length;
      fold.querySelector("summary").textContent = named("earlier", { count: former.length });
      fold.querySelector("ol").replaceChildren(...(fold.open ? former.map(row) : []));
      if (fold.open) for (const each of fold.querySelectorAll("li")) each.check();
    };
    fold.addEventListener("toggle", earlier);
    fold.querySelector(".clear").addEventListener("click", () => {
      keep(stored().filter(({ path }) => cards.some((card) => card.path === path)));
      earlier();
    });

    // --- the page ---

    find(".level input").addEventListener("change", level);

    element.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
      if (event.target.matches("select, input:not([type=checkbox])")) return;
      const take = /^[1-9]$/.test(event.key) && cards.length > 1 && list.children[Number(event.key) - 1];
      if (!take) return;
      event.preventDefault();
      take.listen();
    });

    document.addEventListener("studio-run", ({ detail }) => {
      if (detail.id !== `${mode}-progress`) return;
      running = detail.running;
      awaited ||= running;
      for (const button of element.querySelectorAll(".starts")) button.disabled = running;
      empty();
    });

    const receive = () => {
      const value = props.value;
      if (Array.isArray(value?.takes)) {
        cards = value.takes.map((card) => ({ ...card }));
        remember();
        redraw();
        // Once the buttons have changed, which moves the focus.
        if (cards.length) setTimeout(arrive, 100);
      } else if (value?.change) {
        change(value.number, { preparing: "", ...value.change });
        // Gradio may build the component again from its value.
        props.value = { at: value.at, takes: cards };
      }
    };
    watch("value", receive);
    receive();
    empty();
    earlier();
  };
})();
