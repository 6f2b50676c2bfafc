// The map in the page: the frame that draws it, what the pointer rests on, the legend, the lasso.

import { mapOf, pictureOf, type Item, type MapPoints, type Run } from "./api";
import { byId, make, picture, toggle } from "./dom";
import type { FromFrame, ToFrame } from "./frame";

// Okabe and Ito's colours, which people with any colour vision tell apart, then tints between them.
const COLOURS = [
  "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#7a5195", "#8c6d31", "#637939",
  "#ad494a", "#17becf", "#bcbd22", "#7f7f7f", "#e377c2", "#3182bd", "#fd8d3c", "#74c476", "#9e9ac8", "#969696",
];
const NONE = "#8a8f94"; // without a label

export interface Wishes {
  open(id: string): void;
  choose(ids: string[]): void;
}

let points: MapPoints | null = null;
let shownRun = "";
let position = new Map<string, number>();
let by: "label" | "split" = "label";
let lasso = false;
let selected: string[] = [];
let frame: HTMLIFrameElement | null = null;
let ready: Promise<void> = Promise.resolve();

const tell = (message: ToFrame): void => frame?.contentWindow?.postMessage(message, location.origin);

/** Show the map of a run with what was found selected; null leaves the selection to the lasso. */
export async function showMap(run: Run, found: Item[] | null, wishes: Wishes, signal: AbortSignal): Promise<void> {
  byId("map").hidden = false;
  if (!frame) ready = begin(run, wishes);
  const wanted = `${run.name}/${run.version}`;
  if (wanted !== shownRun) {
    note("The map is being made, once. It takes a minute or two for some thousand images.");
    points = await mapOf(run.name, signal);
    shownRun = wanted;
    position = new Map(points.ids.map((id, place) => [id, place]));
    if (!points.labels.length) by = "split";
    await ready;
    draw(run);
  }
  note("");
  if (found) select(found.map(({ id }) => id));
}

export function hideMap(): void {
  byId("map").hidden = true;
}

function begin(run: Run, wishes: Wishes): Promise<void> {
  frame = make("iframe", { src: "/map", title: "Map of the images", className: "frame" });
  const tip = make("div", { className: "tip", hidden: true });
  tip.id = "tip";
  byId("map").replaceChildren(
    make("div", { className: "bar", id: "map-bar" }),
    make("div", { className: "plot" }, frame, tip),
    make("ul", { className: "legend", id: "legend" }),
    make("p", { className: "quiet", id: "map-note" }),
  );
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(run));
  return new Promise((resolve) => {
    addEventListener("message", (event: MessageEvent<FromFrame>) => {
      if (event.source !== frame?.contentWindow || event.origin !== location.origin) return;
      if (event.data.kind === "ready") resolve();
      else heard(event.data, tip, wishes);
    });
  });
}

function heard(message: FromFrame, tip: HTMLElement, wishes: Wishes): void {
  if (message.kind === "out") tip.hidden = true;
  else if (message.kind === "over") showTip(tip, message.point, message.x, message.y);
  else if (message.kind === "open") wishes.open(points?.ids[message.point] ?? "");
  else if (message.kind === "chosen") {
    selected = message.points.map((point) => points?.ids[point] ?? "");
    wishes.choose(selected);
  } else if (message.kind === "drawn") {
    byId("map").dataset.drawn = shownRun;
    select(selected);
  }
}

function showTip(tip: HTMLElement, point: number, x: number, y: number): void {
  const id = points?.ids[point];
  if (!points || !id) return;
  const [name, version] = shownRun.split(/\/(?=[^/]*$)/);
  const label = points.labels[points.label[point] ?? -1] ?? "";
  const split = points.splits[points.split[point] ?? -1] ?? "";
  const source = pictureOf({ name: name ?? "", version: version ?? "" }, id);
  tip.replaceChildren(picture(source, ""), [label, split].filter(Boolean).join(" · "));
  tip.hidden = false;
  const plot = tip.parentElement?.getBoundingClientRect();
  const left = x + 14 + tip.offsetWidth > (plot?.width ?? 0) ? x - 14 - tip.offsetWidth : x + 14;
  const top = Math.min(y + 14, (plot?.height ?? 0) - tip.offsetHeight - 4);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function draw(run: Run): void {
  if (!points) return;
  showBar(run);
  const names = by === "label" ? points.labels : points.splits;
  const used = names.map((_, place) => COLOURS[place % COLOURS.length] ?? NONE);
  const colour = (by === "label" ? points.label : points.split).map((one) => (one < 0 ? names.length : one));
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  tell({ kind: "points", x: points.x, y: points.y.map((y) => -y), colour, colours: [...used, NONE], dark });
  showLegend(names, used);
}

function showBar(run: Run): void {
  const change = (to: "label" | "split") => () => {
    by = to;
    draw(run);
  };
  const mode = toggle("Lasso", lasso, () => {
    lasso = !lasso;
    tell({ kind: "lasso", on: lasso });
    showBar(run);
  });
  byId("map-bar").replaceChildren(
    make("span", { className: "quiet" }, "Colours by"),
    ...(points?.labels.length ? [toggle("label", by === "label", change("label"))] : []),
    toggle("split", by === "split", change("split")),
    mode,
    make("button", { type: "button", onclick: () => tell({ kind: "whole" }) }, "Whole map"),
    make("span", { className: "quiet" }, "Scroll to zoom, drag to move; lasso: hold shift, or the button."),
  );
}

function showLegend(names: string[], colours: string[]): void {
  const shown = names.slice(0, COLOURS.length);
  const items = shown.map((name, place) => {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    dot.setAttribute("viewBox", "0 0 2 2");
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [key, value] of Object.entries({ cx: "1", cy: "1", r: "1", fill: colours[place] ?? NONE }))
      circle.setAttribute(key, value);
    dot.append(circle);
    const entry = make("li", {});
    entry.append(dot, name);
    return entry;
  });
  const rest = names.length - shown.length;
  byId("legend").replaceChildren(...items, ...(rest > 0 ? [make("li", {}, `and ${rest} more, in the same colours`)] : []));
}

function select(ids: string[]): void {
  selected = ids;
  const found = ids.map((id) => position.get(id)).filter((place): place is number => place !== undefined);
  tell({ kind: "select", points: found });
}

function note(text: string): void {
  byId("map-note").textContent = text;
}
