//! The pages: which tables each has, and where they are.

use ratatui::layout::{Constraint, Layout, Rect};

use super::tables::{self, Table};

/// A page, by its number.
pub struct Page {
    pub key: char,
    pub title: &'static str,
    /// For a narrow terminal.
    pub short: &'static str,
    /// The tool behind it; its page in the book says what the columns mean.
    pub tool: &'static str,
    /// Boxes; of each the tables that `v` changes between.
    pub boxes: &'static [&'static [&'static Table]],
}

const TRAFFIC: &[&Table] = &[&tables::PROCESSES, &tables::UNITS, &tables::CONTAINERS, &tables::REMOTES, &tables::FLOWS];

pub static PAGES: [Page; 10] = [
    Page {
        key: '1',
        title: "Overview",
        short: "Main",
        tool: "",
        boxes: &[
            &[&tables::INTERFACES],
            &[&tables::FINDINGS],
            TRAFFIC,
            &[&tables::FAILURES, &tables::CONNECTIONS],
            &[&tables::REASONS, &tables::DROPS],
            &[&tables::DNS],
        ],
    },
    Page { key: '2', title: "Traffic", short: "Traffic", tool: "top_traffic", boxes: &[TRAFFIC] },
    Page {
        key: '3',
        title: "Connections",
        short: "Conns",
        tool: "trace_connections",
        boxes: &[&[&tables::CONNECTIONS, &tables::FAILURES]],
    },
    Page {
        key: '4',
        title: "Sockets",
        short: "Socks",
        tool: "snapshot_sockets",
        boxes: &[&[&tables::SOCKETS, &tables::LISTENERS]],
    },
    Page { key: '5', title: "TCP", short: "TCP", tool: "profile_tcp", boxes: &[&[&tables::TCP, &tables::RESETS]] },
    Page {
        key: '6',
        title: "Drops",
        short: "Drops",
        tool: "trace_drops",
        boxes: &[&[&tables::DROPS, &tables::REASONS]],
    },
    Page { key: '7', title: "DNS", short: "DNS", tool: "trace_dns", boxes: &[&[&tables::DNS]] },
    Page {
        key: '8',
        title: "Interfaces",
        short: "Links",
        tool: "snapshot_interfaces",
        boxes: &[&[&tables::INTERFACES]],
    },
    Page { key: '9', title: "Findings", short: "Findings", tool: "diagnose", boxes: &[&[&tables::FINDINGS]] },
    Page {
        key: '0',
        title: "Latency",
        short: "Delay",
        tool: "trace_latency",
        boxes: &[&[&tables::LATENCY, &tables::THROTTLED]],
    },
];

/// The page whose tool the feed does not ask: it is asked while the page is open.
pub const LATENCY: usize = 9;

/// The smallest terminal.
pub const COLUMNS: u16 = 80;
pub const ROWS: u16 = 24;
/// A terminal with as many rows has room for a graph on the overview.
const ROWS_WITH_GRAPH: u16 = 30;
const GRAPH: u16 = 5;

/// Where everything is.
pub struct Places {
    pub tabs: Rect,
    pub status: Rect,
    pub graph: Option<Rect>,
    pub body: Rect,
    /// In the order of the page's boxes.
    pub boxes: Vec<Rect>,
    pub footer: Rect,
}

/// The places of a page on a terminal of this size.
pub fn places(page: usize, area: Rect) -> Places {
    let [tabs, status, body, footer] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(area);
    let (graph, boxes) = if page == 0 { overview(body, area.height) } else { (None, vec![body]) };
    Places { tabs, status, graph, body, boxes, footer }
}

fn overview(body: Rect, rows: u16) -> (Option<Rect>, Vec<Rect>) {
    let graph = if rows >= ROWS_WITH_GRAPH { GRAPH } else { 0 };
    let [plot, top, middle, bottom] =
        Layout::vertical([Constraint::Length(graph), Constraint::Fill(3), Constraint::Fill(4), Constraint::Fill(4)])
            .areas(body);
    let columns = |area: Rect, shares: &[u16]| -> Vec<Rect> {
        Layout::horizontal(shares.iter().map(|share| Constraint::Fill(*share))).spacing(1).split(area).to_vec()
    };
    let mut boxes = columns(top, &[3, 2]);
    boxes.push(middle);
    boxes.extend(columns(bottom, &[5, 3, 3]));
    ((graph > 0).then_some(plot), boxes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_fill_the_body_of_every_page() {
        for (columns, rows) in [(COLUMNS, ROWS), (100, 30), (300, 100)] {
            for (at, page) in PAGES.iter().enumerate() {
                let places = places(at, Rect::new(0, 0, columns, rows));
                assert_eq!(places.boxes.len(), page.boxes.len(), "{}", page.title);
                for area in &places.boxes {
                    assert!(area.height >= 4 && area.bottom() < rows && area.right() <= columns, "{area:?}");
                }
            }
        }
    }

    #[test]
    fn short_tabs_fit_the_smallest_terminal() {
        let length: usize = PAGES.iter().map(|page| page.short.len() + 3).sum();
        assert!(length - 1 <= COLUMNS.into(), "{length}");
    }
}
