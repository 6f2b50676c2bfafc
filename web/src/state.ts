// What is looked at, as the URL tells it: reload, back and forward, and a link give the same view.

export const COUNTS = [12, 24, 48, 96, 192];
const DEFAULT_COUNT = 24;

export interface State {
  run: string;
  view: "results" | "map";
  like: string[];
  unlike: string[];
  upload: string; // key of an uploaded image in this tab
  splits: string[];
  labels: string[];
  k: number;
}

const ids = (text: string | null): string[] => (text ?? "").split(",").filter((id) => /^[0-9]{1,19}$/.test(id));

export function fromUrl(search: string): State {
  const told = new URLSearchParams(search);
  const k = Number(told.get("k"));
  return {
    run: told.get("run") ?? "",
    view: told.get("view") === "map" ? "map" : "results",
    like: ids(told.get("like")),
    unlike: ids(told.get("unlike")),
    upload: told.get("upload") ?? "",
    splits: told.getAll("split"),
    labels: told.getAll("label"),
    k: COUNTS.includes(k) ? k : DEFAULT_COUNT,
  };
}

export function toUrl(state: State): string {
  const told = new URLSearchParams({ run: state.run });
  if (state.view !== "results") told.set("view", state.view);
  if (state.like.length) told.set("like", state.like.join(","));
  if (state.unlike.length) told.set("unlike", state.unlike.join(","));
  if (state.upload) told.set("upload", state.upload);
  for (const split of state.splits) told.append("split", split);
  for (const label of state.labels) told.append("label", label);
  if (state.k !== DEFAULT_COUNT) told.set("k", String(state.k));
  return `?${told}`;
}
