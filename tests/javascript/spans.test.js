import assert from "node:assert/strict";
import { test } from "node:test";
import { studioOf } from "./scripts.js";

const { spans } = studioOf("tools", "spans");
const LEAST = 0.5;
const LENGTHS = [0.5, 0.77, 7.34, 60, 599.999];
const shares = [-0.1, 0, 0.001, 0.25, 0.333, 0.5, 0.9, 0.999, 1, 1.1];

// Whether the server would take a region: within the file, and as long as one must be.
const valid = ({ start, end }, length) => start >= 0 && end <= length && end - start >= LEAST - 1e-6;

test("seconds go to tenths, to the end of the file, or to beats", () => {
  assert.equal(spans.snap(1.24, 10), 1.2);
  assert.equal(spans.snap(-3, 10), 0);
  assert.equal(spans.snap(7.3, 7.34), 7.34);
  assert.equal(spans.snap(7.2, 7.34), 7.2);
  assert.equal(spans.snap(1.24, 10, [0.5, 1, 1.5]), 1);
  assert.equal(spans.snap(9.9, 10, [0.5, 1, 1.5]), 10);
  assert.equal(spans.snap(0.2, 10, [0.5, 1, 1.5]), 0);
});

test("what is drawn of two fields is a region of the file, and theirs if that is one", () => {
  assert.deepEqual(spans.chosen(2, 4, 10, LEAST), { region: { start: 2, end: 4 }, fits: true });
  assert.deepEqual(spans.chosen(2, 0, 10, LEAST), { region: { start: 2, end: 10 }, fits: true });
  const wrong = [
    [4, 2],
    [9.8, 0],
    [2, 11],
    [-1, 5],
    [Number.NaN, 5],
    [2, Number.NaN],
    [20, 30],
  ];
  for (const [start, end] of wrong) {
    const { region, fits } = spans.chosen(start, end, 10, LEAST);
    assert.equal(fits, false, `${start} ${end}`);
    assert.ok(valid(region, 10), JSON.stringify(region));
  }
});

test("whatever is dragged where, the region stays valid", () => {
  for (const length of LENGTHS)
    for (const beats of [[], [0.13, 0.63, 1.13, 0.9 * length]])
      for (const one of shares)
        for (const other of shares) {
          const region = spans.marked(one * length, other * length, length, LEAST, beats);
          const told = `${length} ${beats} ${one} ${other} ${JSON.stringify(region)}`;
          assert.ok(valid(region, length), told);
          const moved = spans.moved(region, other * length, length, beats);
          assert.ok(valid(moved, length), `moved ${told} ${JSON.stringify(moved)}`);
          for (const part of ["start", "end"]) {
            const [low, high] = spans.range(part, region, length, LEAST);
            for (const end of [low, high])
              assert.ok(valid({ ...region, [part]: end }, length), `${part} to ${end} ${told}`);
          }
        }
});

test("a region that is moved keeps its length, and reaches the end of the file", () => {
  assert.deepEqual(spans.moved({ start: 1, end: 3.5 }, 4.26, 20), { start: 4.3, end: 6.8 });
  assert.deepEqual(spans.moved({ start: 1, end: 3 }, 30, 7.34), { start: 5.3, end: 7.34 });
});

test("a drag marks from where it began, in either direction, and at least the shortest region", () => {
  assert.deepEqual(spans.marked(2, 5, 20, LEAST), { start: 2, end: 5 });
  assert.deepEqual(spans.marked(5, 2, 20, LEAST), { start: 2, end: 5 });
  assert.deepEqual(spans.marked(5, 5.1, 20, LEAST), { start: 5, end: 5.5 });
  assert.deepEqual(spans.marked(5, 4.9, 20, LEAST), { start: 4.5, end: 5 });
});

test("a region is full from nine tenths of the file on", () => {
  assert.equal(spans.isFull({ start: 0, end: 9 }, 10), false);
  assert.equal(spans.isFull({ start: 0.5, end: 9.6 }, 10), true);
});

