// The frame that draws the map. It gets numbers from the page around it, and gives back which points are meant.

import createScatterplot from "regl-scatterplot";

import type { FromFrame, Points, ToFrame } from "./frame";

const canvas = document.getElementById("canvas") as HTMLCanvasElement;
const tell = (message: FromFrame): void => parent.postMessage(message, location.origin);

const plot = createScatterplot({
  canvas,
  width: "auto",
  height: "auto",
  pointSize: 4,
  pointSizeSelected: 3,
  opacity: 0.85,
  lassoOnLongPress: true,
  lassoInitiator: false,
  spatialIndexUseWorker: false, // it would be made from a text
});

const MARGIN = 0.95; // of the plot that is drawn in
let lassoing = false; // since the button was pressed

async function draw(points: Points): Promise<void> {
  plot.set({
    backgroundColor: points.dark ? [31 / 255, 34 / 255, 37 / 255, 1] : [1, 1, 1, 1],
    colorBy: "category",
    pointColor: points.colours,
    pointColorActive: points.dark ? "#ffffff" : "#000000",
    pointColorHover: points.dark ? "#ffffff" : "#000000",
    lassoColor: points.dark ? "#7cb7f0" : "#0b62b4",
    pointSize: Math.max(2, Math.min(6, 700 / Math.sqrt(points.x.length))),
  });
  const inner = (values: number[]): number[] => values.map((value) => MARGIN * value);
  await plot.draw({ x: inner(points.x), y: inner(points.y), category: points.colour });
  tell({ kind: "drawn" });
}

plot.subscribe("pointOver", (point: number) => {
  const [x, y] = plot.getScreenPosition(point) ?? [0, 0];
  tell({ kind: "over", point, x, y });
});
plot.subscribe("pointOut", () => tell({ kind: "out" }));
plot.subscribe("lassoStart", () => (lassoing = true));
// Where a lasso ends near its beginning, the browser tells of a click, too: it is none.
addEventListener("mousedown", () => (lassoing = false), true);
addEventListener("click", (event) => lassoing && event.stopPropagation(), true);
plot.subscribe("select", ({ points }: { points: number[] }) => {
  const [only] = points;
  if (!lassoing && points.length === 1 && only !== undefined) tell({ kind: "open", point: only });
  else tell({ kind: "chosen", points });
});
plot.subscribe("deselect", () => tell({ kind: "chosen", points: [] }));

addEventListener("message", (event: MessageEvent<ToFrame>) => {
  if (event.source !== parent || event.origin !== location.origin) return;
  const message = event.data;
  if (message.kind === "points") void draw(message);
  else if (message.kind === "lasso") plot.set({ mouseMode: message.on ? "lasso" : "panZoom" });
  else if (message.kind === "whole") void plot.zoomToOrigin({ transition: true });
  else if (message.points.length) plot.select(message.points, { preventEvent: true });
  else plot.deselect({ preventEvent: true });
});

tell({ kind: "ready" });
