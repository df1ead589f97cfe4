// Custom resources as JSON on stdin; what is wrong with them on stdout, a JSON string a line. Run it as
// `node --input-type=module -e SOURCE` in the folder that package.json was installed in, where imports are then found. The validators know types, patterns and required fields but let unknown fields pass;
// TypeScript, which is shown each resource as a literal, refuses those.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";

const packages = {
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};
const resources = JSON.parse(readFileSync(0, "utf8"));
const say = (problem) => console.log(JSON.stringify(problem));
const lines = [];

for (const [index, resource] of resources.entries()) {
  const name = `${resource.kind}/${resource.metadata.name}`;
  const module = `@kubernetes-models/${packages[resource.apiVersion.split("/")[0]]}/${resource.apiVersion}/${resource.kind}`;
  const { [resource.kind]: Model } = await import(module);
  try {
    new Model(resource).validate();
  } catch (error) {
    say(`${name}: ${error.message}`);
  }
  lines.push(`import type { I${resource.kind} as T${index} } from "${module}";`);
  lines.push(`export const r${index}: T${index} = ${JSON.stringify(resource)}; // ${name}`);
}

mkdirSync("checked", { recursive: true });
writeFileSync("checked/resources.ts", lines.join("\n"));
const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022", "--types", ""];
try {
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", ...options, "checked/resources.ts"]);
} catch (error) {
  const told = `${error.stdout ?? error}`.trim();
  for (const line of told.split("\n").filter((line) => !line.startsWith(" "))) {
    const row = Number(/^checked\/resources\.ts\((\d+),/.exec(line)?.[1] ?? 0);
    say(row ? `${lines[row - 1].split(" // ").at(-1)}: ${line.split(": ").slice(1).join(": ")}` : line);
  }
}
