"use strict";
// The view in a chat (MCP Apps, SEP-1865): the answer that the host shows, and more of the same through the host. It connects
// to nothing else.

Netmon.Bridge = class {
  constructor(host) {
    this.host = host;
    this.next = 1;
    this.waiting = new Map();
    this.handlers = new Map();
    window.addEventListener("message", (event) => { if (event.source === host) this.take(event.data); });
  }

  on(method, handler) { this.handlers.set(method, handler); }

  send(message) { this.host.postMessage({ jsonrpc: "2.0", ...message }, "*"); }

  notify(method, params = {}) { this.send({ method, params }); }

  request(method, params) {
    const id = this.next;
    this.next += 1;
    return new Promise((resolve, reject) => { this.waiting.set(id, { resolve, reject }); this.send({ id, method, params }); });
  }

  take(message) {
    if (message?.jsonrpc !== "2.0") return;
    if (message.method === undefined) {
      const waiting = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if (message.error) waiting?.reject(new Error(message.error.message ?? "refused"));
      else waiting?.resolve(message.result);
      return;
    }
    const handler = this.handlers.get(message.method);
    if (message.id === undefined) return void handler?.(message.params ?? {});
    if (handler) this.send({ id: message.id, result: handler(message.params ?? {}) ?? {} });
    else if (message.method === "ping") this.send({ id: message.id, result: {} });
    else this.send({ id: message.id, error: { code: -32601, message: "unknown method" } });
  }
};

(() => {
  const { Bridge, answerTable, charts, findings, format, show } = Netmon;
  const at = (id) => document.getElementById(id);
  const TOOLS = { live: "top_traffic", diagnose: "diagnose", changes: "changes" };
  const POINTS = 120;
  const view = document.documentElement.dataset.view;
  const tool = TOOLS[view] ?? "diagnose";
  const bridge = new Bridge(window.parent);
  const table = tool === "diagnose" ? null : answerTable(at("table"), tool);
  const chart = view === "live" ? new charts.Stacked(at("chart"), { label: "Traffic by process", write: format.bits }) : null;
  const state = { args: {}, points: [], live: false, busy: false, ended: false };

  const say = (text, trouble = false) => { at("state").textContent = text; at("state").classList.toggle("trouble", trouble); };

  function take(result) {
    const answer = result?.structuredContent;
    if (result?.isError || !answer) return say(result?.content?.[0]?.text ?? "No answer", true);
    const seconds = answer.measured?.window_ms;
    say(seconds ? `Measured for ${format.time(seconds * 1000)}` : answer.recorded ? "From the recording" : "Answer");
    at("limits").textContent = (answer.measured?.limits ?? []).map((limit) => limit.text).join(" · ") || answer.not_enough || "";
    if (table) table.update(answer);
    else show(at("findings"), JSON.stringify(answer), findings(answer));
    if (!chart) return;
    const values = {};
    for (const row of answer.rows ?? []) {
      const name = row.owner?.process ?? "unknown";
      values[name] = (values[name] ?? 0) + row.rx_bits_per_second + row.tx_bits_per_second;
    }
    state.points = [...state.points.slice(1 - POINTS), { at: Date.now(), values }];
    at("chart").hidden = state.points.length < 2;
    if (state.points.length > 1) chart.draw(state.points);
  }

  async function measure(args) {
    if (state.busy) return;
    state.busy = true;
    try { take(await bridge.request("tools/call", { name: tool, arguments: args })); } catch (error) { state.live = false; say(error.message, true); }
    state.busy = false;
  }

  async function follow() {
    while (state.live && !state.ended) {
      await measure({ ...state.args, duration_ms: 1000 });
      if (document.hidden) await new Promise((shown) => { document.addEventListener("visibilitychange", shown, { once: true }); });
    }
    at("live").setAttribute("aria-pressed", "false");
  }

  function context(given = {}) {
    if (given.theme) document.documentElement.dataset.theme = given.theme;
    const names = { "--color-background-primary": "--back", "--color-background-secondary": "--panel", "--color-text-primary": "--text",
      "--color-text-secondary": "--soft", "--color-border-primary": "--line", "--font-sans": "--font-sans" };
    for (const [theirs, ours] of Object.entries(names)) {
      const value = given.styles?.variables?.[theirs];
      if (value) document.documentElement.style.setProperty(ours, value);
    }
    chart?.again();
  }

  bridge.on("ui/notifications/tool-input", (params) => { state.args = params.arguments ?? {}; say("Measuring"); });
  bridge.on("ui/notifications/tool-result", take);
  bridge.on("ui/notifications/tool-cancelled", (params) => say(`Cancelled${params.reason ? `: ${params.reason}` : ""}`, true));
  bridge.on("ui/notifications/host-context-changed", context);
  bridge.on("ui/resource-teardown", () => { state.live = false; state.ended = true; });

  at("filter-form").addEventListener("submit", (event) => event.preventDefault());
  at("filter-form").hidden = false;
  at("filter").addEventListener("input", () => table?.filterBy(at("filter").value));
  at("filter").hidden = !table;
  document.querySelector("label[for=filter]").hidden = !table;
  at("chart").hidden = true;
  at("again").addEventListener("click", () => { say("Measuring"); measure(state.args); });
  at("live").addEventListener("click", () => {
    state.live = !state.live;
    at("live").setAttribute("aria-pressed", String(state.live));
    if (state.live) follow();
  });
  new ResizeObserver(() => {
    const { width, height } = document.documentElement.getBoundingClientRect();
    bridge.notify("ui/notifications/size-changed", { width: Math.ceil(width), height: Math.ceil(height) });
  }).observe(document.documentElement);

  bridge.request("ui/initialize", { protocolVersion: "2026-01-26", appInfo: { name: "netmon", version: "1" }, appCapabilities: { availableDisplayModes: ["inline", "fullscreen"] } })
    .then((result) => {
      context(result?.hostContext);
      at("live").hidden = view !== "live" || !result?.hostCapabilities?.serverTools;
      at("again").disabled = !result?.hostCapabilities?.serverTools;
      bridge.notify("ui/notifications/initialized");
    }, (error) => say(error.message, true));
})();
