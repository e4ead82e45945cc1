// The added LoRAs. The list is `props.value`: what a request needs of each LoRA, and the texts about it.
studio.loras = (element, props, _trigger, watch) => {
  const { clamp, fill, make } = studio.tools;
  const find = (selector) => element.querySelector(selector);
  const { texts, weight } = Object.fromEntries(
    Object.entries(find(".loras").dataset).map(([name, text]) => [name, JSON.parse(text)])
  );
  const list = find("ol");
  const empty = find(".empty");
  const clear = find(".clear");

  let drawn = []; // the LoRAs on the page

  const chosen = () => (Array.isArray(props.value) ? props.value : []);
  const counted = (count) => fill(count === 1 ? texts.one : texts.several, { count });

  // --- what is seen and heard ---

  const button = (name, lora, act, disabled = false) => {
    const label = fill(texts[`${name}_of`], lora);
    const made = make("button", { type: "button", class: name, text: texts[name], "aria-label": label });
    made.disabled = disabled;
    made.addEventListener("click", act);
    return made;
  };

  const weights = (lora, at) => {
    const settings = { ...weight, value: lora.weight, "aria-label": fill(texts.weight_of, lora) };
    const range = make("input", { type: "range", ...settings });
    const number = make("input", { type: "number", inputmode: "decimal", ...settings });
    const take = (text) => {
      const value = text.trim() === "" ? NaN : Number(text);
      const taken = Number.isNaN(value) ? chosen()[at].weight : clamp(value, weight.min, weight.max);
      range.value = number.value = taken;
      write(chosen().map((each, i) => (i === at ? { ...each, weight: taken } : each)));
    };
    range.addEventListener("input", () => take(range.value));
    number.addEventListener("change", () => take(number.value));
    const caption = make("span", { text: texts.weight, "aria-hidden": "true" });
    return make("div", { class: "weight" }, [caption, range, number]);
  };

  const row = (lora, at, all) => {
    const facts = (lora.facts || []).map((fact) => make("span", { text: fact }));
    const parts = [make("p", { class: "name", text: lora.name }), make("p", { class: "facts" }, facts)];
    if (lora.note) parts.push(make("p", { class: "note", text: lora.note }));
    const buttons = make("div", { class: "buttons" }, [
      button("up", lora, () => move(at, at - 1), at === 0),
      button("down", lora, () => move(at, at + 1), at === all.length - 1),
      button("remove", lora, () => remove(at)),
    ]);
    return make("li", {}, [...parts, make("div", { class: "controls" }, [weights(lora, at), buttons])]);
  };

  const draw = () => {
    drawn = chosen();
    list.replaceChildren(...drawn.map(row));
    list.hidden = !drawn.length;
    empty.hidden = drawn.length > 0;
    clear.hidden = drawn.length < 2;
  };

  const say = (text, values) => {
    find(".said").textContent = `${fill(text, values)} ${counted(chosen().length)}`;
  };

  // --- changing the list ---

  const write = (loras) => {
    props.value = drawn = loras;
  };

  const move = (from, to) => {
    const loras = [...chosen()];
    loras.splice(to, 0, ...loras.splice(from, 1));
    write(loras);
    draw();
    // At an end of the list the button that was pressed is off.
    const names = to < from ? [".up", ".down"] : [".down", ".up"];
    const buttons = names.map((name) => list.children[to].querySelector(name));
    buttons.find(({ disabled }) => !disabled).focus();
    say(texts.moved, { name: loras[to].name, place: to + 1 });
  };

  const remove = (at) => {
    const { name } = chosen()[at];
    write(chosen().filter((_, i) => i !== at));
    draw();
    (list.children[Math.min(at, drawn.length - 1)]?.querySelector(".remove") || empty).focus();
    say(texts.removed, { name });
  };

  clear.addEventListener("click", () => {
    write([]);
    draw();
    empty.focus();
    say(texts.cleared, {});
  });

  // --- the page ---

  // From outside: something was added, or a file's settings came back.
  watch("value", () => {
    const before = drawn.length;
    draw();
    if (drawn.length > before)
      say(texts.added, {
        name: drawn
          .slice(before)
          .map((lora) => lora.name)
          .join(", "),
      });
  });
  draw();
};