test("the timeline has a quarter of the song beside each end", () => {
  assert.deepEqual(spans.scale(60, { before: 10, after: 30 }), { from: -35, to: 115 });
});

test("an end gets no more than its limit and than the longest song leaves", () => {
  assert.equal(spans.most(60, 30, 300, 600), 300);
  assert.equal(spans.most(500, 30, 300, 600), 70);
  assert.equal(spans.most(600, 30, 300, 600), 0);
});

test("without zoom the whole file is in view, with it a part that never leaves the file", () => {
  assert.equal(spans.inView(60, 1000, 980, 10, 1), 60);
  const [stage, edge] = [1000, 10];
  for (const zoom of [2, 7.5, 30]) {
    const track = zoom * (stage - 2 * edge);
    const shown = spans.inView(60, stage, track, edge, zoom);
    assert.ok(Math.abs(shown - (60 * stage) / track) < 1e-9);
    for (const share of [0, 0.3, 1]) {
      const from = spans.viewFrom(60, share * (track + 2 * edge - stage), track, edge, shown);
      assert.ok(from >= 0 && from + shown <= 60 + 1e-9, `${zoom} ${share} ${from}`);
    }
  }
});

test("the closest look has two seconds across, and a short file is not magnified", () => {
  assert.equal(spans.mostZoom(60), 30);
  assert.equal(spans.mostZoom(1), 1);
});

test("further regions are written as a text and read from it", () => {
  const regions = [
    { start: 12, end: 15.5 },
    { start: 30, end: 35 },
  ];
  assert.deepEqual(spans.listed("12-15.5, 0:30-0:35", 60), regions);
  assert.deepEqual(spans.listed(spans.written(regions), 60), regions);
  for (const wrong of ["", undefined, "x", "12", "12-", "15-12", "12-70", "-3-5"])
    assert.deepEqual(spans.listed(wrong, 60), [], wrong);
});

test("a further region joins those that it overlaps", () => {
  const region = { start: 1, end: 2 };
  const other = { start: 5, end: 6 };
  const free = { start: 3, end: 4 };
  assert.deepEqual(spans.united(region, [other], free), { region, others: [free, other] });
  assert.deepEqual(spans.united(region, [other], { start: 4, end: 5.5 }), { region, others: [{ start: 4, end: 6 }] });
  assert.deepEqual(spans.united(region, [other], { start: 1.5, end: 5.5 }), {
    region: { start: 1, end: 6 },
    others: [],
  });
});

test("sections are those of the lyrics where their lines are timed, else parts of eight bars", () => {
  const lyrics = "[Intro]\n[Verse 1]\nOne\nNot timed\nTwo\n\n[Chorus]\nOh\n[Outro]";
  const lines = ["One", "Two", "Oh"].map((text, at) => ({ text, start: 4 + 3 * at, end: 6 + 3 * at }));
  assert.deepEqual(spans.sections({ lyrics, lines, bar: 2, seconds: 20 }), [
    { name: "Verse 1", start: 4, end: 10 },
    { name: "Chorus", start: 10, end: 20 },
  ]);
  const parts = spans.sections({ lyrics, bar: 0.5, seconds: 9.3 });
  assert.deepEqual(parts, [
    { name: "0:00 - 0:04", start: 0, end: 4 },
    { name: "0:04 - 0:08", start: 4, end: 8 },
    { name: "0:08 - 0:09", start: 8, end: 9.3 },
  ]);
  assert.deepEqual(spans.sections({ lyrics, lines: [], seconds: 20 }), []);
});

test("every moment has a section: before the first it is the first, after the last the last", () => {
  const all = [
    { name: "Verse", start: 4, end: 10 },
    { name: "Chorus", start: 10, end: 20 },
  ];
  for (const [now, name] of Object.entries({ 0: "Verse", 4: "Verse", 9.9: "Verse", 10: "Chorus", 20: "Chorus" }))
    assert.equal(spans.sectionAt(all, Number(now)).name, name, now);
  assert.equal(spans.sectionAt([], 3), undefined);
});
