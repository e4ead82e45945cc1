// Advice under a lyrics box. Gradio runs this as the body of a function whenever it builds the component. The contents are
// replaced with every new advice, the element stays: it is the live region, and it remembers whether the list was open.
let open = false;

element.setAttribute("aria-live", "polite");
element.addEventListener("toggle", (event) => (open = event.target.open), true);
new MutationObserver(() => {
  const fold = element.querySelector("details");
  if (fold && open) fold.open = true;
}).observe(element, { childList: true, subtree: true });
