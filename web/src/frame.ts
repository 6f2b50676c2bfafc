// What the page and the frame that draws the map tell each other: numbers only.

export interface Points {
  kind: "points";
  x: number[];
  y: number[];
  colour: number[]; // position in colours
  colours: string[];
  dark: boolean;
}

export type ToFrame =
  | Points
  | { kind: "select"; points: number[] }
  | { kind: "lasso"; on: boolean }
  | { kind: "whole" };

export type FromFrame =
  | { kind: "ready" }
  | { kind: "drawn" }
  | { kind: "over"; point: number; x: number; y: number }
  | { kind: "out" }
  | { kind: "open"; point: number } // a click on a point
  | { kind: "chosen"; points: number[] }; // by the lasso
