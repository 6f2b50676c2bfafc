// The grid of results. Arrow keys move in it, Enter asks again.

import { pictureOf, type Item, type Neighbor, type Run } from "./api";
import { byId, make, picture, toggle } from "./dom";
import type { State } from "./state";
import { given, tagOf } from "./tags";

export interface Choices {
  ask(id: string): void; // by this image alone
  like(id: string): void; // add to what is asked for, or take away
  unlike(id: string): void;
  tag(id: string): void;
}

export function showResults(run: Run, state: State, items: (Item | Neighbor)[], choices: Choices): void {
  byId("results").replaceChildren(...items.map((item) => card(run, state, item, choices)));
}

function card(run: Run, state: State, item: Item | Neighbor, choices: Choices): HTMLLIElement {
  const label = item.label === null ? "" : String(item.label);
  const score = "score" in item ? item.score.toFixed(3) : "";
  const open = make(
    "button",
    { type: "button", className: "open", title: item.path, onclick: () => choices.ask(item.id) },
    picture(pictureOf(run, item.id), ""),
    make("span", { className: "told" }, make("b", {}, label || item.split), make("span", {}, score)),
    make("span", { className: "where" }, label ? `${item.split} · ${end(item.path)}` : end(item.path)),
  );
  open.dataset.id = item.id;
  const more = make(
    "div",
    { className: "more" },
    toggle("+", state.like.includes(item.id), () => choices.like(item.id), `More like ${item.path}`),
    toggle("−", state.unlike.includes(item.id), () => choices.unlike(item.id), `Less like ${item.path}`),
  );
  const tag = tagOf(item.id);
  if (given()) {
    const has = tag === given();
    more.append(toggle("#", has, () => choices.tag(item.id), `Tag ${item.path} as ${given()}`));
  }
  return make("li", {}, open, more, tag ? make("span", { className: "tag" }, tag) : null);
}

/** The end of a path tells more than its beginning. */
const end = (path: string): string => path.split("/").slice(-2).join("/");

const STEPS: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1 };

/** Arrow keys go from one result to the next, and from row to row. */
export function moveByKeys(): void {
  byId("results").addEventListener("keydown", (event) => {
    const open = [...byId("results").querySelectorAll<HTMLElement>(".open")];
    const here = open.indexOf(document.activeElement as HTMLElement);
    const step = STEPS[event.key] ?? rows(open, here, event.key);
    if (here < 0 || !step) return;
    const next = open[here + step];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
}

/** As many results as a row has, up or down. */
function rows(open: HTMLElement[], here: number, key: string): number {
  const top = open[0]?.getBoundingClientRect().top;
  const width = open.findIndex((one) => one.getBoundingClientRect().top !== top);
  const wide = width < 0 ? open.length : width;
  return here < 0 ? 0 : key === "ArrowDown" ? wide : key === "ArrowUp" ? -wide : 0;
}
