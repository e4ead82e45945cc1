// The two faces of Generate. Simple and Custom share their fields: the style sheet hides what Simple has no place for, and
// nobody but the browser knows which one is shown. Simple sets the length by chips, and names what else is set.
(() => {
  const KEPT = "ace-music-studio-face";
  const SIMPLE = ["generate-prompt", "generate-lyrics"];
  const UNSAID = ["", "unknown", "-1"]; // what a chip does not say
  const settings = {}; // of the form, by name

  const mark = () => {
    const { face } = document.documentElement.dataset;
    for (const button of document.querySelectorAll("[data-face]:not(html)"))
      button.setAttribute("aria-pressed", String(button.dataset.face === face));
  };

  const show = (face) => {
    document.documentElement.dataset.face = face;
    studio.chosen.write(KEPT, face);
    mark();
  };
  document.documentElement.dataset.face = studio.chosen.read(KEPT) === "custom" ? "custom" : "simple";

  // A length as it is read, in minutes and seconds; what was typed wrong as it is.
  const said = (name, set) => {
    const seconds = name === "duration" ? Number(studio.seconds(set)) : 0;
    return seconds > 0 ? studio.tools.clock(seconds) : String(set);
  };

  // Each chip of the strip opens its field. One that Gradio draws anew stays open.
  const open = (chip, wanted) => {
    const field = document.getElementById(chip.getAttribute("aria-controls"));
    chip.setAttribute("aria-expanded", String(wanted));
    field?.toggleAttribute("data-open", wanted);
    return field;
  };
  const strip = () => {
    const line = document.querySelector("#generate-also .also");
    const chips = document.querySelectorAll("#generate-strip [data-opens]");
    if (!line || !chips.length) return;
    const fields = JSON.parse(line.dataset.fields);
    for (const chip of chips) {
      const name = chip.dataset.opens;
      const { value, names } = fields[name];
      const now = name in settings ? settings[name] : value;
      // Of a choice such as "Draft, 20 steps" its name.
      const text = UNSAID.includes(String(now ?? "")) ? "" : (names[now]?.split(", ")[0] ?? said(name, now));
      if (chip.lastElementChild.textContent !== text) chip.lastElementChild.textContent = text;
      chip.toggleAttribute("data-set", !same(now, value));
      if (chip.getAttribute("aria-expanded") === "true") open(chip, true);
    }
  };

  // A wrong field that Simple or the strip hides is shown.
  studio.reveal = (ids) => {
    if (ids.some((id) => id.startsWith("generate-") && !SIMPLE.includes(id))) show("custom");
    for (const id of ids) {
      const fine = document.getElementById(id)?.closest(".fine-only");
      if (fine) document.querySelector("#edit-fine details").open = true;
      const chip = document.querySelector(`#generate-strip [aria-controls="${id}"]`);
      if (chip) open(chip, true);
    }
  };

  // The help of every field, for as long as it is wanted.
  const EXPLAINED = "ace-music-studio-explained";
  const explain = (wanted) => {
    document.documentElement.toggleAttribute("data-explained", wanted);
    for (const button of document.querySelectorAll("[data-explain]"))
      button.setAttribute("aria-pressed", String(wanted));
  };
  // Each tab brings its button when it is opened.
  studio.explain = () => explain(studio.chosen.read(EXPLAINED) === "true");

  const lengths = () => {
    const seconds = settings.duration ? String(studio.seconds(settings.duration)) : "";
    const chips = [...document.querySelectorAll("#generate-lengths [data-seconds]:not(.other)")];
    for (const chip of chips) chip.setAttribute("aria-pressed", String(chip.dataset.seconds === seconds));
    const other = document.querySelector("#generate-lengths .other");
    if (!other) return;
    other.hidden = !(Number(seconds) > 0) || chips.some((chip) => chip.dataset.seconds === seconds);
    other.dataset.seconds = seconds;
    other.textContent = studio.tools.clock(Number(seconds));
  };

  // A style is a part of the prompt between commas.
  const parts = (text) =>
    text
      .split(",")
      .map((part) => part.trim())
      .filter(Boolean);
  const isIn = (style, all) => all.some((part) => part.toLowerCase() === style);
  const styles = () => {
    const all = parts(field("prompt")?.value ?? "");
    for (const chip of document.querySelectorAll("[data-style]"))
      chip.setAttribute("aria-pressed", String(isIn(chip.dataset.style, all)));
  };
  const turn = (style) => {
    const all = parts(field("prompt").value);
    const rest = all.filter((part) => part.toLowerCase() !== style);
    write(field("prompt"), (isIn(style, all) ? rest : [...all, style]).join(", "));
    styles();
  };

  // Who writes the words. Without a choice it is the visitor, once there are some; the rest of the rule is in page_words.py.
  const choice = () => document.querySelector("#generate-words-choice .song-words");
  const words = () => {
    const box = choice();
    if (!box) return;
    const { usual, notes } = box.dataset;
    const said = JSON.parse(notes);
    const offered = [...box.querySelectorAll("button")].map((button) => button.dataset.words);
    let state = settings.lyrics?.trim() ? "own" : usual;
    if (offered.includes(settings.words)) state = settings.words;
    if (settings.instrumental) state = "none";
    document.documentElement.dataset.words = state;
    for (const button of box.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(button.dataset.words === state));
    const note = box.querySelector(".note");
    if (note.textContent !== said[state]) note.textContent = said[state];
  };

  const write = (box, value) => {
    box.value = value;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const field = (name) => document.querySelector(`#generate-${name} :is(input, textarea)`);
  const set = (state) => {
    settings.words = state;
    write(field("words"), state);
  };
  const choose = (state) => {
    const instrumental = field("instrumental");
    if (instrumental.checked !== (state === "none")) instrumental.click();
    settings.instrumental = state === "none";
    if (state !== "none") set(state);
    words();
    if (state === "own") field("lyrics").focus();
  };

  const blank = (value) => (Array.isArray(value) && !value.length) || ["", null, undefined].includes(value);
  const written = (value) => (blank(value) ? "" : JSON.stringify(value));
  const same = (one, other) => written(one) === written(other);

  // What else is set stands in the short form, too, with what takes it back.
  let takeBack;
  const shownAs = ({ label, value, names }, set, texts) => {
    const { fill } = studio.tools;
    if (typeof value === "boolean") return fill(set ? texts.on : texts.off, { label });
    if (Array.isArray(value)) return fill(texts.set, { label });
    return fill(texts.value, { label, value: names[set] ?? set });
  };
  const also = () => {
    const line = document.querySelector("#generate-also .also");
    if (!line) return;
    const { make, fill } = studio.tools;
    const texts = JSON.parse(line.dataset.texts);
    const fields = Object.entries(JSON.parse(line.dataset.fields));
    const set = fields.filter(
      ([name, { value }]) => name !== "duration" && name in settings && !same(settings[name], value)
    );
    line.classList.toggle("shown", set.length > 0);
    const chips = set.map(([name, field]) => {
      const text = shownAs(field, settings[name], texts);
      const label = fill(texts.remove, { text });
      return make("button", {
        type: "button",
        "aria-label": label,
        text: `${text} \u00d7`,
        click: () => takeBack(name),
      });
    });
    const now = chips.map((chip) => chip.textContent).join();
    if (now === line.dataset.now) return;
    line.dataset.now = now;
    line.replaceChildren(make("p", { text: texts.title }), ...chips);
  };
  studio.also = (_element, _props, trigger) => {
    takeBack = (name) => trigger("input", { name });
    also();
    strip();
  };

  // Every change of a form passes here on its way into the browser's storage, which all tabs share: the last one that wrote
  // wins. What this tab had is kept beside it, for its own reload.
  const own = (mode) => `ace-music-studio-own-${mode}`;
  studio.kept = (mode, values) => {
    studio.session.write(own(mode), values);
    studio.desked(mode, values);
    if (mode === "generate") {
      Object.assign(settings, values);
      lengths();
      words();
      also();
      strip();
      styles();
    }
    return values;
  };

  studio.former = (modes, shared) => modes.map((mode, at) => studio.session.read(own(mode)) ?? shared[at]);

  studio.faces = (element) => {
    studio.stops();
    const draw = () => {
      mark();
      lengths();
      words();
      also();
      strip();
      styles();
    };
    // Gradio draws the choice of the words anew with the studio's status.
    new MutationObserver(words).observe(element, { childList: true, subtree: true });
    draw();
  };

  // What is typed is sung, whatever was chosen before.
  document.addEventListener("input", ({ target, isTrusted }) => {
    if (!isTrusted || !target.closest?.("#generate-lyrics") || settings.words !== "write") return;
    set("");
  });

  // What a chip opens may come up beneath the pointer: the second click of a double click is not meant for it.
  let opening = false; // whether the last press opened a field
  const swallow = (event) => {
    if (!opening || event.detail < 2) return;
    event.preventDefault();
    event.stopPropagation();
  };
  document.addEventListener("mousedown", ({ detail }) => (opening &&= detail > 1), true);
  for (const kind of ["mousedown", "click"]) document.addEventListener(kind, swallow, true);

  // A list opens with the focus of its box, at the place that this has by then.
  const press = (chip) => {
    const wanted = chip.getAttribute("aria-expanded") !== "true";
    const opened = open(chip, wanted);
    opening = wanted;
    if (!wanted || !opened) return;
    const control = opened.querySelector("input:checked") ?? opened.querySelector("input, textarea");
    opened.scrollIntoView({ block: "nearest" });
    control?.focus({ preventScroll: true });
  };

  document.addEventListener("click", ({ target }) => {
    const face = target.closest?.("button[data-face]");
    if (face) show(face.dataset.face);
    const chip = target.closest?.("button[data-seconds]");
    if (chip) write(field("duration"), chip.dataset.seconds);
    const opener = target.closest?.("button[data-opens]");
    if (opener) press(opener);
    if (target.closest?.("button[data-explain]")) {
      const wanted = !document.documentElement.hasAttribute("data-explained");
      studio.chosen.write(EXPLAINED, String(wanted));
      explain(wanted);
    }
    const style = target.closest?.("button[data-style]")?.dataset.style;
    if (style) turn(style);
    const who = target.closest?.("button[data-words]");
    if (who) choose(who.dataset.words);
  });
})();
