import assert from "node:assert/strict";
import { test } from "node:test";
import { studioOf } from "./scripts.js";

// A page on which no tab is open, whose address gets a fragment.
const pageWith = (hash) => {
  const page = new EventTarget();
  page.history = { replaceState: () => (page.location.hash = "") };
  page.location = { hash: "", pathname: "/", search: "", origin: "https://a.b" };
  Object.assign(globalThis, { window: page, history: page.history, location: page.location });
  globalThis.document = { querySelector: () => null };
  const studio = studioOf("tools", "recipes");
  studio.touch = () => {};
  const follow = (link) => {
    page.location.hash = link;
    page.dispatchEvent(new Event("hashchange"));
  };
  follow(hash);
  return { follow, page, studio };
};
const soon = () => new Promise((done) => setTimeout(done));
// Opens a tab and returns what is triggered there.
const opened = async (studio, mode) => {
  const triggered = [];
  studio.panel(mode, (...what) => triggered.push(what));
  await soon();
  return triggered;
};

test("a recipe for a tab without songs, or for none that there is, is in nobody's way", async () => {
  for (const mode of ["lyrics", "nothing", "constructor"]) {
    const { studio } = pageWith(`#recipe=${mode}.abc`);
    const done = [];
    studio.inTab("generate", () => done.push("generate"));
    await opened(studio, "generate");
    assert.deepEqual(done, ["generate"], mode);
  }
});

test("what waits for a tab that is still being built keeps nothing else waiting", async () => {
  const { studio } = pageWith("");
  const done = [];
  await opened(studio, "generate");
  for (const name of ["first", "second"]) studio.inTab("extend", () => done.push(`extend ${name}`));
  studio.inTab("generate", () => done.push("generate"));
  assert.deepEqual(done, ["generate"]);
  await opened(studio, "extend");
  assert.deepEqual(done, ["generate", "extend first", "extend second"]);
});

test("a recipe fills the form of its tab, and one that is broken brings no settings", async () => {
  const settings = { request: { prompt: "sea shanty", lyrics: "[Verse]\nπ" }, takes: [{ seed: 4 }] };
  const { follow, page, studio } = pageWith("#recipe=generate.broken");
  assert.equal(page.location.hash, "");
  const triggered = await opened(studio, "generate");
  for (let each = 0; !triggered.length && each < 1000; each++) await soon();
  assert.deepEqual(triggered.shift(), ["edit", { settings: {}, link: true }]);
  follow(new URL(await studio.recipe("generate", settings)).hash);
  for (let each = 0; !triggered.length && each < 1000; each++) await soon();
  assert.deepEqual(triggered, [["edit", { settings, link: true }]]);
});
