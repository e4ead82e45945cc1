// What Gradio does not do by itself. Everything is delegated from the document: Gradio re-renders its elements whenever it likes.
window.studio = {};

// Gradio watches every object of the page's description, and goes through all events for each component, twice: half a
// second of a first visit. Svelte watches plain objects and arrays alone, and events never change.
(() => {
  class Events extends Array {}
  const config = window.gradio_config;
  const { dependencies } = config;
  for (const event of dependencies) Object.setPrototypeOf(event, Object.create(Object.prototype));
  Object.setPrototypeOf(dependencies, Events.prototype);

  // At the end of an event Gradio gives each of its inputs a status, which none of ours shows. From then on every message of
  // every event searches the page for each of them: a fifth of what the page did. It asks whether they include a component.
  class Inputs extends Array {
    static [Symbol.species] = Array;
    includes() {
      return false;
    }
  }
  for (const event of dependencies) Object.setPrototypeOf(event.inputs, Inputs.prototype);

  // Gradio counts the seconds of the page's loading at every frame, and goes on when they are no longer shown, for as long as
  // the page is open. Whoever else asks for frames has asked for one more within two of them, and is known by then.
  const { requestAnimationFrame } = window;
  const known = new Set();
  const draw = (act) => {
    const frame = requestAnimationFrame(act);
    known.add(frame);
    return frame;
  };
  const stopTheClock = () => {
    for (let frame = draw(() => {}); frame > 0; frame--) if (!known.has(frame)) cancelAnimationFrame(frame);
    window.requestAnimationFrame = requestAnimationFrame;
  };
  window.requestAnimationFrame = draw;
  draw(() => draw(stopTheClock));

  // The server knows its address from the last proxy, which may have told it too little: the page's own counts.
  config.root = location.origin + location.pathname.replace(/\/+$/, "");
})();

// What a visitor did something with, before the settings of the last visit are back: a field, or a button that fills some.
(() => {
  const touched = new Set();
  studio.touch = (mode) => touched.add(mode);
  studio.touched = (id) => touched.has(id) || touched.has(id.split("-")[0]);
  // The values of fields by their ids, in their order; until these are there, the fields hold nothing to be kept.
  studio.back = (ids, found) => {
    studio.isBack = true;
    document.dispatchEvent(new Event("studio-back"));
    return ids.map((id) => (studio.touched(id) ? undefined : found[id]));
  };
  for (const kind of ["input", "change", "drop", "mousedown"])
    document.addEventListener(
      kind,
      ({ target }) => {
        if (kind === "mousedown" && !target.closest?.('[role="option"]')) return;
        for (let each = target.closest?.("[id]"); each; each = each.parentElement?.closest("[id]"))
          touched.add(each.id);
      },
      true
    );
  // A click that only opens something or plays fills nothing.
  const fills = "#studio-tabs button:not(.label-wrap, .play, [aria-expanded], [data-face], [data-seconds])";
  document.addEventListener("click", ({ target }) => {
    const panel = target.closest?.(fills)?.closest('[role="tabpanel"]');
    if (panel) touched.add(panel.id.split("-")[0]);
  });
})();

