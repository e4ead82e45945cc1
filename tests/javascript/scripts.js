// Runs scripts of static/ as theme.py inlines them, one after the other, and returns the object that they fill.
import { readFileSync } from "node:fs";

export const studioOf = (...names) => {
  const studio = {};
  for (const name of names) {
    const text = readFileSync(new URL(`../../static/${name}.js`, import.meta.url), "utf8");
    new Function("studio", text)(studio);
  }
  return studio;
};
