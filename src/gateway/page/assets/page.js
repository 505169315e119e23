"use strict";
// The page: live while nobody chose a period; else the same tables about that period, from the recording.

(() => {
  const { Source, answerTable, charts, element, findings, format, show } = Netmon;
  const at = (id) => document.getElementById(id);
  const POINTS = 300;
  const RETRY_MS = [1000, 2000, 5000, 10000, 30000];
  const HIDDEN_MS = 60000; // a page that nobody sees costs the host nothing after this
  const GROUPS = { process: "processes", unit: "units", container: "containers", remote: "remotes", connection: "flows" };
  const LIVE = { trace_connections: "connections", trace_drops: "drops", trace_dns: "dns", profile_tcp: "tcp", snapshot_interfaces: "interfaces" };

  const source = new Source();
  const state = { period: null, paused: false, group: "process", heat: "rtt", span: 0, points: [], heatPoints: [], replyPoints: [], timing: false, screen: null, recorded: null, overview: null };
  let stream = null; // aborts the stream
  let asking = null; // aborts the questions about a period

  const failed = (answer) => ({ ...answer, connections: answer?.connections && [...answer.connections].sort((a, b) => isFailed(b) - isFailed(a)) });
  const isFailed = (row) => Number(!["connecting", "established"].includes(row.outcome));

  const tables = {
    top_traffic: answerTable(at("traffic-table"), "top_traffic"), trace_connections: answerTable(at("connections-table"), "trace_connections"),
    trace_drops: answerTable(at("drops-table"), "trace_drops"), trace_dns: answerTable(at("dns-table"), "trace_dns"),
    profile_tcp: answerTable(at("remotes-table"), "profile_tcp"), snapshot_interfaces: answerTable(at("interfaces-table"), "snapshot_interfaces"),
    changes: answerTable(at("changes-table"), "changes"),
  };
  const put = (tool, answer) => tables[tool].update(tool === "trace_connections" ? failed(answer) : answer);
  const plots = {
    traffic: new charts.Stacked(at("traffic-chart"), { label: "Traffic by process", write: format.bits, onRange: choose }),
    timeline: new charts.Timeline(at("timeline"), { label: "Timeline of findings, drops and failed connections", write: format.count, onRange: choose, whole: true }),
    heat: new charts.Heat(at("heat"), { label: "Response times by remote" }),
  };

  // Choices with a label: radio buttons, so that arrow keys work.
  function choice(place, legend, name, options, chosen, change) {
    const inputs = options.map(([value, title]) => {
      const input = element("input", { type: "radio", name, value, checked: value === chosen });
      input.addEventListener("change", () => change(value));
      return element("label", { class: "key" }, input, title);
    });
    place.append(element("fieldset", {}, element("legend", {}, legend), ...inputs));
  }
  choice(at("heat-choice"), "Response time", "heat", [["rtt", "Round-trip time"], ["first_byte", "Time to first byte"]], "rtt", (value) => { state.heat = value; drawHeat(); timeReplies(); });
  const groups = element("div");
  at("traffic-table").before(groups);
  choice(groups, "Group traffic by", "group", Object.keys(GROUPS).map((name) => [name, name]), "process", (value) => {
    state.group = value;
    if (state.period) ask(state.period); else drawTables();
  });
  const spans = element("div");
  at("timeline").before(spans);
  choice(spans, "Timeline shows", "span", [["0", "this page"], ["3600000", "1 hour"], ["21600000", "6 hours"], ["86400000", "1 day"], ["604800000", "7 days"]], "0",
    (value) => { state.span = Number(value); state.overview = null; drawTimeline(); refreshOverview(); });

  function say(text, trouble = false) {
    const place = at("state");
    if (place.textContent !== text) place.textContent = text;
    place.classList.toggle("trouble", trouble);
  }

  // ---- live ----

  function take(event, data) {
    if (event === "history") {
      state.points = data.slice(-POINTS);
    } else if (event === "screen") {
      if (data.point && data.point.at_ms !== state.points.at(-1)?.at_ms) state.points = [...state.points.slice(1 - POINTS), data.point];
      const remotes = data.answers.tcp?.remotes ?? [];
      state.heatPoints = [...state.heatPoints.slice(1 - POINTS), { at: data.at_ms, rows: remotes.map((row) =>
        [Netmon.name.endpoint(row.remote), row.rtt_us?.p50]) }];
      state.screen = data;
      if (!state.period && !state.paused) draw();
    }
  }

  function draw() {
    const { screen } = state;
    if (!screen) return;
    if (screen.state === "starting") say("Starting: netmond loads its programs");
    else if (screen.state === "lost") say(`netmond does not answer: ${screen.reason ?? ""}`, true);
    else say(`Live, ${format.clock(screen.at_ms)}`);
    at("limits").textContent = Object.entries(screen.errors ?? {}).map(([name, reason]) => `${name}: ${reason}`).join(" · ");
    drawTables();
    drawTraffic(state.points.map(live));
    drawTimeline();
    drawHeat();
  }

  const live = (point) => {
    const values = Object.fromEntries(point.processes.map((share) => [share.name, share.bits_per_second]));
    const rest = point.rx_bits_per_second + point.tx_bits_per_second - Object.values(values).reduce((sum, value) => sum + value, 0);
    return { at: point.at_ms, values: { ...values, other: Math.max(0, rest) }, drops: point.drops, failures: point.failures };
  };

  function drawTables() {
    const { answers, findings: episodes } = state.screen ?? { answers: {}, findings: [] };
    put("top_traffic", answers[GROUPS[state.group]]);
    for (const [tool, name] of Object.entries(LIVE)) put(tool, answers[name]);
    tables.changes.update({});
    const diagnosis = { ...answers.diagnosis, findings: episodes.filter((episode) => episode.active).map((episode) => episode.finding) };
    show(at("findings"), JSON.stringify([diagnosis.healthy, diagnosis.checks, diagnosis.findings]), findings(diagnosis));
  }

  const drawTraffic = (points) => plots.traffic.draw(points.map((point) => ({ at: point.at, values: point.values })));

  function drawTimeline() {
    const recorded = state.period ? state.recorded : state.span && state.overview;
    if (recorded) {
      plots.timeline.draw({ points: recorded.points.map((point) => ({ at: point.at_ms, drops: point.drops, failures: point.failures })),
        findings: recorded.findings.map((finding) => ({ ...finding, from: finding.from_ms, to: finding.to_ms })) });
    } else if (!state.period) {
      const episodes = state.screen?.findings ?? [];
      plots.timeline.draw({ points: state.points.map(live), findings: episodes.map((episode) => ({ code: episode.code, severity: episode.severity,
        from: episode.since_ms, to: episode.active ? state.screen.at_ms : episode.last_ms })) });
    }
  }

  function drawHeat() {
    const points = state.period ? (state.recorded?.points ?? []).map((point) => ({ at: point.at_ms, values: state.heat === "rtt" ? point.rtt_us : {} }))
      : (state.heat === "rtt" ? state.heatPoints : state.replyPoints).map((point) => ({ at: point.at,
        values: Object.fromEntries(point.rows.filter(([, value]) => value != null)) }));
    plots.heat.draw(points);
  }

  // Times to the first byte are not on the screen that all pages share: this page asks for them while they are chosen.
  async function timeReplies() {
    if (state.timing) return;
    state.timing = true;
    while (state.heat === "first_byte" && !state.period && !state.paused && !document.hidden) {
      try {
        const answer = await source.call("trace_latency", { duration_ms: 2000, limit: 200 });
        const named = (row) => (row.side === "client" ? `to ${Netmon.name.endpoint(row.remote)}` : `${row.owner?.process ?? ""} at ${Netmon.name.endpoint(row.local)}`);
        const rows = (answer.stages ?? []).filter((row) => row.stage === "request_to_reply").map((row) => [named(row), row.us?.p50]);
        state.replyPoints = [...state.replyPoints.slice(1 - POINTS), { at: Date.now(), rows }];
        drawHeat();
      } catch (error) { say(`Time to first byte: ${error.message}`, true); break; }
    }
    state.timing = false;
  }

  async function refreshOverview() {
    if (!state.span || state.period) return;
    const span = state.span;
    try {
      const overview = await source.timeline(Date.now() - span, Date.now());
      if (span !== state.span) return;
      state.overview = overview;
      at("timeline-hint").textContent = overview.reason ?? "Findings, drops and failed connections. Drag across a chart to see a recorded period.";
      drawTimeline();
    } catch (error) { at("timeline-hint").textContent = error.message; }
  }
  setInterval(() => { if (!document.hidden) refreshOverview(); }, 30000);

  async function follow() {
    for (let tries = 0; ; tries += 1) {
      stream = new AbortController();
      const { signal } = stream;
      try {
        await source.live((event, data) => { tries = 0; take(event, data); }, signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401) return login(source.token ? "This token is not valid." : "");
        say(`No connection: ${error.message}`, true);
      }
      await new Promise((done) => { setTimeout(done, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]); });
      if (signal.aborted) return;
    }
  }

  function start() { at("login").hidden = true; say("Connecting"); follow(); }

  function login(reason) {
    source.remember("");
    at("login-error").textContent = reason;
    at("login").hidden = false;
    say("A token is required");
    at("token").focus();
  }

  at("login").addEventListener("submit", (event) => {
    event.preventDefault();
    source.remember(at("token").value.trim());
    at("token").value = "";
    start();
  });

  let hidden = null;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(() => { stream?.abort(); say("Stopped while the page was hidden"); }, HIDDEN_MS);
    else if (stream?.signal.aborted) start();
    if (!document.hidden) timeReplies();
  });

  // ---- a period of the past ----

  const local = (ms) => new Date(ms - new Date(ms).getTimezoneOffset() * 60000).toISOString().slice(0, 19);

  function choose(from, to) {
    [from, to] = [Math.floor(from / 1000) * 1000, Math.ceil(Math.min(to, Date.now()) / 1000) * 1000];
    if (!(to > from)) return say("The period is empty: choose an earlier begin", true);
    at("from").value = local(from);
    at("to").value = local(to);
    history.replaceState(null, "", `#from=${from}&to=${to}`);
    ask({ from, to });
  }

  async function ask(period) {
    asking?.abort();
    asking = new AbortController();
    const { signal } = asking;
    state.period = period;
    at("live").disabled = false;
    const [since, until] = [period.from, period.to].map((ms) => new Date(ms).toISOString());
    const title = `${format.moment(period.from)} to ${format.moment(period.to)}`;
    say(`Reading the recording: ${title}`);
    const errors = [];
    const once = async (name, work) => {
      try { await work(); } catch (error) { if (signal.aborted) throw error; errors.push(`${name}: ${error.message}`); }
    };
    try {
      await once("timeline", async () => {
        state.recorded = await source.timeline(period.from, period.to, signal);
        drawTraffic(state.recorded.points.map((point) => ({ at: point.at_ms, values: point.traffic })));
        drawTimeline();
        drawHeat();
      });
      await once("diagnose", async () => {
        const answer = await source.call("diagnose", { since, until }, signal);
        show(at("findings"), JSON.stringify(answer), findings(answer));
      });
      const period_args = { since, until, limit: 200 };
      await once("top_traffic", async () => put("top_traffic", await source.call("top_traffic", { ...period_args, group_by: state.group }, signal)));
      for (const tool of Object.keys(LIVE)) await once(tool, async () => put(tool, await source.call(tool, period_args, signal)));
      await once("changes", async () => put("changes", await source.call("changes", { since, until }, signal)));
    } catch { return; } // another period was chosen
    at("limits").textContent = errors.join(" · ");
    say(errors.length ? `Incomplete: ${errors[0]}` : `Recorded, ${title}`, errors.length > 0);
  }

  at("range").addEventListener("submit", (event) => {
    event.preventDefault();
    const [from, to] = [at("from").value, at("to").value].map((text) => new Date(text).getTime());
    if (Number.isNaN(from) || Number.isNaN(to)) return say("Choose when the period begins and ends", true);
    choose(from, to);
  });
  at("live").addEventListener("click", () => {
    asking?.abort();
    Object.assign(state, { period: null, recorded: null });
    at("live").disabled = true;
    history.replaceState(null, "", location.pathname);
    say("Live");
    draw();
    refreshOverview();
    timeReplies();
    at("pause").focus();
  });
  at("pause").addEventListener("click", () => {
    state.paused = !state.paused;
    at("pause").setAttribute("aria-pressed", String(state.paused));
    if (state.paused) say("Paused"); else if (!state.period) draw();
    timeReplies();
  });
  at("filter-form").addEventListener("submit", (event) => event.preventDefault());
  at("filter").addEventListener("input", () => { for (const table of Object.values(tables)) table.filterBy(at("filter").value); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !(event.target instanceof HTMLInputElement)) { event.preventDefault(); at("filter").focus(); }
    if (event.key === "Escape" && event.target === at("filter")) { at("filter").value = ""; at("filter").dispatchEvent(new Event("input")); }
  });

  at("host").textContent = location.host;
  if (document.documentElement.dataset.auth === "token" && !source.token) login("");
  else start();
  const chosen = new URLSearchParams(location.hash.slice(1));
  if (chosen.has("from") && chosen.has("to")) choose(Number(chosen.get("from")), Number(chosen.get("to")));
})();
