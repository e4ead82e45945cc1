import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { studioOf } from "./scripts.js";

// The same lines as in tests/unit/test_lyrics_lint.py: the margin of the page and the server count alike.
const LINES = JSON.parse(readFileSync(new URL("../syllables.json", import.meta.url), "utf8"));

test("syllables are those that the server counts", () => {
  const { syllables } = studioOf("words");
  for (const [line, language, count] of LINES) assert.equal(syllables(line, language), count, line);
});

const select = (text, marked) => {
  const from = marked.indexOf("|");
  const to = marked.lastIndexOf("|");
  return [text, from, Math.max(from, to - 1)];
};
const plain = (marked) => marked.replaceAll("|", "");

test("a passage has the whole lines that a selection touches", () => {
  const { passage } = studioOf("words");
  const cases = [
    ["|one\ntwo", "one"],
    ["one|\ntwo", "one"],
    ["one\n|two", "two"],
    ["one\nt|w|o\nthree", "two"],
    ["o|ne\ntwo|\nthree", "one\ntwo"],
    ["one\n|two\n|three", "two"],
    ["one\n|\nthree", ""],
    ["|\none", ""],
    ["one\n|", ""],
    ["|", ""],
  ];
  for (const [marked, wanted] of cases) {
    const text = plain(marked);
    const { start, end } = passage(...select(text, marked));
    assert.equal(text.slice(start, end), wanted, marked);
  }
});

test("a tag opens the line with the cursor, or follows it at its end", () => {
  const { tagAt } = studioOf("words");
  const put = (marked, name) => {
    const text = plain(marked);
    const { from, to, text: put } = tagAt(text, marked.indexOf("|"), name);
    return `${text.slice(0, from)}${put}|${text.slice(to)}`;
  };
  assert.equal(put("|", "Chorus"), "[Chorus]\n|");
  assert.equal(put("la la|", "Chorus"), "la la\n\n[Chorus]\n|");
  assert.equal(put("la| la", "Chorus"), "[Chorus]\n|la la");
  assert.equal(put("one\n|two", "Chorus"), "one\n\n[Chorus]\n|two");
  assert.equal(put("one|\ntwo", "Chorus"), "one\n\n[Chorus]|\ntwo");
  assert.equal(put("one\n\n|\ntwo", "Bridge"), "one\n\n[Bridge]|\ntwo");
  assert.equal(put("one\n|", "Outro"), "one\n\n[Outro]\n|");
});

test("verses are numbered one after the other", () => {
  const { tagAt } = studioOf("words");
  const tag = (text) => tagAt(text, text.length, "Verse").text.trim();
  assert.equal(tag(""), "[Verse 1]");
  assert.equal(tag("[Verse]\nla\n"), "[Verse 2]");
  assert.equal(tag("[Verse 1]\nla\n[Verse 3 - soft]\nla\n"), "[Verse 4]");
});

test("the word at the cursor, or before it, is the one to rhyme with", () => {
  const { wordAt } = studioOf("words");
  const at = (marked) => wordAt(plain(marked), marked.indexOf("|"));
  assert.equal(at("into the ni|ght"), "night");
  assert.equal(at("into the |night"), "night");
  assert.equal(at("into the night,|"), "night");
  assert.equal(at("one\n|don’t stop"), "don’t");
  assert.equal(at("one\n|"), "");
  assert.equal(at("| -- love"), "love");
});
