// A fold stays as the visitor left it when Gradio brings its component up to newer facts, in which it is closed.
studio.folds = (element) => {
  let open = false;
  element.addEventListener("click", ({ target }) => {
    const fold = target.closest("summary")?.parentElement;
    if (fold) open = !fold.open; // the browser is about to do it
  });
  new MutationObserver(() => {
    const fold = element.querySelector("details");
    if (fold && fold.open !== open) fold.open = open;
  }).observe(element, { childList: true, subtree: true, attributeFilter: ["open"] });
};
