// Follows a model that is not final: asks one JSON address every 2 s, and takes the page's new content when it changed.
import { dress } from "./site.js";

const PAUSE = 2000;
const ROUNDS_BETWEEN_REFRESHES = 5; // output of a running step changes nothing in the JSON
let etag = "";
let round = 0;

async function refresh() {
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!response.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").querySelector("main");
  const main = document.querySelector("main");
  const opened = [...main.querySelectorAll("details[id][open]")].map((details) => details.id);
  const focused = document.activeElement?.closest("main [id]")?.id;
  for (const id of opened) fresh.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
  dress(fresh);
  main.replaceChildren(...fresh.childNodes);
  main.toggleAttribute("data-live", fresh.hasAttribute("data-live"));
  if (focused) document.getElementById(focused)?.focus();
}

async function follow(address) {
  round += 1;
  const response = await fetch(address, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" }).catch(() => null);
  if (response && ![200, 304].includes(response.status)) return;
  const changed = response?.status === 200 && etag && response.headers.get("ETag") !== etag;
  etag = response?.headers.get("ETag") ?? etag;
  if (changed || round % ROUNDS_BETWEEN_REFRESHES === 0) await refresh().catch(() => null);
  if (document.querySelector("main[data-live]")) setTimeout(follow, PAUSE, address);
}

follow(document.querySelector("main[data-live]").dataset.live);
