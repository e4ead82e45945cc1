// A tab's fields have changed, or its run has ended: what depends on them is asked for once, a moment after the last change.
(() => {
  const ask = {};
  const soon = {};
  const early = new Set(); // before the settings of the last visit were back

  const now = (mode) => {
    clearTimeout(soon[mode]);
    delete soon[mode];
    ask[mode]?.();
  };

  studio.changes = (element, _props, trigger) => {
    ask[element.closest("[id$=-changed]").id.split("-")[0]] = () => trigger("input");
  };

  studio.changed = (mode) => {
    if (!studio.isBack) {
      early.add(mode);
      return;
    }
    clearTimeout(soon[mode]);
    soon[mode] = setTimeout(now, 100, mode);
  };

  document.addEventListener("studio-back", () => early.forEach(studio.changed));

  addEventListener("pagehide", () => Object.keys(soon).forEach(now));

  document.addEventListener("studio-run", ({ detail }) => {
    if (!detail.running) studio.changed(detail.id.split("-")[0]);
  });
})();
