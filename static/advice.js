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

// The button of a hint mends its field: as if typed, so that Ctrl + Z brings the old text back.
document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("button[data-fix]");
  const box = button && document.getElementById(button.dataset.fix)?.querySelector("textarea, input");
  if (!box) return;
  const { value } = button.dataset;
  if (box.type === "checkbox") {
    if (!box.checked) box.click();
    return;
  }
  if (box.offsetParent) {
    box.focus();
    box.select();
    if (document.execCommand(value ? "insertText" : "delete", false, value)) return;
  }
  // A field that the short form hides cannot be typed into.
  box.value = value;
  box.dispatchEvent(new Event("input", { bubbles: true }));
});
