-- The recording of netmon-mcp, schema 1. Times are microseconds since 1970-01-01T00:00:00Z, by the clock of then.
-- docs/recording.md explains every column.

-- One row: what wrote this file, and what it could not write.
CREATE TABLE meta (
  schema INTEGER NOT NULL,       -- of this file; a reader refuses a larger one
  created_us INTEGER NOT NULL,
  written_us INTEGER NOT NULL,   -- the last write, so that a reader knows whether something records
  interval_ms INTEGER NOT NULL,  -- between two windows, as set
  lost_windows INTEGER NOT NULL  -- that could not be written (disk full, file not writable)
) STRICT;

-- A period without a gap in it: from one reading of the daemon to the next, or a minute of such readings.
CREATE TABLE windows (
  id INTEGER PRIMARY KEY,
  begin_us INTEGER NOT NULL,
  end_us INTEGER NOT NULL,
  length_us INTEGER NOT NULL,    -- as the kernel's clock measured it; the clock on the wall may have been set
  boot TEXT NOT NULL,            -- /proc/sys/kernel/random/boot_id
  host TEXT NOT NULL,
  version TEXT NOT NULL,         -- of netmon-mcp
  merged INTEGER NOT NULL        -- 1: the sum of the readings of a minute
) STRICT;
CREATE INDEX windows_by_end ON windows (end_us);

-- Only the newest windows are not merged yet.
CREATE INDEX windows_not_merged ON windows (id) WHERE merged = 0;

-- The questions of diagnose: sockets, connections, tcp, profile, drops, dns, traffic, …; and what was judged.
CREATE TABLE parts (
  id INTEGER PRIMARY KEY,
  part TEXT NOT NULL,
  tool TEXT NOT NULL,            -- the tool that answers it
  UNIQUE (part, tool)
) STRICT;

-- What a tool saw in a window: its sample, in JSON, compressed with zstd.
CREATE TABLE samples (
  window INTEGER NOT NULL REFERENCES windows (id) ON DELETE CASCADE,
  part_id INTEGER NOT NULL REFERENCES parts (id),
  dictionary INTEGER,            -- the id of the dictionary that it was compressed with
  bytes INTEGER NOT NULL,        -- of the JSON
  sample BLOB NOT NULL,
  PRIMARY KEY (window, part_id)
) STRICT;

-- Raw-content dictionaries of zstd: the beginning of an earlier sample of the same part.
CREATE TABLE dictionaries (
  id INTEGER PRIMARY KEY,
  window INTEGER NOT NULL,       -- the id of the first window that uses it; at most 360 windows do
  text TEXT NOT NULL
) STRICT;

-- Findings of diagnose above info, from the first window that has one to the last.
CREATE TABLE findings (
  id INTEGER PRIMARY KEY,
  identity TEXT NOT NULL,        -- the same finding, whatever its figures are
  code TEXT NOT NULL,
  severity TEXT NOT NULL,        -- the worst
  begin_us INTEGER NOT NULL,
  end_us INTEGER NOT NULL,       -- of the last window that has it
  closed INTEGER NOT NULL,       -- 1: three windows did not have it
  windows INTEGER NOT NULL,      -- that have it
  host TEXT NOT NULL,
  finding TEXT NOT NULL          -- JSON, as it was when it was worst
) STRICT;
CREATE INDEX findings_by_end ON findings (end_us);

-- Why nothing was recorded.
CREATE TABLE gaps (
  begin_us INTEGER NOT NULL,
  end_us INTEGER NOT NULL,
  reason TEXT NOT NULL
) STRICT;
CREATE INDEX gaps_by_end ON gaps (end_us);

-- Figures of each minute, for comparisons.
CREATE TABLE series (
  minute_us INTEGER NOT NULL,    -- its beginning
  subject TEXT NOT NULL,         -- traffic, connections, failures, rtt, retransmits, drops, dns, listeners, interfaces, findings
  name TEXT NOT NULL,            -- of what: process:curl, remote:192.0.2.1, …
  value REAL NOT NULL,           -- a sum: of bytes, of counts, of microseconds times count
  count INTEGER NOT NULL,        -- rtt, dns: samples; retransmits: segments; else: windows
  PRIMARY KEY (minute_us, subject, name)
) STRICT, WITHOUT ROWID;
