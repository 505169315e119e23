"use strict";
// Numbers as text, and elements. All text from outside becomes a text node here, never markup.

const Netmon = {};

// An element with these attributes and children. A child that is not an element is text.
Netmon.element = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== undefined && child !== null).map((child) =>
    child instanceof Node ? child : document.createTextNode(String(child))));
  return element;
};

Netmon.format = (() => {
  // At most three significant digits.
  const digits = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1).replace(/\.0$/, "") : value.toFixed(2).replace(/\.?0+$/, ""));
  const scaled = (value, base, units) => {
    let unit = 0;
    while (value >= base && unit < units.length - 1) { value /= base; unit += 1; }
    return `${digits(value)} ${units[unit]}`;
  };
  const known = (write) => (value) => (value === undefined || value === null ? "" : write(Number(value)));
  return {
    bits: known((value) => scaled(value, 1000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])),
    bytes: known((value) => scaled(value, 1000, ["B", "kB", "MB", "GB", "TB"])),
    // Microseconds.
    time: known((value) => scaled(value, 1000, value >= 1e6 ? ["µs", "ms", "s"] : ["µs", "ms"])),
    count: known((value) => value.toLocaleString("en-US")),
    rate: known((value) => `${digits(value)}/s`),
    percent: known((value) => `${digits(value)} %`),
    clock: (ms) => new Date(ms).toLocaleTimeString(undefined, { hour12: false }),
    moment: (ms) => new Date(ms).toLocaleString(undefined, { hour12: false }),
  };
})();

// Names for what answers contain.
Netmon.name = (() => {
  const endpoint = (end) => {
    if (!end || (end.address === undefined && end.port === undefined)) return "";
    const address = end.address ?? "*";
    if (end.port === undefined || end.port === null) return address;
    return address.includes(":") ? `[${address}]:${end.port}` : `${address}:${end.port}`;
  };
  const process = (owner) => {
    if (!owner || !owner.process) return "unknown";
    return owner.pid ? `${owner.process}[${owner.pid}]` : owner.process;
  };
  const place = (owner) => owner?.container || owner?.unit || "";
  return { endpoint, process, place };
})();

// The findings of an answer of diagnose.
Netmon.findings = (answer) => {
  const { element } = Netmon;
  const list = answer.findings ?? [];
  const checks = answer.checks ?? {};
  const faults = list.filter((finding) => finding.severity !== "info").length;
  let headline;
  if (answer.healthy === true) headline = `No fault seen (${checks.judged} of ${checks.total} checks)`;
  else if (answer.healthy === false) headline = faults === 1 ? "1 fault" : `${faults} faults`;
  else if (checks.total) headline = `No fault seen by the ${checks.judged} of ${checks.total} checks that could run`;
  else headline = list.length ? `${list.length} findings` : "No finding yet";
  const tone = answer.healthy === true ? "good" : answer.healthy === false ? "bad" : "";
  const items = list.map((finding) => {
    const evidence = Object.entries(finding.evidence ?? {});
    const details = evidence.length && element("details", {}, element("summary", {}, "Evidence"),
      element("dl", {}, ...evidence.flatMap(([key, value]) => [element("dt", {}, key),
        element("dd", {}, typeof value === "object" ? JSON.stringify(value) : value)])));
    return element("li", { class: finding.severity, "data-code": finding.code },
      element("span", { class: "severity" }, finding.severity), " ", element("strong", {}, finding.code), " ", finding.summary ?? "",
      finding.next_step && element("p", { class: "next" }, `Next: ${finding.next_step}`), details || undefined);
  });
  return [element("p", { class: `headline ${tone}` }, headline), element("ul", { class: "findings" }, ...items)];
};

// Replaces the children of an element, but only if something differs: focus and open details stay as they are.
Netmon.show = (place, key, children) => {
  if (place.dataset.shown === key) return;
  place.dataset.shown = key;
  place.replaceChildren(...children);
};
