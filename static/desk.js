// The desk for lyrics: section tags at the cursor, the syllables of each line in the margin, and lines that are rewritten.
(() => {
  const BOXES = { "lyrics-text": "lyrics", "generate-lyrics": "generate" }; // a box of lyrics, and the tab whose language it has
  const MANY = 15; // syllables; lyrics_lint.py advises to break a line that has more
  const PAUSE_MS = 400; // in the typing, before there is advice
  const STYLES =
    "fontFamily fontSize fontWeight fontStyle lineHeight letterSpacing wordSpacing tabSize direction paddingTop paddingRight paddingBottom paddingLeft".split(
      " "
    );
  const languages = {}; // by tab
  const boxOf = (id) => document.querySelector(`#${id} textarea`);
  const idOf = (target) => Object.keys(BOXES).find((id) => target.closest?.(`#${id}`));
  const soon = (act) => requestAnimationFrame(() => requestAnimationFrame(act)); // after Gradio has set a box

  // --- the margin ---

  // A sheet over the box has the same lines, unseen, each with its number beside its first row: so they stand right however
  // lines wrap. It is not for screen readers, which would read numbers between the lines.
  const sheets = new Map(); // by the box's id: {box, sheet, lines}
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) draw(idOf(target));
  });

  const sheetOf = (id, box) => {
    const former = sheets.get(id);
    if (former?.box === box && former.sheet.isConnected) return former;
    former?.sheet.remove();
    const sheet = studio.tools.make("div", { "aria-hidden": "true", class: "syllables" }, [
      document.createElement("div"),
    ]);
    const made = { box, sheet, lines: [] };
    sheets.set(id, made);
    box.parentElement.setAttribute("data-counted", "");
    box.after(sheet);
    resized.observe(box);
    return made;
  };

  const scroll = ({ box, sheet }) => {
    sheet.firstChild.style.transform = `translateY(${-box.scrollTop}px)`;
  };

  const draw = (id) => {
    const box = id && boxOf(id);
    if (!box?.offsetParent) return;
    const made = sheetOf(id, box);
    const look = getComputedStyle(box);
    const page = made.sheet.firstChild;
    for (const name of STYLES) page.style[name] = look[name];
    const { style } = made.sheet;
    style.left = `${box.offsetLeft + box.clientLeft}px`;
    style.top = `${box.offsetTop + box.clientTop}px`;
    style.width = `${box.clientWidth}px`;
    style.height = `${box.clientHeight}px`;
    const language = languages[BOXES[id]] ?? (id === "lyrics-text" ? "en" : "unknown");
    const texts = box.value.split("\n");
    while (page.childElementCount > texts.length) page.lastChild.remove();
    while (page.childElementCount < texts.length) page.append(document.createElement("div"));
    made.lines.length = texts.length;
    for (const [at, text] of texts.entries()) {
      const key = `${language} ${text}`;
      if (made.lines[at] === key) continue;
      made.lines[at] = key;
      const line = page.children[at];
      const count = studio.syllables(text, language);
      line.textContent = text || "\u200b";
      line.dataset.count = count || "";
      line.toggleAttribute("data-many", count > MANY);
    }
    scroll(made);
  };

  let due = false;
  const drawAll = () => {
    if (due) return;
    due = true;
    soon(() => {
      due = false;
      for (const id of Object.keys(BOXES)) draw(id);
    });
  };

  document.addEventListener("input", ({ target, isTrusted }) => {
    if (isTrusted) isNew = false;
    if (idOf(target)) drawAll();
    if (idOf(target) === "lyrics-text") ask();
  });
  document.addEventListener(
    "scroll",
    ({ target }) => {
      const made = sheets.get(idOf(target) ?? "");
      if (made?.box === target) scroll(made);
    },
    true
  );
  document.addEventListener("click", ({ target }) => {
    if (target.closest?.('[role="tab"], [data-face], [data-words]')) drawAll();
    if (target.closest?.('[role="tab"]')) ask();
    if (target.closest?.("#lyrics-panel")) isNew = false;
    if (target.closest?.("#lyrics-go")) stage = "";
  });
  document.fonts.ready.then(drawAll);

  // A tab's fields have changed: the language may have, or the lyrics without being typed.
  studio.desked = (tab, values) => {
    languages[tab] = values.language;
    if (tab === "generate") song = values;
    drawAll();
    ask();
  };

  // --- what the studio is asked: advice, other tags, rhymes ---

  let trigger; // of the Lyrics tab
  let song = {}; // Generate's fields
  let asked = 0;
  const isBusy = () => document.querySelector('#lyrics-progress [data-state="running"]');
  const ask = () => {
    clearTimeout(asked);
    asked = setTimeout(() => {
      if (isBusy() || !boxOf("lyrics-text")?.offsetParent) return;
      const { bpm, duration, prompt, time_signature } = song;
      trigger?.("input", { song: { bpm, duration, prompt, time_signature } });
    }, PAUSE_MS);
  };
  studio.desk = (_element, _props, send) => {
    trigger = send;
    drawAll();
  };
  document.addEventListener("studio-run", ({ detail }) => {
    if (detail.id === "lyrics-progress" && !detail.running) ask();
  });

  // As if typed, so that Ctrl + Z takes it back.
  const type = (box, { from, to, text }) => {
    box.focus();
    box.setSelectionRange(from, to);
    document.execCommand("insertText", false, text);
  };

  document.addEventListener("click", ({ target }) => {
    const button = target.closest?.("button[data-tag], button[data-rhyme], button[data-desk]");
    const box = button && boxOf(button.closest("[data-into]").dataset.into);
    if (!box || box.disabled || box.readOnly) return;
    const { value, selectionStart, selectionEnd } = box;
    const { tag, rhyme, desk } = button.dataset;
    if (tag) type(box, studio.tagAt(value, selectionStart, tag));
    else if (rhyme) {
      const space = /[\p{L}\p{N},.!?]$/u.test(value.slice(0, selectionStart)) ? " " : "";
      type(box, { from: selectionStart, to: selectionEnd, text: `${space}${rhyme}` });
    } else if (desk === "fix") trigger?.("submit");
    else trigger?.("select", { word: studio.wordAt(value, selectionStart) });
  });

  // --- lines that are rewritten ---

  // Where the cursor was put by nobody there is no line that was meant.
  let touched = false;
  document.addEventListener("focusin", ({ target }) => {
    if (idOf(target) === "lyrics-text") touched = true;
  });

  let chosen; // {first, last} lines, counted from 0, and the scroll position `top`
  let stage = ""; // of their rewriting: "asked", then "running"
  let isNew = false; // whether the chosen lines were rewritten, and nothing was done since
  const lineOf = (text, at) => text.slice(0, at).split("\n").length - 1;
  studio.pickedLines = (text) => {
    const box = boxOf("lyrics-text");
    if (!touched || !box) return [text, "", ""];
    const { start, end } = studio.passage(text, box.selectionStart, box.selectionEnd);
    // The studio leaves out blank lines at the beginning.
    const left = lineOf(text, text.length - text.trimStart().length);
    stage = "asked";
    chosen = { first: lineOf(text, start) - left, last: lineOf(text, end) - left, top: box.scrollTop };
    return [text.slice(0, start), text.slice(start, end), text.slice(end)];
  };
  // While lines are rewritten, and after that, the box stays where it is.
  studio.keepsPlace = () => Boolean(chosen);

  // The new lines are selected, so that another version of them is one press away.
  const select = () => {
    const box = boxOf("lyrics-text");
    if (!box || !chosen || !isNew) return;
    const lines = box.value.split("\n");
    const before = lines.slice(0, chosen.first).join("\n").length + (chosen.first ? 1 : 0);
    const length = lines.slice(chosen.first, chosen.last + 1).join("\n").length;
    box.setSelectionRange(before, before + length);
    box.scrollTop = chosen.top;
  };

  // The text of the Lyrics tab was set, by a draft, its end or Undo.
  studio.lyricsChanged = () => {
    drawAll();
    if (isNew) soon(select);
    else if (isBusy() && chosen) soon(() => (boxOf("lyrics-text").scrollTop = chosen.top));
    ask();
  };
  document.addEventListener("studio-runs", ({ detail }) => {
    if (detail.bar !== "lyrics") return;
    const modes = detail.runs.map(({ facts }) => facts?.mode);
    if (modes.includes("lyrics")) {
      chosen = undefined;
      stage = "";
    }
    if (stage === "asked" && modes.length) stage = "running";
    else if (stage === "running" && !modes.length) {
      stage = "";
      isNew = true;
    }
    const box = boxOf("lyrics-text");
    if (!box) return;
    if (isNew) soon(select);
    box.readOnly = stage === "running" || modes.includes("rewrite");
  });
})();
