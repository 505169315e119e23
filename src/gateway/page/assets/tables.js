"use strict";
// Tables that filter and sort. A table keeps its elements: a new reading changes cells, not rows.

Netmon.Table = class {
  // A column: { name, title, text(row), sort(row) for numbers, wide }. `rows` have a key by `key(row)`.
  constructor(place, { caption, columns, key, empty, limit = 50, order }) {
    Object.assign(this, { place, columns, key, empty, limit, rows: [], filter: "" });
    this.order = order ?? { column: null, down: true };
    this.shown = new Map();
    const { element } = Netmon;
    this.heads = columns.map((column) => {
      const button = element("button", { type: "button" }, column.title);
      button.addEventListener("click", () => this.sortBy(column));
      return element("th", { scope: "col", class: column.sort ? "number" : undefined }, button);
    });
    this.body = element("tbody");
    this.note = element("p", { class: "more", hidden: true });
    this.none = element("p", { class: "empty" }, empty);
    const table = element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    this.scroll = element("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, table);
    place.replaceChildren(this.scroll, this.note, this.none);
    this.draw();
  }

  sortBy(column) {
    const again = this.order.column === column.name;
    this.order = { column: column.name, down: again ? !this.order.down : Boolean(column.sort) };
    this.draw();
  }

  update(rows) { this.rows = rows ?? []; this.draw(); }

  filterBy(text) { this.filter = text.trim().toLowerCase(); this.draw(); }

  // The rows to show: those that have every word of the filter, in the order that was chosen.
  chosen() {
    const words = this.filter.split(/\s+/).filter(Boolean);
    const text = (row) => this.columns.map((column) => column.text(row)).join(" ").toLowerCase();
    const rows = this.rows.filter((row) => { const all = words.length ? text(row) : ""; return words.every((word) => all.includes(word)); });
    const column = this.columns.find((column) => column.name === this.order.column);
    if (!column) return rows;
    const sign = this.order.down ? -1 : 1;
    const value = column.sort ?? ((row) => column.text(row));
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    return rows.map((row, at) => ({ row, at, value: value(row) ?? "" }))
      .sort((a, b) => sign * compare(a.value, b.value) || a.at - b.at).map((entry) => entry.row);
  }

  draw() {
    const rows = this.chosen();
    for (const [at, head] of this.heads.entries()) {
      const sorted = this.columns[at].name === this.order.column;
      if (sorted) head.setAttribute("aria-sort", this.order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const kept = new Map();
    for (const row of rows.slice(0, this.limit)) {
      const name = this.key(row);
      let key = name;
      for (let n = 2; kept.has(key); n += 1) key = `${name} ${n}`;
      kept.set(key, this.fill(this.shown.get(key), row));
    }
    for (const [key, line] of this.shown) if (!kept.has(key)) line.remove();
    let at = this.body.firstChild;
    for (const line of kept.values()) {
      if (line === at) at = at.nextSibling;
      else this.body.insertBefore(line, at);
    }
    this.shown = kept;
    const cut = rows.length - kept.size;
    this.note.hidden = cut <= 0;
    this.note.textContent = `${cut} more rows: use the filter.`;
    this.scroll.hidden = kept.size === 0;
    this.none.hidden = kept.size !== 0;
    this.none.textContent = this.rows.length && !rows.length ? "No row matches the filter." : this.empty;
  }

  fill(line, row) {
    const { element } = Netmon;
    const fresh = !line;
    line ??= element("tr", { class: "fresh" }, ...this.columns.map((column, at) =>
      element(at ? "td" : "th", { scope: at ? undefined : "row", class: [column.sort && "number", column.wide && "wide"].filter(Boolean).join(" ") || undefined })));
    this.columns.forEach((column, at) => {
      const text = column.text(row) ?? "";
      if (fresh || line.children[at].textContent !== text) line.children[at].textContent = text;
    });
    return line;
  }
};

// The tables of the tools' answers: how each is made, and the rows that an answer has for it.
Netmon.tables = (() => {
  const { format, name } = Netmon;
  const number = (title, column, read, write) => ({ name: column, title, text: (row) => write(read(row)), sort: (row) => read(row) ?? -1 });
  const text = (title, column, read, wide) => ({ name: column, title, text: (row) => String(read(row) ?? ""), wide });
  const process = text("Process", "process", (row) => name.process(row.owner));
  const place = text("Unit or container", "place", (row) => name.place(row.owner));
  const remote = text("Remote", "remote", (row) => name.endpoint(row.remote));
  const id = (...read) => (row) => read.map((one) => JSON.stringify(one(row) ?? null)).join();
  return {
    top_traffic: {
      list: "rows", caption: "Who moved how much", empty: "No traffic.", order: { column: "rate", down: true },
      key: id((row) => row.owner, (row) => row.local, (row) => row.remote, (row) => row.port),
      columns: [process, place, remote,
        number("Received", "rx", (row) => row.rx_bits_per_second, format.bits), number("Sent", "tx", (row) => row.tx_bits_per_second, format.bits),
        number("Bytes", "rate", (row) => row.rx_bytes + row.tx_bytes, format.bytes), number("Share", "share", (row) => row.share * 100, format.percent),
        number("Sockets", "connections", (row) => row.connections, format.count)],
    },
    trace_connections: {
      list: "connections", caption: "Connections that opened, failed or closed", empty: "No connection opened, failed or closed.",
      key: id((row) => row.owner, (row) => row.local, (row) => row.remote, (row) => row.outcome),
      columns: [process, text("Outcome", "outcome", (row) => row.outcome), text("Direction", "direction", (row) => row.direction), remote,
        text("Local", "local", (row) => name.endpoint(row.local)), number("Connect time", "latency", (row) => row.connect_latency_us, format.time),
        number("Sent", "tx", (row) => row.tx_bytes, format.bytes), number("Received", "rx", (row) => row.rx_bytes, format.bytes), place],
    },
    trace_drops: {
      list: "drops", caption: "Packets that the kernel dropped", empty: "No packet was dropped.", order: { column: "count", down: true },
      key: id((row) => row.reason, (row) => row.location, (row) => row.source, (row) => row.destination, (row) => row.owner),
      columns: [text("Reason", "reason", (row) => row.reason), number("Packets", "count", (row) => row.count, format.count),
        text("From", "source", (row) => name.endpoint(row.source)), text("To", "destination", (row) => name.endpoint(row.destination)),
        text("Interface", "interface", (row) => row.interface), text("Process", "process", (row) => (row.owner?.process ? name.process(row.owner) : "")),
        text("In the kernel", "location", (row) => row.location), text("Meaning", "explanation", (row) => row.explanation, true)],
    },
    trace_dns: {
      list: "queries", caption: "DNS queries", empty: "No query.",
      key: id((row) => row.owner, (row) => row.name, (row) => row.type, (row) => row.server, (row) => row.rcode),
      columns: [text("Name", "name", (row) => row.name), text("Type", "type", (row) => row.type), process,
        text("Server", "server", (row) => name.endpoint(row.server)),
        text("Answer", "rcode", (row) => (row.answered ? row.rcode : row.pending ? "waiting" : "no answer")),
        number("Time", "latency", (row) => row.latency_us, format.time)],
    },
    profile_tcp: {
      list: "remotes", caption: "Round-trip times and retransmits", empty: "No TCP segment.",
      key: id((row) => row.remote, (row) => row.owners?.[0]?.pid),
      columns: [remote, text("Process", "process", (row) => (row.owners ?? []).map((one) => name.process(one)).slice(0, 3).join(", ")),
        number("RTT p50", "p50", (row) => row.rtt_us?.p50, format.time), number("RTT p99", "p99", (row) => row.rtt_us?.p99, format.time),
        number("Segments", "segments", (row) => row.segments_out, format.count), number("Retransmits", "retransmits", (row) => row.retransmits, format.count),
        text("Limited by", "limited", (row) => row.limited_by)],
    },
    snapshot_interfaces: {
      list: "interfaces", caption: "Links and what they carry", empty: "No interface.",
      key: id((row) => row.name, (row) => row.index),
      columns: [text("Interface", "name", (row) => row.name), text("State", "state", (row) => row.state),
        number("Received", "rx", (row) => row.rx?.bits_per_second, format.bits), number("Sent", "tx", (row) => row.tx?.bits_per_second, format.bits),
        number("Errors", "errors", (row) => (row.rx?.errors ?? 0) + (row.tx?.errors ?? 0), format.count),
        number("Dropped", "dropped", (row) => (row.rx?.dropped ?? 0) + (row.tx?.dropped ?? 0), format.count),
        text("Addresses", "addresses", (row) => (row.addresses ?? []).join(" "), true)],
    },
    changes: {
      list: "changes", caption: "What differs from the hour before", empty: "No change.",
      key: id((row) => row.subject, (row) => row.owner, (row) => row.remote, (row) => row.summary),
      columns: [text("Change", "summary", (row) => row.summary, true), text("Subject", "subject", (row) => row.subject),
        number("Before", "before", (row) => row.before, format.count), number("After", "after", (row) => row.after, format.count),
        number("Significance", "significance", (row) => row.significance, (value) => (value ?? 0).toFixed(1))],
    },
  };
})();

// A table for a tool's answer: { update(answer), filterBy(text) }.
Netmon.answerTable = (place, tool) => {
  const made = Netmon.tables[tool];
  const table = new Netmon.Table(place, made);
  return { update: (answer) => table.update(answer?.[made.list]), filterBy: (text) => table.filterBy(text) };
};
