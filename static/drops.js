// A file that is dropped beside a box would make the browser leave the studio for it. It becomes the source of the tab
// that is open, or gives Generate its settings. What is dropped on a box goes that box's own way.
(() => {
  const BOXES = ["cover-source", "extend-source", "edit-source", "generate-settings"];
  const PATIENCE_MS = 5000; // for a group to unfold, or a box to be emptied

  const chooser = (box) => box?.querySelector('input[type="file"]');

  const until = async (found) => {
    const end = Date.now() + PATIENCE_MS;
    while (!found() && Date.now() < end) await new Promise(requestAnimationFrame);
    return found();
  };

  // The name of the box of the tab that is open, "" if it has none.
  const open = () => {
    const panels = [...document.querySelectorAll('[role="tabpanel"]')];
    const panel = panels.find(({ offsetParent }) => offsetParent);
    return BOXES.find((name) => panel?.id.startsWith(name.split("-")[0])) ?? "";
  };

  const hand = async (name, file) => {
    const find = () => document.getElementById(name);
    if (!find()?.offsetParent) document.querySelector(`#${name}-fold > button`)?.click();
    const box = await until(find);
    if (!box) return;
    // An audio that is there already has no chooser until it is taken out.
    if (!chooser(box)) studio.tools.empty(box);
    const input = await until(() => chooser(find()));
    if (!input) return;
    const files = new DataTransfer();
    files.items.add(file);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    find().scrollIntoView({ block: "nearest" });
  };

  document.addEventListener("dragover", (event) => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    const [file] = event.dataTransfer?.files ?? [];
    if (!file || event.defaultPrevented) return;
    event.preventDefault();
    const name = open();
    if (name) hand(name, file);
  });
})();
