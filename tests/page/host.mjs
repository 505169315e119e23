// A host of MCP Apps: it asks the server for the view as its specification says, shows it in a sandboxed frame with the
// default policy, and passes its calls on.
import { accessible, browser, check, nothingElse, open, port, token, url } from "./driver.mjs";

const version = "2026-07-28";
async function rpc(method, params, name) {
  const _meta = { "io.modelcontextprotocol/protocolVersion": version,
    "io.modelcontextprotocol/clientCapabilities": { extensions: { "io.modelcontextprotocol/ui": { mimeTypes: ["text/html;profile=mcp-app"] } } } };
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json", Accept: "application/json, text/event-stream",
    "MCP-Protocol-Version": version, "Mcp-Method": method, ...(name ? { "Mcp-Name": name } : {}) };
  const reply = await fetch(`${url}/mcp`, { method: "POST", headers, body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params: { ...params, _meta } }) });
  const message = await reply.json();
  check(message.result, `${method}: ${JSON.stringify(message)}`);
  return message.result;
}

const { tools } = await rpc("tools/list", {});
for (const [tool, args, wanted] of [["top_traffic", { duration_ms: 500 }, "Measured for"], ["diagnose", { duration_ms: 3000 }, "connection_refused"],
  ["changes", {}, "change"]]) {
  const uri = tools.find((one) => one.name === tool)._meta.ui.resourceUri;
  const { contents } = await rpc("resources/read", { uri }, uri);
  check(contents[0].mimeType === "text/html;profile=mcp-app", JSON.stringify(contents[0].mimeType));
  const page = await open();
  const calls = [];
  await page.exposeFunction("callTool", (params) => { calls.push(params); return rpc("tools/call", params, params.name); });
  await page.goto("about:blank");
  await page.evaluate(({ html, args }) => {
    const policy = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'none'";
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts");
    frame.style.cssText = "width: 900px; height: 700px";
    frame.title = "view";
    globalThis.heard = [];
    const send = (message) => frame.contentWindow.postMessage({ jsonrpc: "2.0", ...message }, "*");
    window.addEventListener("message", async ({ data, source }) => {
      if (source !== frame.contentWindow) return;
      globalThis.heard.push(data.method);
      if (data.method === "ui/initialize") {
        send({ id: data.id, result: { protocolVersion: "2026-01-26", hostInfo: { name: "test", version: "1" }, hostCapabilities: { serverTools: {} },
          hostContext: { theme: "dark", styles: { variables: { "--color-background-primary": "#101010" } } } } });
      } else if (data.method === "ui/notifications/initialized") {
        send({ method: "ui/notifications/tool-input", params: { arguments: args } });
        send({ method: "ui/notifications/tool-result", params: await globalThis.callTool({ name: globalThis.tool, arguments: args }) });
      } else if (data.method === "tools/call") {
        send({ id: data.id, result: await globalThis.callTool(data.params) });
      }
    });
    globalThis.tool = html.tool;
    globalThis.tearDown = () => send({ id: "down", method: "ui/resource-teardown", params: { reason: "test" } });
    frame.srcdoc = html.text.replace("<head>", `<head><meta http-equiv="Content-Security-Policy" content="${policy}">`);
    document.body.append(frame);
  }, { html: { text: contents[0].text, tool }, args });
  const frame = page.frameLocator("iframe");
  await frame.locator("body").getByText(wanted, { exact: false }).first().waitFor({ timeout: 60000 });
  const inner = page.frames().find((one) => one !== page.mainFrame());
  check(await inner.evaluate(() => document.documentElement.dataset.theme) === "dark", "the theme is the host's");
  await accessible(inner, tool);
  const before = calls.length;
  if (tool === "top_traffic") {
    await frame.getByRole("button", { name: "Live" }).click();
    await page.waitForFunction(() => globalThis.heard.filter((method) => method === "tools/call").length >= 3, null, { timeout: 60000 });
    await inner.waitForSelector("#chart canvas", { state: "visible" });
  } else {
    await frame.getByRole("button", { name: "Measure again" }).click();
    await page.waitForFunction(() => globalThis.heard.includes("tools/call"), null, { timeout: 60000 });
  }
  check(calls.slice(before).every((call) => call.name === tool), JSON.stringify(calls));
  check(await page.evaluate(() => globalThis.heard.includes("ui/notifications/size-changed")), "the view says how large it is");
  await page.evaluate(() => globalThis.tearDown());
  await page.close();
  console.log(`${tool}: ${calls.length} calls through the host, of the port ${port} and others`);
}
nothingElse((address) => address === "about:blank" || address === "about:srcdoc");
await browser.close();
