// Three ways to give an image: choose a file, drop it anywhere, paste it.

import { byId } from "./dom";

export function takeImages(take: (image: Blob, name: string) => void): void {
  const chooser = byId<HTMLInputElement>("file");
  chooser.addEventListener("change", () => {
    const file = chooser.files?.[0];
    if (file) take(file, file.name);
    chooser.value = ""; // the same file may be chosen again
  });
  takeDropped(take);
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) take(file, file.name || "pasted image");
  });
}

function takeDropped(take: (image: Blob, name: string) => void): void {
  const veil = byId("veil");
  let inside = 0; // elements that the pointer has entered and not left
  const show = (change: number): void => {
    inside = Math.max(0, inside + change);
    veil.hidden = inside === 0;
  };
  document.addEventListener("dragenter", (event) => {
    if (event.dataTransfer?.types.includes("Files")) show(1);
  });
  document.addEventListener("dragleave", () => show(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    show(-inside);
    const file = event.dataTransfer?.files[0];
    if (file) take(file, file.name);
  });
}
