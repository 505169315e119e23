-- Windows that follow each other within an hour of the clock.
CREATE TABLE IF NOT EXISTS hours (
  id INTEGER PRIMARY KEY,
  first INTEGER NOT NULL,        -- the id of its first window
  last INTEGER NOT NULL,         -- the id of its last window
  begin_us INTEGER NOT NULL,
  end_us INTEGER NOT NULL,
  length_us INTEGER NOT NULL,    -- of all its windows
  version TEXT NOT NULL          -- of netmon-mcp
) STRICT;
CREATE INDEX IF NOT EXISTS hours_by_end ON hours (end_us);
CREATE INDEX IF NOT EXISTS hours_by_last ON hours (last);

-- What a tool saw in all windows of such an hour, so that a question about a day need not read each of them.
CREATE TABLE IF NOT EXISTS sums (
  hour INTEGER NOT NULL REFERENCES hours (id) ON DELETE CASCADE,
  part_id INTEGER NOT NULL REFERENCES parts (id),
  bytes INTEGER NOT NULL,        -- of the JSON
  sample BLOB NOT NULL,          -- compressed with zstd
  PRIMARY KEY (hour, part_id)
) STRICT;
