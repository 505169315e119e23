// The page: token, live tables, filter, sorting, a dragged period, keyboard, accessibility, an hour of screens.
import { accessible, browser, check, nothingElse, open, port, signIn, token, url } from "./driver.mjs";

const page = await open();
await signIn(page);
const remote = `10.77.0.2:${port}`;
const refused = `#connections-table tbody tr:has-text("${remote}"):has-text("refused")`;
await page.waitForSelector(refused, { timeout: 60000 });
await page.waitForSelector('#findings li[data-code="connection_refused"]', { timeout: 60000 });
console.log("the fault is shown live");

const shown = (table) => page.$$eval(`#${table} tbody tr`, (rows) => rows.map((row) => row.textContent));
await page.press("body", "/");
check(await page.evaluate(() => document.activeElement.id) === "filter", "/ does not reach the filter");
await page.keyboard.type(`refused ${port}`);
const filtered = await shown("connections-table");
check(filtered.length > 0 && filtered.every((row) => row.includes(remote) && row.includes("refused")), `filtered: ${filtered}`);
check((await shown("interfaces-table")).length === 0, "the filter is for every table");
await page.keyboard.press("Escape");
check((await shown("interfaces-table")).length > 0, "Escape clears the filter");

const heads = page.locator("#interfaces-table thead th");
await heads.first().getByRole("button").press("Enter");
check(await heads.first().getAttribute("aria-sort") === "ascending", "a head sorts by keyboard");
const names = await page.$$eval("#interfaces-table tbody th", (cells) => cells.map((cell) => cell.textContent));
check(names.join() === [...names].sort((a, b) => a.localeCompare(b)).join(), `sorted: ${names}`);

await page.getByRole("radio", { name: "Time to first byte" }).check();
const asking = setInterval(() => { fetch(`${url}/healthz`).then((reply) => reply.text(), () => {}); }, 100); // short requests, which fit into a window
await page.waitForFunction(() => /Latest: to 127|Latest: netmon-mcp|Latest: .*at 127/.test(document.querySelector("#heat canvas").getAttribute("aria-label")), null, { timeout: 60000 });
clearInterval(asking);
await page.getByRole("radio", { name: "Round-trip time" }).check();
console.log("times to the first byte are shown");

for (const scheme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
  await accessible(page, scheme);
}
console.log("accessible in light and dark");

// Drags across the last seconds, which were recorded.
await page.waitForFunction(() => /Latest/.test(document.querySelector("#traffic-chart [role=img]").getAttribute("aria-label")));
await page.waitForTimeout(4000); // some points to drag across
await page.locator("#traffic-chart .u-over").scrollIntoViewIfNeeded();
const box = await page.locator("#traffic-chart .u-over").boundingBox();
await page.mouse.move(box.x + box.width * 0.05, box.y + box.height / 2);
await page.mouse.down();
await page.mouse.move(box.x + box.width * 0.8, box.y + box.height / 2, { steps: 5 });
await page.mouse.up();
await page.waitForFunction(() => /^(Recorded|Incomplete)/.test(document.querySelector("#state").textContent), null, { timeout: 60000 });
const state = await page.textContent("#state");
check(state.startsWith("Recorded"), `${state} ${await page.textContent("#limits")}`);
await page.waitForSelector(refused);
await page.waitForSelector('#findings li[data-code="connection_refused"]');
check(page.url().includes("#from="), "the period is in the address");
await accessible(page, "recorded");
console.log("a dragged period is answered from the recording");

// The same address in a new tab shows the same period; the token is asked for again.
await page.click("#live");
await page.waitForFunction(() => document.querySelector("#state").textContent.startsWith("Live"));

// An hour of screens: neither elements nor memory may grow.
const long = await open();
const screens = [];
const response = await fetch(`${url}/live`, { headers: { Authorization: `Bearer ${token}` } });
const decoder = new TextDecoder();
for await (const chunk of response.body) {
  screens.push(decoder.decode(chunk, { stream: true }));
  if (screens.join("").split("event: screen").length > 4) break;
}
const screen = JSON.parse(screens.join("").split("\n").filter((line) => line.startsWith("data: {")).at(-2).slice(6));
await long.addInitScript(({ token, screen }) => {
  sessionStorage.setItem("netmon-token", token);
  const real = globalThis.fetch;
  globalThis.fetch = (path, init) => {
    if (path !== "/live") return real(path, init);
    const steps = 3600;
    const { readable, writable } = new TransformStream();
    const writer = writable.getWriter();
    const encoder = new TextEncoder();
    (async () => {
      for (let n = 1; n <= steps; n += 1) {
        const at_ms = screen.at_ms + n * 1000;
        const rows = screen.answers.processes.rows.map((row, at) => ({ ...row, owner: { ...row.owner, pid: n * 100 + at } }));
        const next = { ...screen, number: n, at_ms, point: { ...screen.point, at_ms }, answers: { ...screen.answers, processes: { ...screen.answers.processes, rows } } };
        await writer.write(encoder.encode(`event: screen\ndata: ${JSON.stringify(next)}\n\n`));
        globalThis.played = n;
        if (n % 10 === 0) await new Promise((done) => { setTimeout(done); });
      }
    })();
    return Promise.resolve(new Response(readable));
  };
}, { token, screen });
await long.goto(`${url}/`);
const size = async (n) => {
  await long.waitForFunction((n) => globalThis.played >= n, n, { timeout: 300000 });
  return long.evaluate(() => { globalThis.gc(); globalThis.gc(); return { nodes: document.querySelectorAll("*").length, bytes: performance.memory.usedJSHeapSize }; });
};
const [early, late] = [await size(600), await size(3600)];
console.log(`after 10 minutes ${JSON.stringify(early)}, after an hour ${JSON.stringify(late)}`);
check(late.nodes <= early.nodes + 50, "elements grow");
check(late.bytes < early.bytes + 3e6, "memory grows");

nothingElse((address) => address.startsWith(`${url}/`));
await browser.close();
