/** What was done here, as lines for a shell and for Python. */

/**
 * `work` says what: `base` is the service's address without a slash at its end; `file` the name of the input and
 * `kind` "picture", "npz" or "json"; `sample` the address of a sample; `sizes` those it was encoded by; `stem` begins
 * the names of results; `edited` and `anyFingerprint` as they say; `keyed` if there is a key.
 */
export function curlLines(work) {
  const lines = work.keyed ? ["# VIQ_KEY holds the key"] : [];
  const key = work.keyed ? ' -H "Authorization: Bearer $VIQ_KEY"' : "";
  const curl = (rest) => lines.push(`curl -sS${key} ${rest}`);
  const query = work.anyFingerprint ? "?any_fingerprint=1" : "";
  const decode = shell(`${work.base}/v1/decode${query}`);
  if (work.kind === "picture" && !work.edited) {
    if (work.sample) lines.push(`curl -sS ${shell(work.sample)} -o ${shell(work.file)}`);
    for (const size of work.sizes) {
      const codes = shell(`${named(work, size)}.json`);
      const image = shell(`image=@"${work.file.replace(/["\\]/g, "\\$&")}"`);
      curl(`-F ${image} ${shell(`${work.base}/v1/encode?size=${size}`)} -o ${codes}`);
      curl(`--json @${codes} ${decode} -o ${shell(`${named(work, size)}.png`)}`);
    }
    return lines.join("\n");
  }
  const input = work.edited ? `${work.stem}-edited.npz` : work.file;
  if (work.edited) lines.push(`# ${input} is what the button "Codes .npz" saves`);
  if (work.kind === "json" && !work.edited) curl(`--json @${shell(input)} ${decode} -o ${shell(`${work.stem}.png`)}`);
  else {
    const npz = `--data-binary @${shell(input)} -H 'Content-Type: application/x-npz'`;
    curl(`${npz} ${decode} -o ${shell(`${stemOf(input)}.png`)}`);
  }
  return lines.join("\n");
}

/** The same for the client of the package, `pip install viq-serving`. */
export function pythonLines(work) {
  const imports = work.keyed ? ["import os", ""] : [];
  const client = `Client(${JSON.stringify(work.base)}${work.keyed ? ', api_key=os.environ["VIQ_KEY"]' : ""})`;
  const any = work.anyFingerprint ? ", any_fingerprint=True" : "";
  if (work.kind === "picture" && !work.edited) {
    const body = work.sizes.flatMap((size) => [
      `    (codes,) = client.encode([${JSON.stringify(work.file)}], size=${JSON.stringify(size)})`,
      `    codes.to_npz(${JSON.stringify(`${named(work, size)}.npz`)})`,
      `    (picture,) = client.decode([codes])`,
      `    Image.fromarray(picture).save(${JSON.stringify(`${named(work, size)}.png`)})`,
    ]);
    const fetched = work.sample
      ? ["", `urlretrieve(${JSON.stringify(work.sample)}, ${JSON.stringify(work.file)})`]
      : [];
    const urllib = work.sample ? ["from urllib.request import urlretrieve", ""] : [];
    const others = ["from PIL import Image", "from viq_serving.client import Client"];
    return script([...imports, ...urllib, ...others, ...fetched], client, body);
  }
  const input = work.edited ? `${work.stem}-edited.npz` : work.file;
  const json = work.kind === "json" && !work.edited;
  const reading = json
    ? [
        `reply = json.loads(Path(${JSON.stringify(input)}).read_text())`,
        `first = reply["results"][0] if "results" in reply else reply`,
        `codes = Codes.from_dict({**reply.get("model", {}), **first})`,
      ]
    : [`codes = Codes.from_npz(${JSON.stringify(input)})`];
  const saved = JSON.stringify(json ? `${work.stem}.png` : `${stemOf(input)}.png`);
  const body = [`    (picture,) = client.decode([codes]${any})`, `    Image.fromarray(picture).save(${saved})`];
  const wanted = [
    "from PIL import Image",
    "from viq.codes import Codes",
    "from viq_serving.client import Client",
    "",
    ...reading,
  ];
  const modules = [
    ...(json ? ["import json"] : []),
    ...(work.keyed ? ["import os"] : []),
    ...(json ? ["from pathlib import Path"] : []),
  ];
  return script([...modules, ...(modules.length ? [""] : []), ...wanted], client, body);
}

/** A name without folder and suffix, fit for any file system. */
export function stemOf(name) {
  const stem = name
    .replace(/^.*[/\\]/, "")
    .replace(/\.[^.]*$/, "")
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/^[-.]+/, "");
  return stem || "picture";
}

function script(head, client, body) {
  return [...head, "", `with ${client} as client:`, ...body].join("\n");
}

function named(work, size) {
  return `${work.stem}-${size}`;
}

/** A word of a shell's command line. */
function shell(word) {
  return /^[A-Za-z0-9_./:=@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
