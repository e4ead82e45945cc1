// The line of a run. The server updates it once a second at most; its clock ticks in the browser. A screen reader would
// never finish a sentence that changes so often: the line is hidden from it, and the live region beside the line gets its
// sentence only with a new stage, with each quarter of one, and at the end. The page gets an event when a run begins and ends.
studio.lines = {}; // by id: what sets a line
studio.progress = (element, props) => {
  const heard = document.createElement("p");
  let last = "";
  let state = "";
  let ticking = 0;

  const tick = (time, from) => () => {
    if (!time.isConnected) return clearInterval(ticking);
    time.textContent = studio.tools.clock(Number(time.dataset.elapsed) + (performance.now() - from) / 1000);
  };

  heard.className = "heard";
  heard.setAttribute("aria-live", "polite");
  element.parentElement.append(heard);
  studio.lines[element.closest("[id$=-progress]").id] = (line) => {
    props.value = line;
  };
  new MutationObserver((changes) => {
    const line = element.querySelector(".progress-line");
    const time = line?.querySelector("[data-elapsed]");
    clearInterval(ticking);
    if (time) ticking = setInterval(tick(time, performance.now()), 1000);
    const now = line?.dataset.state ?? "";
    // A line that was old news is news again.
    if (now === "running" || changes.some(({ type }) => type === "childList"))
      element.closest("[id$=-progress]").removeAttribute("data-stale");
    const { id } = element.closest("[id$=-progress]");
    const detail = { id, running: now === "running", done: now === "done" };
    if (now !== state) document.dispatchEvent(new CustomEvent("studio-run", { detail }));
    state = now;
    document.dispatchEvent(new CustomEvent("studio-news", { detail }));
    if (line?.dataset.heard === last) return;
    last = line?.dataset.heard ?? "";
    heard.textContent = line?.querySelector("span").textContent ?? "";
  }).observe(element, {
    childList: true,
    subtree: true,
    attributeFilter: ["data-heard", "data-state", "data-elapsed"],
  });
};