(() => {
  // Leaving the page ends a download, so ask first; songs continue.
  window.addEventListener("beforeunload", (event) => {
    if (document.querySelector('#download-progress .progress-line[data-state="running"]')) {
      event.preventDefault();
      event.returnValue = "";
    }
  });

  const copy = async (text) => {
    try {
      return await navigator.clipboard.writeText(text);
    } catch {} // not allowed; pages that are neither https nor on this machine have no clipboard object
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };

  studio.copy = copy;
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button[data-copy]");
    if (!button) return;
    await copy(button.dataset.copy);
    const text = button.textContent;
    if (text === button.dataset.copied) return;
    button.textContent = button.dataset.copied;
    setTimeout(() => (button.textContent = text), 1500);
  });

  // Arrow keys in a list of tabs, as the ARIA practices have it.
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.('[role="tab"]');
    if (!tab || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const tabs = [...tab.closest('[role="tablist"]').querySelectorAll('[role="tab"]:not([disabled])')];
    const at = tabs.indexOf(tab);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs.at(to % tabs.length);
    next.focus();
    next.click();
  });

  // Of the tabs only the open one is a stop of the Tab key.
  const stops = () => {
    for (const tab of document.querySelectorAll('#studio-tabs [role="tab"]')) {
      const wanted = tab.getAttribute("aria-selected") === "false" ? "-1" : "0";
      if (tab.getAttribute("tabindex") !== wanted) tab.setAttribute("tabindex", wanted);
    }
  };
  studio.stops = stops; // once they are there
  new MutationObserver(stops).observe(document, { subtree: true, attributeFilter: ["aria-selected"] });

  // A large download begins with a second click.
  const calm = (button) => {
    delete button.dataset.sure;
    button.removeAttribute("aria-label");
  };
  document.addEventListener(
    "click",
    (event) => {
      const button = event.target.closest?.("#download-go");
      if (!button) return;
      if (button.dataset.sure) return calm(button);
      event.stopPropagation();
      event.preventDefault();
      button.dataset.sure = studio.texts.really;
      button.setAttribute("aria-label", studio.texts.really);
      button.addEventListener("blur", () => calm(button), { once: true });
    },
    true
  );

  // The banner of the built-in engine can be hidden, until the page is opened anew.
  document.addEventListener("click", (event) => {
    if (event.target.closest?.(".dismiss")) document.documentElement.dataset.banner = "hidden";
    // Gradio would open the link in a new tab.
    if (!event.target.closest?.('[href="#studio-banner"]')) return;
    event.preventDefault();
    // While it is being downloaded there is no button.
    const offer = document.querySelector("#download-go") ?? document.querySelector("#studio-banner");
    offer?.scrollIntoView({ block: "nearest" });
    offer?.focus();
  });

  // Browsers drop a click whose button moved away beneath the pointer: a line that comes in above is enough for that.
  let pressed;
  document.addEventListener(
    "pointerdown",
    (event) => (pressed = event.pointerType === "mouse" && event.button === 0 ? event : undefined),
    true
  );
  document.addEventListener(
    "pointerup",
    (event) => {
      const button = pressed?.target.closest?.("button");
      if (!button || button.contains(event.target)) return;
      if (Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) < 8) button.click();
    },
    true
  );

  const DOUBLE_CLICK_MS = 500;

  // A double click is one song. Its second click is not meant for Cancel either, which comes up beneath the pointer.
  document.addEventListener(
    "click",
    (event) => {
      if (event.detail < 2 || !event.target.closest?.('[id$="-cancel"], #studio-tabs [id$="-go"]')) return;
      event.stopPropagation();
      event.preventDefault();
    },
    true
  );

  const shown = (element) => element.offsetParent !== null;

  // A button that is switched off loses the focus: at the start of a run it goes to Cancel, at the end back again.
  const partners = (button) => {
    const mode = button.closest("[data-mode]")?.dataset.mode ?? button.id.split("-")[0];
    const helped = button.closest(".assist") || button.id.includes("-assist-");
    if (/-cancel$/.test(button.id)) return [origin, document.getElementById(`${mode}-go`)];
    return [document.getElementById(`${mode}${helped ? "-assist" : ""}-cancel`)];
  };
  let focused; // the button that has the focus, or had it when it was switched off
  let origin; // what started the run
  document.addEventListener("focusin", ({ target }) => (focused = target.closest?.("button")));
  document.addEventListener("pointerdown", ({ target }) => (focused = target.closest?.("button")), true);
  const handOn = () => {
    if (!focused?.disabled) return;
    if (document.activeElement !== document.body && document.activeElement !== focused) return;
    const next = partners(focused).find((each) => each?.isConnected && !each.disabled);
    if (!next) return;
    if (!/-cancel$/.test(focused.id)) origin = focused;
    next.focus({ preventScroll: true });
  };
  new MutationObserver(handOn).observe(document, { subtree: true, attributeFilter: ["disabled"] });

  let lastGo = -Infinity; // when the keys started a song, if they have not cancelled since

  // Ctrl or Cmd + Enter presses the main button of the open tab, Esc cancels what runs there: nothing while a list or a
  // dialog is open, which these keys belong to then. Before Gradio closes the list, hence in the capturing phase.
  document.addEventListener(
    "keydown",
    (event) => {
      const go = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey;
      const cancel = event.key === "Escape" && !event.ctrlKey && !event.altKey && !event.metaKey && !event.shiftKey;
      if (!(go || cancel) || event.repeat || event.isComposing) return;
      if ([...document.querySelectorAll('[aria-expanded="true"][role="combobox"]')].some(shown)) return;
      if (document.querySelector(".menu[open], .renaming, dialog[open]")) return;
      if ([...document.querySelectorAll('[role="dialog"], [aria-modal="true"]')].some(shown)) return;
      const buttons = document.querySelectorAll(`#studio-tabs [id$="${go ? "-go" : "-cancel"}"]:not([disabled])`);
      const button = [...buttons].find(shown);
      if (!button) return;
      event.preventDefault();
      event.stopPropagation();
      // Pressed twice in the time of a double click, it is one song as well.
      if (go && event.timeStamp - lastGo < DOUBLE_CLICK_MS) return;
      lastGo = go ? event.timeStamp : -Infinity;
      // Esc while writing is seldom meant for the song: it leaves the box, and the next one cancels.
      const box = cancel && event.target.closest?.("textarea, input:not([type=checkbox], [type=radio], [type=range])");
      if (box) box.blur();
      else button.click();
    },
    true
  );

  // "Nothing was started yet" goes with the next change in its tab. A button may change any tab: it fills one in, or hands
  // a song over.
  const problems = (target) => target.closest?.('[role="tabpanel"]')?.querySelectorAll('[id$="-problems"]') ?? [];
  const outdate = (lines) => {
    for (const line of lines) {
      line.setAttribute("data-stale", "");
      line.querySelector("[data-told]")?.removeAttribute("data-told");
    }
  };
  // What became of the last run is old news as well.
  const OVER = ["done", "stopped", "failed"].map((state) => `.progress-line[data-state="${state}"]`).join(", ");
  const outcomes = (target) =>
    [...(target.closest?.('[role="tabpanel"]')?.querySelectorAll(OVER) ?? [])].map((line) =>
      line.closest('[id$="-progress"]')
    );
  for (const kind of ["input", "change", "drop"])
    document.addEventListener(kind, ({ target, isTrusted }) => {
      outdate(problems(target));
      if (isTrusted) for (const line of outcomes(target)) line.setAttribute("data-stale", "");
    });
  document.addEventListener(
    "click",
    ({ target }) => {
      const button = target.closest?.("#studio-tabs button");
      if (!button || button.matches('[role="tab"], .label-wrap, [data-face]')) return;
      outdate(document.querySelectorAll('#studio-tabs [id$="-problems"]'));
    },
    true
  );

  // What is wrong stays beside its field until then. The line at the button keeps the sentences, unseen,
  // since Gradio would take its own away as soon as the server tells the page anything, such as a song in another tab.
  // A check that failed leads to the first field that is wrong, as soon as its group is open.
  const UNFOLDING_MS = 5000;
  let led = "";
  let sought = { at: "", until: 0 };
  let again;
  const lead = (line) => {
    const { at, told } = line.dataset;
    if (at === led) return;
    if (sought.at !== at) sought = { at, until: performance.now() + UNFOLDING_MS };
    const ids = Object.keys(JSON.parse(told));
    studio.reveal(ids);
    const fields = ids.map((id) => document.getElementById(id));
    if (!fields.every((field) => field && shown(field))) {
      // A group that was open before unfolds without adding anything to the page.
      clearTimeout(again);
      if (performance.now() < sought.until) again = setTimeout(tell, 50);
      return;
    }
    led = at;
    fields.sort((one, other) => (one.compareDocumentPosition(other) & 4 ? -1 : 1));
    const control = fields[0].querySelector("textarea, input:not([type=file]), button, [tabindex]");
    control?.focus({ preventScroll: true });
    fields[0].scrollIntoView({ block: "center" });
  };

  // Which control is wrong, and which words say why, for those who do not see where they stand.
  const CONTROL = "textarea, input:not([type=file], [type=hidden]), button, [tabindex]";
  const wrong = new Map(); // control by the field's id
  const describe = (wanted) => {
    for (const [id, control] of wrong) {
      if (wanted.has(id) && control.isConnected) continue;
      control.removeAttribute("aria-invalid");
      control.removeAttribute("aria-describedby");
      wrong.delete(id);
    }
    for (const [id, sentence] of wanted) {
      const field = document.getElementById(id);
      const control = field?.querySelector(CONTROL);
      const words = [...(field?.querySelectorAll("*") ?? [])].find(
        (each) => !each.children.length && each.textContent.includes(sentence)
      );
      if (!control || !words) continue;
      words.id ||= `${id}-wrong`;
      control.setAttribute("aria-invalid", "true");
      control.setAttribute("aria-describedby", words.id);
      wrong.set(id, control);
    }
  };

  // A line that has said the same of a file since it was chosen waits while its field says it.
  const quieten = (sentences) => {
    for (const notice of document.querySelectorAll("#studio-tabs .form-column .notice")) {
      if (notice.closest('[id$="-problems"]')) continue;
      notice.toggleAttribute("data-stale", sentences.has(notice.textContent));
    }
  };

  const [telling, told] = ["telling", "told"].map((name) => document.getElementsByClassName(name));
  const tell = () => {
    // While Gradio builds the page there are thousands of changes and nothing to tell.
    if (!telling.length && !told.length && !wrong.size) return;
    const lines = [...telling].filter((line) => line.dataset.told);
    for (const line of lines) line.closest('[id$="-problems"]').removeAttribute("data-stale");
    for (const line of lines) lead(line);
    const wanted = new Map(lines.flatMap((line) => Object.entries(JSON.parse(line.dataset.told))));
    for (const kept of [...told]) {
      const field = kept.closest(`#${kept.dataset.field}`);
      const gone = wanted.get(field.id) !== kept.textContent;
      if (gone || field.textContent.split(kept.textContent).length > 2) kept.remove();
    }
    for (const [id, sentence] of wanted) {
      const field = document.getElementById(id);
      if (!field || field.textContent.includes(sentence)) continue;
      const kept = document.createElement("p");
      kept.className = "told";
      kept.dataset.field = id;
      kept.textContent = sentence;
      // A text box of the height of its neighbors has no room below what its label holds.
      (field.matches(".words, .numeric") ? field.querySelector("label") : field).append(kept);
    }
    describe(wanted);
    quieten(new Set(wanted.values()));
  };
  new MutationObserver(tell).observe(document, { subtree: true, childList: true, attributeFilter: ["data-told"] });

  // Lyrics scroll along while they are written, unless somebody scrolls away from the end.
  const written = "#lyrics-text textarea";
  let follows = true;
  for (const kind of ["wheel", "touchmove", "pointerup", "keyup"])
    document.addEventListener(
      kind,
      ({ target }) => {
        if (!target.matches?.(written)) return;
        follows = target.scrollHeight - target.clientHeight - target.scrollTop < 60;
      },
      { passive: true }
    );
  // What was written is read from its beginning, and then made a song: both are in sight, unless the visitor is busy elsewhere.
  const offer = () => {
    const box = document.querySelector(written);
    if (!box || studio.keepsPlace()) return;
    box.scrollTop = 0;
    const { top, bottom } = box.getBoundingClientRect();
    if (isElsewhere() || bottom < 0 || top > innerHeight) return;
    document.querySelector("#lyrics-sing").scrollIntoView({ block: "nearest" });
  };
  const isElsewhere = () => Boolean(document.activeElement?.matches("input, textarea"));
  document.addEventListener("studio-run", ({ detail }) => {
    if (detail.id === "lyrics-progress" && detail.done && follows) settled(offer);
    follows = true;
  });
  // The box gets its text with the next frame.
  const settled = (then) => requestAnimationFrame(() => requestAnimationFrame(then));

  // On a phone the lyrics are below the form, and come into sight with their first words, unless the visitor is busy elsewhere.
  let before = null; // what the box had when lyrics were asked for that are not seen yet
  document.addEventListener("click", ({ target }) => {
    if (target.closest?.("#lyrics-go")) before = document.querySelector(written)?.value ?? "";
  });
  const bring = (box) => {
    if (before === null || box.value === before || !box.value.trim()) return;
    before = null;
    if (!isElsewhere()) box.scrollIntoView({ block: "nearest" });
  };

  document.addEventListener("studio-news", ({ detail }) => {
    if (detail.id !== "lyrics-progress" || !follows) return;
    settled(() => {
      const box = document.querySelector(written);
      if (!box) return;
      bring(box);
      if (detail.running && follows && !studio.keepsPlace()) box.scrollTop = box.scrollHeight;
    });
  });

  // Boxes for numbers take no letters; of what is pasted the digits stay, and the colon of a time. Validation says the
  // rest.
  document.addEventListener("beforeinput", (event) => {
    const box = event.target.closest?.(".numeric textarea, .numeric input");
    const text = event.data ?? event.dataTransfer?.getData("text/plain");
    if (!box || !text || event.isComposing) return;
    const kept = studio.digits(text).replace(box.closest(".time") ? /[^\d.,:-]/g : /[^\d.,-]/g, "");
    if (kept === text) return;
    event.preventDefault();
    if (kept) document.execCommand("insertText", false, kept);
  });

  // Word's line breaks show as a box, and what cannot be seen hides a tag from its line.
  document.addEventListener("beforeinput", (event) => {
    const box = event.target.closest?.(".words textarea, .words input");
    if (!box || !/^insertFrom(Paste|Drop)$/.test(event.inputType)) return;
    const text = event.data ?? event.dataTransfer?.getData("text/plain") ?? "";
    const kept = studio.plain(text);
    if (kept === text) return;
    event.preventDefault();
    document.execCommand("insertText", false, kept);
  });

  // Gradio refuses a file that the browser does not call audio, with a list of types. What it is, the server says in words.
  const isAudio = (file) => file.type.startsWith("audio/");
  const asAudio = (files) => {
    const box = new DataTransfer();
    for (const file of files)
      box.items.add(isAudio(file) ? file : new File([file], file.name, { type: "audio/unknown" }));
    return box.files;
  };
  document.addEventListener(
    "change",
    ({ target }) => {
      if (!target.matches?.('.field.file input[type="file"]') || [...target.files].every(isAudio)) return;
      target.files = asAudio(target.files);
    },
    true
  );
  document.addEventListener(
    "drop",
    (event) => {
      const input = event.target.closest?.(".field.file")?.querySelector('input[type="file"]');
      const files = event.dataTransfer?.files ?? [];
      if (!input || !files.length || [...files].every(isAudio)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      input.files = asAudio([files[0]]);
      input.dispatchEvent(new Event("change", { bubbles: true }));
    },
    true
  );

  // Hebrew and Arabic are written from the right. Gradio gives every box a direction of its own.
  const boxes = document.getElementsByTagName("textarea");
  const direct = () => {
    for (const box of boxes) if (box.dir === "ltr" && box.closest(".words")) box.dir = "auto";
  };
  new MutationObserver(direct).observe(document, { subtree: true, childList: true, attributeFilter: ["dir"] });

  // What is typed into a list finds a choice, instead of going behind the one that is there.
  for (const kind of ["focusin", "click"])
    document.addEventListener(kind, ({ target }) => {
      if (target.matches?.('[role="combobox"]') && target.selectionStart === target.selectionEnd) target.select();
    });

  // Phones show digits for boxes that want a number.
  for (const kind of ["pointerdown", "focusin"])
    document.addEventListener(kind, (event) => {
      const box = event.target.closest?.(".numeric textarea, .numeric input");
      if (box) box.inputMode = box.closest(".signed") ? "text" : "decimal";
    });
})();
