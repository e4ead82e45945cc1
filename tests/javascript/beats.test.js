import assert from "node:assert/strict";
import { test } from "node:test";
import { studioOf } from "./scripts.js";

const { beats } = studioOf("beats");
const RATE = 50; // onsets a second

// Onsets of `seconds`, in base64 as the server sends them, with a loud one at each of `times`.
const onsetsAt = (times, seconds) => {
  const strengths = new Uint8Array(seconds * RATE);
  for (const time of times) strengths[Math.round(time * RATE)] = 255;
  return btoa(String.fromCharCode(...strengths));
};
const every = (step, from, to) => Array.from({ length: Math.round((to - from) / step) }, (_, at) => from + at * step);
const close = (found, wanted) => {
  assert.equal(found.length, wanted.length, String(found));
  for (const [at, time] of wanted.entries()) assert.ok(Math.abs(found[at] - time) <= 1 / RATE, `${found[at]} ${time}`);
};

test("beats are where the onsets are, at any phase", () => {
  for (const phase of [0.1, 0.2, 0.3]) {
    const times = every(0.5, phase, 20 + phase);
    close(beats(onsetsAt(times, 20), 20, 120), times);
  }
});

test("onsets between the beats do not move them", () => {
  const times = every(0.6, 0.2, 18.2);
  const quiet = times.filter((_, at) => at % 3 === 0).map((time) => time + 0.3);
  close(beats(onsetsAt([...times, ...quiet], 18), 18, 100), times);
});

test("a quiet beginning and a quiet end are counted through", () => {
  const times = every(0.5, 4, 12);
  close(beats(onsetsAt(times, 16), 16, 120), every(0.5, 0, 16.5));
});

test("a tempo that drifts by a few percent is followed", () => {
  const times = [0.2];
  while (times.at(-1) < 19) times.push(times.at(-1) + 0.5 + 0.0005 * times.length);
  close(beats(onsetsAt(times, 20), 20, 120).slice(0, times.length), times);
});

test("there are none without onsets or without a tempo", () => {
  const onsets = onsetsAt([1, 2], 4);
  const without = [
    ["", 120],
    [undefined, 120],
    [onsets, 0],
    [onsets, null],
    [onsets, Number.NaN],
  ];
  for (const [given, bpm] of without) assert.deepEqual(beats(given, 4, bpm), []);
});
