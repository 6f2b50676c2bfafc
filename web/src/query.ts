// What is asked for, shown above the filters: an uploaded image, or indexed ones.

import { describeItem, pictureOf, type Run } from "./api";
import { byId, make, picture } from "./dom";
import type { State } from "./state";
import { read } from "./uploads";

export async function showQuery(run: Run, state: State, remove: (id: string) => void): Promise<void> {
  const figures = state.upload ? [uploaded(state.upload, remove)] : await indexed(run, state, remove);
  byId("query").replaceChildren(...figures);
}

function uploaded(key: string, remove: (id: string) => void): HTMLElement {
  const upload = read(key);
  const name = upload?.name ?? "an image";
  return figure(upload?.preview ?? "", name, "dropped here", () => remove(""), false);
}

async function indexed(run: Run, state: State, remove: (id: string) => void): Promise<HTMLElement[]> {
  const asked = [...state.like, ...state.unlike];
  const kind = asked.length === 1 ? "image" : "thumbnail";
  return await Promise.all(
    asked.map(async (id) => {
      const unlike = state.unlike.includes(id);
      try {
        const item = await describeItem(run.name, id);
        const label = item.label === null ? "" : `${item.label} · `;
        const told = `${unlike ? "not like this · " : ""}${label}${item.split}`;
        return figure(pictureOf(run, id, kind), item.path, told, () => remove(id), unlike);
      } catch {
        return figure("", id, "is not in this run", () => remove(id), unlike);
      }
    }),
  );
}

function figure(source: string, name: string, told: string, remove: () => void, unlike: boolean): HTMLElement {
  const button = make("button", { type: "button", className: "small", onclick: remove }, "Remove");
  button.setAttribute("aria-label", `Remove ${name} from the search`);
  return make(
    "figure",
    { className: unlike ? "unlike" : "" },
    source ? picture(source, name) : null,
    make("figcaption", {}, name, make("span", {}, told)),
    button,
  );
}
