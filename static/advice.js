// Advice under a lyrics box. The contents are replaced with every new advice, the element stays: it is the live region,
// and it remembers whether the list was open.
studio.advice = (element) => {
  let open = false;
  element.setAttribute("aria-live", "polite");
  element.addEventListener("toggle", (event) => (open = event.target.open), true);
  new MutationObserver(() => {
    const fold = element.querySelector("details");
    if (fold && open) fold.open = true;
  }).observe(element, { childList: true, subtree: true });
};
