// The name, version and license of every package that is in the bundle, as text.

import { readFileSync, readdirSync } from "node:fs";

const { inputs } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const directories = new Set();
for (const path of Object.keys(inputs)) {
  const found = /^(node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(path);
  if (found) directories.add(found[1]);
}
const packages = [...directories].sort().map((directory) => {
  const { name, version, license } = JSON.parse(readFileSync(`${directory}/package.json`, "utf8"));
  const file = readdirSync(directory).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no license text`);
  return { name, version, license, text: readFileSync(`${directory}/${file}`, "utf8").trim() };
});
const texts = new Map(packages.map(({ text }) => [text, packages.filter((one) => one.text === text)]));
console.log("codemirror.js is a bundle of these packages:\n");
for (const { name, version, license } of packages) console.log(`  ${name} ${version} (${license})`);
for (const [text, those] of texts) {
  console.log(`\n${"-".repeat(80)}\n${those.map(({ name }) => name).join(", ")}\n\n${text}`);
}
