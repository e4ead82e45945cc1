// The shelf of examples in place of the songs that are not there yet: a cover plays its song, and the button of the one that
// was played last fills the form. The dice writes an idea into the prompt.
studio.examples = (element, _props, trigger) => {
  const { address, fill, make, sign, whileThere } = studio.tools;
  const { cards, where, texts } = JSON.parse(element.querySelector("[data-songs]").dataset.songs);
  const track = (name, card) => ({ mode: "examples", song: card.id, name, where, card, gain: () => 1, lost: () => {} });
  const covers = Object.entries(cards).map(([name, found]) => {
    const what = track(name, { ...found, art: address(found.art) });
    const play = make("button", { type: "button", class: "cover", click: () => studio.player.toggle(what) }, [
      make("img", { src: what.card.art, alt: "", loading: "lazy" }),
      make("span", { class: "sign" }),
      make("span", { class: "name", text: name }),
      make("span", { class: "style", text: found.style }),
    ]);
    const like = {
      type: "button",
      class: "like",
      text: texts.like,
      "aria-label": fill(texts.like_of, { name }),
      click: () => trigger("input", { name }),
    };
    const made = make("div", { class: "example" }, [play, make("button", like)]);
    made.follow = () => {
      const here = studio.player.is(what.card);
      const state = here && !studio.player.paused() ? "pause" : "play";
      made.classList.toggle("current", here);
      sign(play, state, fill(texts[state], { name }), play.querySelector(".sign"));
    };
    made.follow();
    made.what = what;
    return made;
  });
  element.querySelector(".covers").replaceChildren(...covers);
  studio.player.add("examples", () => covers.map(({ what }) => what));
  whileThere(element)("studio-player", () => {
    for (const cover of covers) cover.follow();
  });
};

document.addEventListener("click", ({ target }) => {
  const dice = target.closest?.("button[data-ideas]");
  const box = dice && document.querySelector("#generate-prompt textarea");
  if (!box) return;
  const ideas = JSON.parse(dice.dataset.ideas).filter((idea) => idea !== box.value);
  // As if typed: Ctrl + Z brings the old text back.
  box.focus();
  box.select();
  document.execCommand("insertText", false, ideas[Math.floor(Math.random() * ideas.length)]);
});
