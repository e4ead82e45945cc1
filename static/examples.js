// The buttons of Generate's examples play their songs; another click pauses.
studio.examples = (element) => {
  const { cards, where } = JSON.parse(element.querySelector("[data-songs]").dataset.songs);
  const { address, whileThere } = studio.tools;
  const track = ([name, card]) => [
    name,
    { mode: "examples", name, where, card: { ...card, art: address(card.art) }, gain: () => 1, lost: () => {} },
  ];
  const tracks = Object.fromEntries(Object.entries(cards).map(track));
  studio.player.add("examples", () => Object.values(tracks));
  whileThere(element)("click", ({ target }) => {
    const chosen = tracks[target.closest?.("#generate-panel .chip")?.textContent.trim()];
    if (chosen) studio.player.toggle(chosen);
  });
};
