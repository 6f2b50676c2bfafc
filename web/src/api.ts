// The HTTP interface, as far as the page needs it. Ids are text: numbers above 2^53 are not exact here.

export interface RunSummary {
  name: string;
  data: string;
  images: number;
}

export interface Run extends RunSummary {
  version: string;
  dim: number;
  searched_by: string[];
  splits: Record<string, number>;
  labels: { name: string; images: number }[];
}

export interface Item {
  id: string;
  path: string;
  label: string | number | null;
  split: string;
}

export interface Neighbor extends Item {
  rank: number;
  score: number;
}

export interface Answer {
  run: string;
  version: string;
  neighbors: Neighbor[];
  vector: number[] | null;
}

export interface MapPoints {
  version: string;
  ids: string[];
  x: number[];
  y: number[];
  label: number[];
  split: number[];
  labels: string[];
  splits: string[];
}

export interface Among {
  k: number;
  splits: string[];
  labels: string[];
}

/** What the server says is wrong, in its words. */
export class Refused extends Error {}

async function answered(path: string, options: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) window.location.assign("/login");
  if (!answer.ok) throw new Refused(await reason(answer));
  return answer;
}

async function reason(answer: Response): Promise<string> {
  try {
    const told: unknown = await answer.json();
    if (typeof told === "object" && told !== null && "error" in told) return String(told.error);
  } catch {
    // not ours: a proxy's
  }
  return `The server answered ${answer.status}.`;
}

async function told<T>(path: string, options?: RequestInit): Promise<T> {
  return (await (await answered(path, options)).json()) as T;
}

function sent(method: string, body: unknown, signal?: AbortSignal): RequestInit {
  return {
    method,
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
    ...(signal ? { signal } : {}),
  };
}

function of(run: string): string {
  return `/api/runs/${encodeURIComponent(run)}`;
}

function words(among: Among): URLSearchParams {
  const found = new URLSearchParams({ k: String(among.k) });
  for (const split of among.splits) found.append("split", split);
  for (const label of among.labels) found.append("label", label);
  return found;
}

export const listRuns = (): Promise<RunSummary[]> => told("/api/runs");

export const describeRun = (run: string): Promise<Run> => told(of(run));

export const describeItem = (run: string, id: string): Promise<Item> => told(`${of(run)}/items/${id}`);

/** Images of some ids. */
export const itemsOf = (run: string, ids: string[], signal: AbortSignal): Promise<Item[]> =>
  told(`${of(run)}/items?${new URLSearchParams(ids.map((id) => ["id", id]))}`, { signal });

const pause = (seconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** The map, as soon as it is made. */
export async function mapOf(run: string, signal: AbortSignal): Promise<MapPoints> {
  for (;;) {
    const answer = await fetch(`${of(run)}/map`, { credentials: "same-origin", signal });
    if (answer.ok) return (await answer.json()) as MapPoints;
    if (answer.status !== 503) throw new Refused(await reason(answer));
    await pause(Number(answer.headers.get("Retry-After") ?? 2));
  }
}

/** Some images, the same ones every time. */
export const someItems = (run: string, among: Among, signal: AbortSignal): Promise<Item[]> =>
  told(`${of(run)}/items?${words(among)}`, { signal });

export const searchImage = (run: string, image: Blob, among: Among, signal: AbortSignal): Promise<Answer> =>
  told(`${of(run)}/search/image?${words(among)}`, {
    method: "POST",
    body: image,
    headers: { "Content-Type": "application/octet-stream" },
    signal,
  });

export const searchVector = (run: string, vector: number[], among: Among, signal: AbortSignal): Promise<Answer> =>
  told(`${of(run)}/search`, sent("POST", { vector, ...among }, signal));

export const searchLike = (
  run: string,
  like: string[],
  unlike: string[],
  among: Among,
  signal: AbortSignal,
): Promise<Answer> => told(`${of(run)}/search`, sent("POST", { like, unlike, ...among }, signal));

export const tagsOf = async (run: string): Promise<Record<string, string>> =>
  (await told<{ tags: Record<string, string> }>(`${of(run)}/tags`)).tags;

/** All tags, after some images were given one, or none. */
export const setTag = async (run: string, ids: string[], tag: string | null): Promise<Record<string, string>> =>
  (await told<{ tags: Record<string, string> }>(`${of(run)}/tags`, sent("PUT", { ids, tag }))).tags;

export const exportOf = (run: string): string => `${of(run)}/tags.csv`;

/** Where a picture of an image is: `version` lets the browser keep it. */
export function pictureOf(run: Pick<Run, "name" | "version">, id: string, kind: "thumbnail" | "image" = "thumbnail"): string {
  return `${of(run.name)}/items/${id}/${kind}?version=${run.version}`;
}
