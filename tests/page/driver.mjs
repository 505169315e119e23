// What both drivers share: a browser whose requests and console are watched, and checks.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [packages, chromiumPath, url, token, port] = process.argv.slice(2);
export { url, token, port };
const require = createRequire(join(packages, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const check = (condition, text) => { if (!condition) throw new Error(text); };
const troubles = [];
const requests = [];

export const browser = await chromium.launch({ executablePath: chromiumPath,
  args: ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--js-flags=--expose-gc"] });

export async function open(options = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 1400 }, ...options });
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) troubles.push(message.text()); });
  page.on("pageerror", (error) => troubles.push(error.stack));
  page.on("request", (request) => requests.push(request.url()));
  return page;
}

export async function signIn(page) {
  await page.goto(`${url}/`);
  await page.fill("#token", token);
  await page.press("#token", "Enter");
  await page.waitForFunction(() => document.querySelector("#state").textContent.startsWith("Live,"), null, { timeout: 60000 });
}

// Violations of WCAG 2.2 AA and best practices, as axe sees them.
export async function accessible(target, where) {
  await target.evaluate(axe); // not a script of the page, which its policy would forbid
  const { violations } = await target.evaluate(() => globalThis.axe.run());
  const told = violations.map((one) => `${one.id}: ${one.nodes.map((node) => `${node.target} ${node.failureSummary}`).join("; ")}`);
  check(told.length === 0, `${where}: ${told.join("\n")}`);
}

export function nothingElse(allowed) {
  check(troubles.length === 0, `console: ${troubles.join("\n")}`);
  const foreign = requests.filter((address) => !allowed(address));
  check(foreign.length === 0, `requests elsewhere: ${foreign}`);
}
