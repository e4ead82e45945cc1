// What a screen reader hears of a run. Gradio runs this as the body of a function whenever it builds the component. The
// line changes twice a second and would never let anybody finish a sentence: so the live region, which is a neighbor of
// the line, gets its sentence only with a new stage, with each quarter of one, and at the end.
const heard = document.createElement("p");
let last = "";

heard.className = "heard";
heard.setAttribute("aria-live", "polite");
element.parentElement.append(heard);
new MutationObserver(() => {
  const line = element.querySelector(".progress-line");
  if (line?.dataset.heard === last) return;
  last = line?.dataset.heard ?? "";
  heard.textContent = line?.querySelector("span").textContent ?? "";
}).observe(element, { childList: true, subtree: true, attributeFilter: ["data-heard"] });
