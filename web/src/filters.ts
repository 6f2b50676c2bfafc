// Which images are looked among: splits, labels, how many.

import type { Run } from "./api";
import { byId, count, make, toggle } from "./dom";
import { COUNTS, type State } from "./state";

type Change = (change: Partial<State>) => void;

const without = (list: string[], one: string): string[] => list.filter((other) => other !== one);
const flipped = (list: string[], one: string): string[] => (list.includes(one) ? without(list, one) : [...list, one]);

export function showFilters(run: Run, state: State, change: Change): void {
  showSplits(run, state, change);
  showLabels(run, state, change);
  const k = byId<HTMLSelectElement>("k");
  k.replaceChildren(...COUNTS.map((n) => make("option", { value: String(n), selected: n === state.k }, String(n))));
  k.onchange = () => change({ k: Number(k.value) });
}

function showSplits(run: Run, state: State, change: Change): void {
  const buttons = Object.entries(run.splits).map(([name, images]) =>
    toggle(`${name} ${count(images)}`, state.splits.includes(name), () =>
      change({ splits: flipped(state.splits, name) }),
    ),
  );
  byId("splits").replaceChildren(make("legend", {}, "Splits"), ...buttons);
}

function showLabels(run: Run, state: State, change: Change): void {
  byId("labels").hidden = run.labels.length === 0;
  byId("known-labels").replaceChildren(
    ...run.labels.map(({ name, images }) => make("option", { value: name }, `${count(images)} images`)),
  );
  const input = byId<HTMLInputElement>("label");
  input.onchange = () => {
    const found = run.labels.find(({ name }) => name === input.value.trim());
    input.setAttribute("aria-invalid", String(!found && input.value !== ""));
    if (!found) return;
    input.value = "";
    if (!state.labels.includes(found.name)) change({ labels: [...state.labels, found.name] });
  };
  byId("chosen-labels").replaceChildren(
    ...state.labels.map((name) => {
      const button = make("button", { type: "button", onclick: () => change({ labels: without(state.labels, name) }) });
      button.append(`${name} ×`);
      button.setAttribute("aria-label", `Remove the label ${name}`);
      return make("li", {}, button);
    }),
  );
}
