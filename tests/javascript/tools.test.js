import assert from "node:assert/strict";
import { test } from "node:test";
import { studioOf } from "./scripts.js";

const studio = studioOf("tools");
const { address, clamp, clock, exactClock, fill } = studio.tools;

test("numbers and times are read as the server reads them", () => {
  const read = { "": 0, " 12 ": 12, "2,5": 2.5, "1,024": 1024, "1,024.5": 1024.5, "-1": -1 };
  for (const [text, value] of Object.entries(read)) assert.equal(studio.number(text), value, text);
  assert.equal(studio.number(null), 0);
  assert.ok(Number.isNaN(studio.number("fast")));
  assert.equal(studio.seconds("2:30"), 150);
  assert.equal(studio.seconds("0:07,5"), 7.5);
  assert.equal(studio.seconds("90"), 90);
  assert.ok(Number.isNaN(studio.seconds("2:60")));
});

test("digits and signs of any keyboard are read", () => {
  const read = { "１２０": 120, "−1": -1, "–1": -1, "١٢٠": 120, "۱۲۰": 120, "१२": 12 };
  for (const [text, value] of Object.entries(read)) assert.equal(studio.number(text), value, text);
  assert.equal(studio.seconds("２：３０"), 150);
});

test("a paste has one kind of line break, and nothing that cannot be seen", () => {
  for (const end of ["\r\n", "\r", "\v", "\f", "\u0085", "\u2028", "\u2029", "\\n", "\\r\\n"])
    assert.equal(studio.plain(`window${end}Rain`), "window\nRain");
  assert.equal(studio.plain("\ufeff[Verse 1]\u200f\u00a0\u00ad"), "[Verse 1] ");
  assert.equal(studio.plain("می\u200cخواهم"), "می\u200cخواهم");
});

test("a tab that is reloaded has what it had, a new one what was chosen last", () => {
  const store = () => {
    const held = {};
    return { getItem: (key) => held[key] ?? null, setItem: (key, value) => (held[key] = value) };
  };
  globalThis.localStorage = store();
  const tabs = [store(), store()];
  const use = (tab) => {
    globalThis.sessionStorage = tab;
    globalThis.window = { sessionStorage: tab, localStorage: globalThis.localStorage };
  };
  use(tabs[0]);
  studio.chosen.write("face", "simple");
  use(tabs[1]);
  assert.equal(studio.chosen.read("face"), "simple");
  studio.chosen.write("face", "custom");
  use(tabs[0]);
  assert.equal(studio.chosen.read("face"), "simple");
  use(store());
  assert.equal(studio.chosen.read("face"), "custom");
});

test("what a browser does not keep, or something else has written, is no fault", () => {
  const held = { broken: "{" };
  const full = () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  globalThis.window = {
    localStorage: { getItem: (key) => held[key] ?? null, setItem: (key, value) => (held[key] = value) },
    sessionStorage: { getItem: full, setItem: full },
  };
  assert.equal(studio.local.write("one", { a: [1] }), true);
  assert.deepEqual(studio.local.read("one"), { a: [1] });
  assert.equal(studio.local.read("none"), null);
  assert.equal(studio.local.read("broken"), null);
  assert.equal(studio.session.write("one", 1), false);
  assert.equal(studio.session.read("one"), null);
});

test("a clock counts whole seconds, an exact one rounds to tenths", () => {
  assert.deepEqual([0, 59.99, 60, 600.5].map(clock), ["0:00", "0:59", "1:00", "10:00"]);
  assert.deepEqual([0, 59.94, 59.96, 605.25].map(exactClock), ["0:00.0", "0:59.9", "1:00.0", "10:05.3"]);
});

test("a value is held within its range", () => {
  assert.deepEqual(
    [-1, 0.5, 2].map((value) => clamp(value, 0, 1)),
    [0, 0.5, 1]
  );
});

test("texts are filled in once, so that a name in braces stays one", () => {
  assert.equal(fill("{a} of {b}, {a}", { a: "{b}", b: 2 }), "{b} of 2, {b}");
});

test("the address of a file keeps its folders and escapes the rest", () => {
  globalThis.window = { gradio_config: { root: "https://a.b/studio", api_prefix: "/gradio_api" } };
  globalThis.location = { origin: "https://a.b" };
  assert.equal(address("/out/a b#1?.wav"), "https://a.b/studio/gradio_api/file=/out/a%20b%231%3F.wav");
});

test("the address is the page's own, whatever the server was told", () => {
  for (const root of ["http://a.b/studio", "http://127.0.0.1:7860/studio/", "https://old.name/studio"]) {
    globalThis.window = { gradio_config: { root, api_prefix: "/gradio_api" } };
    globalThis.location = { origin: "https://a.b:8443" };
    assert.equal(address("/a.wav"), "https://a.b:8443/studio/gradio_api/file=/a.wav");
    assert.equal(studio.tools.where({ url: "/runs/1/takes/1", path: "/a" }), "https://a.b:8443/studio/runs/1/takes/1");
  }
});

test("a file is gone only if the studio says so", async () => {
  const answers = { 200: false, 404: true, 410: true, 403: false, 401: false, 500: false, 502: false, 504: false };
  for (const [status, gone] of Object.entries(answers)) {
    globalThis.fetch = async () => ({ status: Number(status) });
    assert.equal(await studio.tools.isGone("/a"), gone, status);
  }
  globalThis.fetch = async () => {
    throw new TypeError("Failed to fetch");
  };
  assert.equal(await studio.tools.isGone("/a"), false);
});

test("listeners on the document end once their component is gone, and not before it is built", () => {
  const page = new EventTarget();
  globalThis.document = page;
  const element = { isConnected: false };
  const heard = [];
  const on = studio.tools.whileThere(element);
  on("one", ({ type }) => heard.push(type));
  on("other", ({ type }) => heard.push(type));
  const tell = (name) => page.dispatchEvent(new Event(name));
  tell("one");
  element.isConnected = true;
  tell("one");
  tell("other");
  assert.deepEqual(heard, ["one", "one", "other"]);
  element.isConnected = false;
  tell("one");
  element.isConnected = true; // all of them were removed, whichever noticed
  tell("one");
  tell("other");
  assert.deepEqual(heard, ["one", "one", "other"]);
});
