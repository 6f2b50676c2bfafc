// Tags that people give to images: kept in the run folder, exported as CSV.

import { exportOf, setTag, tagsOf, type Item, type Run } from "./api";
import { byId, count, make } from "./dom";

let tags: Record<string, string> = {};
let ofRun = "";
let name = ""; // of the tag that is being given

export const tagOf = (id: string): string => tags[id] ?? "";

/** The tag that a click gives; empty: none is being given. */
export const given = (): string => name;

/** The tags of a run, read once. */
export async function loadTags(run: Run): Promise<void> {
  if (ofRun === run.name) return;
  tags = await tagsOf(run.name);
  ofRun = run.name;
}

/** Give images the tag, or take it away where all have it. */
export async function tag(run: Run, ids: string[]): Promise<void> {
  const all = ids.every((id) => tags[id] === name);
  tags = await setTag(run.name, ids, all ? null : name);
}

export function showTags(run: Run, shown: Item[], redraw: () => void, tell: (error: unknown) => void): void {
  const input = byId<HTMLInputElement>("tag");
  input.onchange = () => {
    name = input.value.trim();
    redraw();
  };
  const all = byId<HTMLButtonElement>("tag-all");
  all.hidden = !name || !shown.length;
  all.textContent = `Tag all ${shown.length} shown`;
  all.onclick = () => void tag(run, shown.map(({ id }) => id)).then(redraw, tell);
  showCounts();
  const link = byId<HTMLAnchorElement>("export");
  link.href = exportOf(run.name);
  link.hidden = Object.keys(tags).length === 0;
}

function showCounts(): void {
  const counts = new Map<string, number>();
  for (const one of Object.values(tags)) counts.set(one, (counts.get(one) ?? 0) + 1);
  const used = [...counts].sort(([one], [other]) => one.localeCompare(other));
  byId("known-tags").replaceChildren(...used.map(([one]) => make("option", { value: one })));
  byId("tagged").replaceChildren(...used.map(([one, n]) => make("li", {}, make("b", {}, one), ` ${count(n)}`)));
}
