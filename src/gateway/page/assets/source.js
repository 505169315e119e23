"use strict";
// Where the page gets its data: this server, and nothing else. The token goes into the header of each request.

Netmon.Source = class {
  constructor() {
    // The tab's own: another tab, or the next visit, asks again.
    this.token = sessionStorage.getItem("netmon-token") ?? "";
  }

  remember(token) {
    this.token = token;
    if (token) sessionStorage.setItem("netmon-token", token);
    else sessionStorage.removeItem("netmon-token");
  }

  async fetch(path, { headers = {}, ...more } = {}) {
    const authorization = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const response = await fetch(path, { ...more, headers: { ...headers, ...authorization }, credentials: "omit", cache: "no-store", redirect: "error" });
    if (response.ok) return response;
    const reason = (await response.text()).trim();
    throw Object.assign(new Error(reason || `HTTP ${response.status}`), { status: response.status });
  }

  // The structured answer of a tool, over MCP.
  async call(name, args, signal) {
    const version = "2026-07-28";
    const _meta = { "io.modelcontextprotocol/protocolVersion": version, "io.modelcontextprotocol/clientCapabilities": {},
      "io.modelcontextprotocol/clientInfo": { name: "netmon page", version: "1" } };
    const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "tools/call", params: { name, arguments: args, _meta } });
    const headers = { "Content-Type": "application/json", Accept: "application/json, text/event-stream", "MCP-Protocol-Version": version,
      "Mcp-Method": "tools/call", "Mcp-Name": name };
    const reply = await (await this.fetch("/mcp", { method: "POST", headers, body, signal })).json();
    if (reply.error) throw new Error(reply.error.message);
    if (reply.result.isError) throw new Error(reply.result.content?.[0]?.text ?? "the tool failed");
    return reply.result.structuredContent;
  }

  // Minutes and findings of the recording.
  async timeline(from, to, signal) {
    return (await this.fetch(`/timeline/${Math.round(from)}/${Math.round(to)}`, { signal })).json();
  }

  // Events of /live until `signal` aborts. Throws when the server refuses or ends the stream.
  async live(take, signal) {
    const response = await this.fetch("/live", { headers: { Accept: "text/event-stream" }, signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the server closed the stream");
      text += value;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const lines = text.slice(0, end).split("\n");
        text = text.slice(end + 2);
        const field = (name) => lines.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2)).join("\n");
        const data = field("data");
        if (data) take(field("event") || "message", JSON.parse(data));
      }
    }
  }
};
