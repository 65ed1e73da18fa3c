// The service worker of the browser edition: keeps all files that SHA256SUMS lists, so that the page works offline.

const LIST = "./SHA256SUMS";
const PREFIX = `brain_dist ${self.registration.scope} `; // other pages of this server, and other editions, have caches, too

async function keepAll() {
  const list = await (await fetch(LIST, { cache: "no-store" })).text();
  const files = list.trim().split("\n").map((line) => line.slice(66));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(list));
  const version = PREFIX + Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const cache = await caches.open(version);
  await cache.addAll(["./", LIST, ...files].map((file) => new Request(file, { cache: "no-store" })));
  for (const name of await caches.keys()) if (name.startsWith(PREFIX) && name !== version) await caches.delete(name);
  await self.skipWaiting();
}

self.addEventListener("install", (event) => event.waitUntil(keepAll()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  event.respondWith(caches.match(event.request, { ignoreSearch: true }).then((kept) => kept || fetch(event.request)));
});
