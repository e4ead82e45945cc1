// One player for the whole page, at the foot of the window, which keeps playing while tabs change. A track is {mode, song, number,
// letter, card, gain(), lost()}; `tracks` of a mode lists those of a song that its digits and the player's buttons switch between.
// Whoever shows a track hears "studio-player" on the document.
(() => {
  const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 2];
  const BARS = 100;
  const { address, clamp, clock, fill, make, refill, sign, where } = studio.tools;

  // The outline of int8 [columns, 2], the lowest and the highest sample of each column, in base64.
  const outline = (picture, peaks) => {
    const bytes = Uint8Array.from(atob(peaks || ""), (letter) => letter.charCodeAt(0));
    const values = new Int8Array(bytes.buffer);
    const columns = values.length / 2;
    const points = [];
    for (let at = 0; at < columns; at++) points.push(`${at + 0.5},${-values[2 * at + 1]}`);
    for (let at = columns - 1; at >= 0; at--) points.push(`${at + 0.5},${-values[2 * at]}`);
    picture.setAttribute("viewBox", `0 -128 ${columns || 1} 256`);
    picture.firstElementChild.setAttribute("d", points.length ? `M${points.join("L")}Z` : "");
  };

  // --- a waveform to seek in ---

  const bars = (heights) => {
    const path = heights.map((height, at) => `M${at + 0.5},${-height}V${height}`).join("");
    return `<svg viewBox="0 -128 ${heights.length || 1} 256" preserveAspectRatio="none" aria-hidden="true"><path d="${path}"></path></svg>`;
  };

  const heights = (peaks) => {
    const bytes = Uint8Array.from(atob(peaks || ""), (letter) => letter.charCodeAt(0));
    const values = [...new Int8Array(bytes.buffer)];
    const each = Math.max(values.length / BARS, 1);
    const loudest = (_, at) => Math.max(4, ...values.slice(at * each, (at + 1) * each).map(Math.abs));
    return Array.from({ length: BARS }, loudest);
  };

  const drawn = (heights) => `${bars(heights)}<div class="played">${bars(heights)}</div>`;

  // A song that is being made: how strong its parts promise to be, 0 to 100, and a line before that is known.
  const shape = (outline) => drawn(Array.from({ length: BARS }, (_, at) => 4 + 1.2 * (outline[at] ?? 0)));

  // `seek` gets seconds and whether they were pointed at; `show` of the returned element moves its playhead.
  const wave = (label, card, seek, toggle) => {
    let at = 0;
    const made = make("div", {
      class: "wave",
      role: "slider",
      tabindex: "0",
      "aria-label": label,
      "aria-valuemin": "0",
      "aria-valuemax": card.seconds.toFixed(1),
    });
    made.innerHTML = `${card.outline ? shape(card.outline) : drawn(heights(card.peaks))}<div class="head"></div>`;
    // The parts that are new.
    for (const part of card.changed ?? []) {
      const [from, to] = part.map((at) => (100 * clamp(at, 0, card.seconds)) / card.seconds);
      const there = make("i");
      there.style.left = `${from}%`;
      there.style.right = `${100 - to}%`;
      made.prepend(there);
    }
    made.show = (seconds) => {
      at = clamp(seconds, 0, card.seconds);
      made.style.setProperty("--at", `${card.seconds ? (100 * at) / card.seconds : 0}%`);
      made.setAttribute("aria-valuenow", at.toFixed(1));
      made.setAttribute("aria-valuetext", `${clock(at)} of ${clock(card.seconds)}`);
    };
    const point = (event) => {
      const box = made.getBoundingClientRect();
      seek(clamp((event.clientX - box.left) / box.width, 0, 1) * card.seconds, true);
    };
    made.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      made.setPointerCapture(event.pointerId);
      point(event);
    });
    made.addEventListener("pointermove", (event) => made.hasPointerCapture(event.pointerId) && point(event));
    made.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const step = event.shiftKey ? 5 : 1;
      const to = {
        ArrowLeft: at - step,
        ArrowDown: at - step,
        ArrowRight: at + step,
        ArrowUp: at + step,
        PageDown: at - 5,
        PageUp: at + 5,
        Home: 0,
        End: card.seconds,
      }[event.key];
      const press = event.key === " " || event.key === "Enter";
      if (to === undefined && !press) return;
      event.preventDefault();
      if (press) toggle();
      else seek(clamp(to, 0, card.seconds));
    });
    made.show(0);
    return made;
  };

  // Which line is sung now, or is sung next.
  const lineAt = (lines, now) => {
    const next = lines.findIndex(({ end }) => now < end);
    return { at: next, sung: next >= 0 && lines[next].start <= now };
  };

  // Marks the line of a list that is sung, or none, in the middle of the box: not scrollIntoView, which would move the page.
  const sing = (box, line) => {
    const last = box.querySelector("[aria-current]");
    if (last === line) return;
    last?.removeAttribute("aria-current");
    if (!line) return;
    line.setAttribute("aria-current", "true");
    box.scrollTop = line.offsetTop - (box.clientHeight - line.offsetHeight) / 2;
  };

  // --- what plays ---

  const audio = make("audio", { id: "studio-audio", preload: "none" });
  // Some phones have one volume, set by their buttons alone.
  audio.volume = 0.5;
  document.documentElement.classList.toggle("one-volume", audio.volume !== 0.5);
  const tracks = {}; // by tab: a function that lists them
  let texts = {};
  let track = null;
  let source = false; // what the track was made from plays, in its place
  let bar;
  const parts = {};

  const offset = () => (source ? track.card.source.offset : 0);
  const now = () => (track ? audio.currentTime + offset() : 0);
  const paused = () => audio.paused || audio.ended;
  const is = (card) => track?.card.id === card.id;
  const listed = () => tracks[track.mode](track.song);

  const tell = () => {
    if (track) show();
    announce();
    document.dispatchEvent(new CustomEvent("studio-player"));
  };

  const start = () => audio.play().catch(() => {}); // a file that is gone says so by its error event

  const level = () => {
    if (track) audio.volume = parts.volume.value * (source ? 1 : track.gain());
  };

  const open = (seconds, play) => {
    audio.src = source ? address(track.card.source.path) : where(track.card);
    audio.preload = "metadata";
    audio.currentTime = Math.max(seconds - offset(), 0);
    audio.playbackRate = audio.defaultPlaybackRate = Number(parts.speed.value);
    level();
    if (play) start();
    draw();
    tell();
  };

  // A part that is heard again and again. The file tells only four times a second where it is, a hidden window has no
  // frames, and the last part ends with the file.
  let repeated;
  let frame;
  const fromItsStart = () => {
    audio.currentTime = Math.max(repeated.start - offset(), 0);
  };
  const turn = () => {
    if (repeated && track && !paused() && now() >= repeated.end) fromItsStart();
  };
  const turnEachFrame = () => {
    turn();
    frame = requestAnimationFrame(turnEachFrame);
  };
  const repeat = (part) => {
    cancelAnimationFrame(frame);
    repeated = part;
    if (part) turnEachFrame();
  };
  audio.addEventListener("timeupdate", turn);
  audio.addEventListener("ended", () => {
    if (!repeated) return;
    fromItsStart();
    start();
  });

  const load = (next, seconds = 0, play = true) => {
    if (next.song !== track?.song) repeat();
    track = next;
    source = false;
    open(seconds, play);
  };

  const toggle = (next = track) => {
    if (!is(next.card)) return load(next);
    if (!paused()) return audio.pause();
    start();
  };

  const seek = (next, seconds, play = false) => {
    if (!is(next.card)) return load(next, seconds, play);
    audio.currentTime = Math.max(seconds - offset(), 0);
    if (play) start();
    tell();
  };

  // The same place of another take, or of what the take was made from.
  const goTo = (next) =>
    is(next.card) && !source
      ? toggle(next)
      : load(next, Math.min(next.song === track?.song ? now() : 0, next.card.seconds));
  const compare = () => {
    const at = now();
    source = !source;
    open(at, true);
  };

  const close = () => {
    audio.removeAttribute("src");
    audio.load();
    repeat();
    track = null;
    bar.hidden = true;
    tell();
  };

  // --- media keys, and the lock screen of a phone ---

  const session = navigator.mediaSession;
  let announced; // the track and file that the system knows of
  const step = (by) => {
    if (!track) return;
    const all = listed();
    const next = all[all.findIndex(({ card }) => is(card)) + by];
    if (next) goTo(next);
  };
  const KEYS = {
    play: () => track && paused() && toggle(),
    pause: () => track && !paused() && toggle(),
    stop: () => track && close(),
    seekto: ({ seekTime }) => track && seek(track, seekTime + offset()),
    seekbackward: ({ seekOffset }) => track && seek(track, clamp(now() - (seekOffset || 5), 0, track.card.seconds)),
    seekforward: ({ seekOffset }) => track && seek(track, clamp(now() + (seekOffset || 5), 0, track.card.seconds)),
    previoustrack: () => step(-1),
    nexttrack: () => step(1),
  };
  const facts = () =>
    new MediaMetadata({
      title: source ? texts.source : track.name,
      artist: track.where,
      album: document.title,
      artwork: track.card.art ? [{ src: track.card.art }] : [],
    });
  const announce = () => {
    if (!session) return;
    const state = paused() ? "paused" : "playing";
    session.playbackState = track ? state : "none";
    const heard = track && `${track.card.id} ${source}`;
    if (announced === heard) return;
    announced = heard;
    for (const [name, act] of Object.entries(KEYS)) session.setActionHandler(name, track ? act : null);
    session.metadata = track ? facts() : null;
  };

  // --- the bar ---

  // The waveform of what plays.
  const place = () =>
    wave(
      texts.position,
      track.card,
      (seconds, pointed) => seek(track, seconds, pointed),
      () => toggle()
    );

  const build = () => {
    const part = (name, tag, settings = {}) => (parts[name] = make(tag, { class: name, ...settings }));
    part("volume", "input", {
      type: "range",
      min: "0",
      max: "1",
      step: "0.05",
      value: "1",
      "aria-label": texts.volume,
      input: level,
    });
    part("speed", "select", {
      "aria-label": texts.speed,
      change: () => (audio.playbackRate = audio.defaultPlaybackRate = Number(parts.speed.value)),
    });
    parts.speed.append(
      ...SPEEDS.map((rate) => make("option", { value: rate, selected: rate === 1, text: `${rate}×` }))
    );
    bar = make("section", { class: "foot-player", "aria-label": texts.player, hidden: true }, [
      part("sung", "p", { "aria-hidden": "true" }),
      part("what", "button", { type: "button", click: () => studio.stage(parts.what) }),
      part("play", "button", { type: "button", click: () => toggle() }),
      part("place", "div"),
      part("time", "span"),
      part("switch", "div", { role: "group", "aria-label": texts.switch }),
      parts.volume,
      parts.speed,
      make("button", { type: "button", class: "close", icon: "close", "aria-label": texts.close, click: close }),
    ]);
    document.body.append(bar, audio);
    new ResizeObserver(height).observe(bar);
  };

  // What sticks to the foot of the window stands above it.
  const height = () =>
    document.documentElement.style.setProperty("--studio-player", `${bar.hidden ? 0 : bar.offsetHeight}px`);

  // What was tapped to hear a song is not left under the bar that comes up with it.
  let absent;
  document.addEventListener("click", () => (absent = !bar || bar.hidden), true);
  document.addEventListener("click", ({ clientY }) => {
    if (!absent || !bar || bar.hidden) return;
    height();
    scrollBy(0, Math.max(0, clientY + 32 - innerHeight + bar.offsetHeight));
  });

  // The player and its sheet take the colour of the cover, once it is there.
  const pixel = make("canvas", { width: "1", height: "1" }).getContext("2d", { willReadFrequently: true });
  let tinted = null; // the cover whose colour they have, or will have
  // Without a colour it is that of the surface.
  const paint = (colour) => document.documentElement.style.setProperty("--studio-tint", colour);
  const tint = ({ target }) => {
    if (!target.isConnected) return; // another song plays by now
    pixel.drawImage(target, 0, 0, 1, 1);
    const [red, green, blue] = pixel.getImageData(0, 0, 1, 1).data;
    paint(`rgb(${red} ${green} ${blue})`);
  };

  // The buttons that switch between the takes of the song, and what the take was made from.
  const switches = () => {
    const all = track.number ? listed() : [];
    const several = all.length > 1 ? all : [];
    const made = several.map((each) =>
      make("button", {
        type: "button",
        text: each.letter,
        "aria-label": fill(texts.take, each),
        "aria-pressed": String(is(each.card) && !source),
        click: () => goTo(each),
      })
    );
    if (!track.card.source) return made;
    const from = make("button", {
      type: "button",
      class: "source",
      text: texts.source,
      title: texts.source_help,
      "aria-pressed": String(source),
      click: compare,
    });
    return [...made, from];
  };

  const draw = () => {
    const { card, name } = track;
    bar.hidden = false;
    if (tinted !== card.art) paint("");
    tinted = card.art;
    parts.what.replaceChildren(
      ...(card.art ? [make("img", { class: "art", src: card.art, alt: "", load: tint })] : []),
      make("span", { class: "name", text: name }),
      make("span", { class: "where", text: track.where })
    );
    parts.what.title = texts.stage;
    refill(parts.place, [place()]);
    refill(parts.switch, switches());
  };

  const signPlay = (button) => {
    const state = paused() ? "play" : "pause";
    sign(button, state, texts[state]);
  };

  const show = () => {
    const { card } = track;
    signPlay(parts.play);
    parts.place.firstChild.show(now());
    parts.time.textContent = `${clock(clamp(now(), 0, card.seconds))} / ${clock(card.seconds)}`;
    const { at, sung } = lineAt(card.lines || [], now());
    parts.sung.hidden = at < 0;
    if (at < 0) return;
    const line = make("b", { text: card.lines[at].text, class: sung ? "lit" : "" });
    const next = make("span", { text: card.lines[at + 1]?.text ?? "" });
    if (parts.sung.innerHTML !== line.outerHTML + next.outerHTML) parts.sung.replaceChildren(line, next);
  };

  for (const name of ["play", "pause", "ended", "timeupdate", "seeked"]) audio.addEventListener(name, tell);
  audio.addEventListener("error", () => track && (source || track.lost()));

  // The space bar plays or pauses, unless it means something where the focus is.
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.defaultPrevented)
      return;
    const wanting =
      'a, button, input, label, select, summary, textarea, audio, [contenteditable], [role], [tabindex]:not([tabindex="-1"])';
    if (!track || event.target.closest(wanting)) return;
    event.preventDefault();
    if (!event.repeat) toggle();
  });

  // 1 to 9 switch takes and 0 plays what they were made from, where nothing else has the focus.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || !/^\d$/.test(event.key)) return;
    const { target } = event;
    if (target !== document.body && !target.closest(".takes, .foot-player, .now-playing")) return;
    if (target.matches("select, input:not([type=checkbox], [type=range])")) return;
    const song = target.closest("[data-run]")?.dataset.run;
    const mode = song ? "songs" : track?.mode;
    if (!mode) return;
    const next = tracks[mode](song ?? track?.song).find(({ number }) => number === Number(event.key));
    if (next) goTo(next);
    else if (event.key === "0" && track?.card.source) compare();
    else return;
    event.preventDefault();
  });

  Object.assign(studio.tools, { lineAt, outline, shape, sing, wave });
  studio.player = {
    is,
    now,
    paused,
    level,
    toggle,
    seek,
    goTo,
    repeat,
    place,
    signPlay,
    switches,
    track: () => track,
    source: () => source,
    speed: () => parts.speed,
    add: (mode, list, said) => {
      tracks[mode] = list;
      texts = said ?? texts;
      if (!bar && said) build();
    },
    // Cards of a tab that have changed: the one that plays may be among them.
    renew: (mode) => {
      if (track?.mode !== mode) return;
      track = tracks[mode](track.song).find(({ card }) => is(card)) ?? { ...track, number: undefined };
      level();
      draw();
      tell();
    },
  };
})();
