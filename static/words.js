// Lyrics as text: what the desk (static/desk.js) finds in them.

// The syllables of a sung line, by the rule of lyrics_letters.py: null if any of it is in a script that it cannot count.
studio.syllables = (() => {
  const TAG = /\[[^[\]]*\]/g;
  const ASIDE = /\([^()]*\)|（[^（）]*）/g;
  const WORD = /[\p{L}\p{N}]+(?:['’][\p{L}\p{N}]+)*/gu;
  const LETTER = /\p{L}/u;
  const SMALL_KANA = "ぁぃぅぇぉゃゅょゎァィゥェォャュョヮー・";
  const CYRILLIC_VOWELS = "аеёиоуыэюяіїєў";
  const VOWELS = /[aeiouyæøœı]+/g;
  const SILENT_E = /[^aeiouy]e[ds]?$/;
  const SOUNDED_E = /(?:[^aeiouy]le|[td]ed|[sxz]es|[cs]hes|[cg]es)$/;
  const WITH_SILENT_E = ["en", "fr", "unknown"];

  const isWithin = (character, first, last) => character >= first && character <= last;
  const isCjk = (character) =>
    isWithin(character, "ぁ", "\u30ff") ||
    isWithin(character, "\u3400", "\u9fff") ||
    isWithin(character, "\uac00", "\ud7a3") ||
    character.codePointAt(0) >= 0x20000;
  const script = (character) => {
    const point = character.codePointAt(0);
    if (point < 0x370 || (point >= 0x1e00 && point <= 0x1eff)) return "latin";
    if (point >= 0x400 && point <= 0x52f) return "cyrillic";
    return isCjk(character) ? "cjk" : "";
  };

  const ofWord = (word, language) => {
    const letters = [...word.toLowerCase()].filter((letter) => script(letter) !== "cjk");
    const read = letters.filter((letter) => /\p{Nd}/u.test(letter) || CYRILLIC_VOWELS.includes(letter)).length;
    const latin = [...letters.join("").normalize("NFD")]
      .filter((letter) => LETTER.test(letter) && script(letter) === "latin")
      .join("");
    if (!latin) return read;
    let groups = (latin.match(VOWELS) ?? []).length;
    const isSilent = SILENT_E.test(latin) && !SOUNDED_E.test(latin);
    if (groups > 1 && WITH_SILENT_E.includes(language) && isSilent) groups--;
    return read + Math.max(groups, 1);
  };

  return (line, language = "unknown") => {
    const whole = line.replace(TAG, " ");
    const withoutAsides = whole.replace(ASIDE, " ");
    const text = LETTER.test(withoutAsides) ? withoutAsides : whole;
    const characters = [...text];
    if (characters.some((character) => LETTER.test(character) && !script(character))) return null;
    const signs = characters.filter((character) => script(character) === "cjk" && !SMALL_KANA.includes(character));
    const words = text.match(WORD) ?? [];
    return words.reduce((sum, word) => sum + ofWord(word, language), signs.length);
  };
})();

// The whole lines that a selection touches, from `start` to `end`; the line after a selected line break is not among them.
studio.passage = (text, from, to) => {
  const last = to > from && text[to - 1] === "\n" ? to - 1 : to;
  const start = from ? text.lastIndexOf("\n", from - 1) + 1 : 0;
  const end = text.indexOf("\n", last);
  return { start, end: end < 0 ? text.length : end };
};

// What puts a section tag into a text whose cursor is at `at`: `text` in place of what is from `from` to `to`. A tag opens
// the line with the cursor, or follows it if the cursor is at its end. A verse gets the next number.
studio.tagAt = (text, at, name) => {
  const { start, end } = studio.passage(text, at, at);
  const line = text.slice(start, end);
  const before = text.slice(0, start).split("\n").at(-2) ?? "";
  const after = text.slice(end + 1).split("\n")[0];
  const numbers = [...text.matchAll(/^\s*\[verse(?: (\d+))?/gim)].map(([, number]) => Number(number ?? 1));
  const tag = name === "Verse" ? `[Verse ${Math.max(0, ...numbers) + 1}]` : `[${name}]`;
  const gap = before.trim() ? "\n" : "";
  const open = after.trim() ? "" : "\n";
  if (!line.trim()) return { from: start, to: end, text: `${gap}${tag}${open}` };
  if (at > start && !text.slice(at, end).trim()) return { from: end, to: end, text: `\n\n${tag}${open}` };
  return { from: start, to: start, text: `${gap}${tag}\n` };
};

// The word at the cursor, or the last one before it in its line; "" if there is none.
studio.wordAt = (text, at) => {
  const { start, end } = studio.passage(text, at, at);
  const words = [...text.slice(start, end).matchAll(/[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*['’]?/gu)];
  const found = words.findLast(({ index }) => start + index <= at) ?? words[0];
  return found?.[0] ?? "";
};
