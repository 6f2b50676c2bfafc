// Builds the page: scripts and styles into one file each. The folder to write to is the first argument.
import { build } from "esbuild";
import { copyFile, mkdir, readFile, readdir, writeFile } from "node:fs/promises";

const out = process.argv[2] ?? "../pipeline/service/static";

await mkdir(out, { recursive: true });
const { metafile } = await build({
  entryPoints: { app: "src/main.ts", map: "src/map.ts" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none", // they are in licences.txt, whole
  metafile: true,
});
await Promise.all(["index.html", "login.html", "map.html", "app.css"].map((name) => copyFile(name, `${out}/${name}`)));

// What the bundle is made of beside our own, and its licences.
const packages = Object.keys(metafile.inputs).map((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//)?.[1]);
const told = [];
for (const name of [...new Set(packages)].filter(Boolean).sort()) {
  const { version, license } = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
  const file = (await readdir(`node_modules/${name}`)).find((one) => /^licen[cs]e/i.test(one));
  const text = file ? (await readFile(`node_modules/${name}/${file}`, "utf8")).trim() : `Licence: ${license}`;
  told.push(`${name} ${version}\n\n${text}\n`);
}
await writeFile(`${out}/licences.txt`, told.join("\n\n"));
