// Small helpers over the DOM. Text from elsewhere becomes text nodes only, never HTML.

type Child = Node | string | null;

/** An element with properties and children. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child): child is Node | string => child !== null));
  return element;
}

/** The element of an id that stands in the page. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

/** A button that is pressed or not. */
export function toggle(text: string, pressed: boolean, change: () => void, name = text): HTMLButtonElement {
  const button = make("button", { type: "button", onclick: change }, text);
  button.setAttribute("aria-pressed", String(pressed));
  if (name !== text) button.setAttribute("aria-label", name);
  return button;
}

/** A picture that is small is enlarged with its pixels seen, and one that cannot be shown says so. */
export function picture(source: string, alternative: string): HTMLImageElement {
  const image = make("img", { src: source, alt: alternative, loading: "lazy", decoding: "async" });
  image.onload = () => image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= 64);
  image.onerror = () => {
    image.classList.add("missing");
    image.alt = `${alternative} (cannot be shown)`;
  };
  return image;
}

/** A whole number with separators. */
export const count = (n: number): string => n.toLocaleString("en");
