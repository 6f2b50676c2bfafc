// The page of `rayssl serve`: a state in the URL, and everything else drawn from it.

import * as api from "./api";
import { hideMap, showMap } from "./atlas";
import { takeImages } from "./ask";
import { byId, count, make, toggle } from "./dom";
import { showFilters } from "./filters";
import { showQuery } from "./query";
import { moveByKeys, showResults } from "./results";
import { fromUrl, toUrl, type State } from "./state";
import { loadTags, showTags, tag } from "./tags";
import { fileOf, keep, read, remember } from "./uploads";

let state: State;
let run: api.Run;
let asking = new AbortController();
let chosen: string[] = []; // by the lasso; not in the URL, which cannot hold them

const NOTHING: Partial<State> = { like: [], unlike: [], upload: "" };

function change(changed: Partial<State>): void {
  chosen = [];
  state = { ...state, ...changed };
  history.pushState(null, "", toUrl(state));
  void show();
}

const toggled = (list: string[], id: string): string[] =>
  list.includes(id) ? list.filter((one) => one !== id) : [...list, id];

const choices = {
  ask: (id: string) => {
    change({ ...NOTHING, like: [id] });
    window.scrollTo({ top: 0 });
    byId("results").focus({ preventScroll: true });
  },
  like: (id: string) =>
    change({ upload: "", like: toggled(state.like, id), unlike: state.unlike.filter((one) => one !== id) }),
  unlike: (id: string) =>
    change({ upload: "", unlike: toggled(state.unlike, id), like: state.like.filter((one) => one !== id) }),
  tag: (id: string) => void tag(run, [id]).then(showFound, fault),
};

let found: (api.Item | api.Neighbor)[] = [];

/** The results, and the tags, which change without a search. */
function showFound(): void {
  const focused = (document.activeElement as HTMLElement | null)?.getAttribute("aria-label");
  showResults(run, state, found, choices);
  showTags(run, found, showFound, fault);
  if (focused) document.querySelector<HTMLElement>(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

function remove(id: string): void {
  change(id ? { like: state.like.filter((one) => one !== id), unlike: state.unlike.filter((one) => one !== id) } : NOTHING);
}

/** What the lasso holds, as results. */
function choose(ids: string[]): void {
  if (ids.length === 0 && chosen.length === 0) return;
  chosen = ids;
  void show();
}

async function find(signal: AbortSignal): Promise<{ title: string; items: (api.Item | api.Neighbor)[] }> {
  const among = { k: state.k, splits: state.splits, labels: state.labels };
  if (chosen.length) {
    const items = await api.itemsOf(run.name, chosen.slice(0, state.k), signal);
    return { title: `${count(items.length)} of ${count(chosen.length)} images in the lasso`, items };
  }
  if (state.upload) {
    const { neighbors } = await byUpload(among, signal);
    return { title: `${count(neighbors.length)} images like ${read(state.upload)?.name ?? "yours"}`, items: neighbors };
  }
  if (state.like.length) {
    const { neighbors } = await api.searchLike(run.name, state.like, state.unlike, among, signal);
    return { title: `${count(neighbors.length)} images like ${state.like.length > 1 ? "these" : "this one"}`, items: neighbors };
  }
  const items = await api.someItems(run.name, among, signal);
  return { title: state.unlike.length ? "Choose an image that results are to be like" : "Some images to begin with", items };
}

/** By the vector where this tab knows it, so that a reload asks for no file. */
async function byUpload(among: api.Among, signal: AbortSignal): Promise<api.Answer> {
  const where = `${run.name}/${run.version}`;
  const known = read(state.upload)?.vectors[where];
  if (known) return api.searchVector(run.name, known, among, signal);
  const answer = await api.searchImage(run.name, fileOf(state.upload), among, signal);
  if (answer.vector) remember(state.upload, where, answer.vector);
  return answer;
}

async function show(): Promise<void> {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  tell("");
  document.body.classList.add("busy");
  try {
    if (run?.name !== state.run) run = await api.describeRun(state.run);
    showRun();
    showFilters(run, state, change);
    const [{ title, items }] = await Promise.all([find(signal), showQuery(run, state, remove), loadTags(run)]);
    if (signal.aborted) return;
    byId("title").textContent = title;
    document.title = `${title} · ${run.name}`;
    found = items;
    showFound();
    showViews();
    document.body.classList.remove("busy"); // a map may take a while
    const marked = chosen.length ? null : state.upload || state.like.length ? found : [];
    if (state.view === "map") await showMap(run, marked, { open: choices.ask, choose }, signal);
    else hideMap();
  } catch (error) {
    if (signal.aborted) return;
    await showQuery(run, state, remove);
    byId("title").textContent = "";
    byId("results").replaceChildren();
    fault(error);
  } finally {
    if (!signal.aborted) document.body.classList.remove("busy");
  }
}

function fault(error: unknown): void {
  tell(error instanceof Error ? error.message : String(error));
}

function tell(problem: string): void {
  const place = byId("problem");
  place.textContent = problem;
  place.hidden = problem === "";
}

function showViews(): void {
  const names: [State["view"], string][] = [["results", "Results"], ["map", "Map"]];
  byId("views").replaceChildren(
    ...names.map(([view, name]) => toggle(name, state.view === view, () => change({ view }))),
  );
}

function showRun(): void {
  byId("about").textContent = `${count(run.images)} images of ${run.data}, searched by ${run.searched_by.join(" + ")}`;
  byId<HTMLSelectElement>("run").value = run.name;
}

/** On a phone the results would lie far below the settings. */
function foldOnPhones(): void {
  const narrow = matchMedia("(max-width: 46rem)");
  const settings = byId<HTMLDetailsElement>("settings");
  const fold = (): void => void (settings.open = !narrow.matches);
  narrow.addEventListener("change", fold);
  fold();
}

async function begin(): Promise<void> {
  const runs = await api.listRuns();
  state = fromUrl(location.search);
  if (!runs.some(({ name }) => name === state.run)) state = { ...state, run: runs[0]?.name ?? "" };
  const chooser = byId<HTMLSelectElement>("run");
  chooser.replaceChildren(...runs.map(({ name }) => make("option", { value: name }, name)));
  chooser.onchange = () => change({ run: chooser.value, splits: [], labels: [] });
  takeImages(async (image, name) => change({ ...NOTHING, upload: await keep(image, name) }));
  window.addEventListener("popstate", () => {
    state = { ...fromUrl(location.search), run: new URLSearchParams(location.search).get("run") ?? state.run };
    void show();
  });
  moveByKeys();
  foldOnPhones();
  history.replaceState(null, "", toUrl(state));
  await show();
}

begin().catch(fault);
