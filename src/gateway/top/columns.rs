//! Which columns fit, and how wide each is.

use super::{
    cell::Cell,
    listing::Listing,
    tables::{Need, Table},
    text,
    units::Rates,
};

/// Between two columns.
pub const GAP: usize = 2;
/// The narrowest form of a column that gives way.
const NARROW: usize = 6;
/// Bars: at least and at most so many.
const BARS: [usize; 2] = [10, 60];

/// A column that is shown.
pub struct Shown {
    pub at: usize,
    pub width: usize,
}

/// The columns for a width. The optional ones go first, from the last; then the elastic one is cut, then the widest. `sorted` has a mark.
pub fn fit(table: &Table, listing: &Listing, rates: Rates, sorted: Option<usize>, room: usize) -> Vec<Shown> {
    let natural = |at: usize| {
        let head = text::width(table.columns[at].title) + if sorted == Some(at) { 2 } else { 0 };
        let widest = |row: &crate::gateway::top::listing::Row| match &row.cells[at] {
            Cell::Bars(_) => BARS[0],
            cell => text::width(&cell.shown(rates)),
        };
        listing.rows.iter().map(widest).max().unwrap_or_default().max(head)
    };
    let needs = |column: &Shown, need: Need| table.columns[column.at].need == need;
    let mut columns: Vec<Shown> = (0..table.columns.len()).map(|at| Shown { at, width: natural(at) }).collect();
    while total(&columns) > room {
        let Some(last) = columns.iter().rposition(|column| needs(column, Need::Optional)) else { break };
        columns.remove(last);
    }
    if let Some(at) = columns.iter().position(|column| needs(column, Need::Elastic)) {
        let over = total(&columns).saturating_sub(room);
        columns[at].width = columns[at].width.saturating_sub(over).max(if at == 0 { NARROW } else { 0 });
        if over > 0 && at > 0 && columns[at].width < NARROW {
            columns.remove(at);
        }
    }
    while total(&columns) > room {
        let widest = columns.iter_mut().max_by_key(|column| column.width).filter(|column| column.width > NARROW);
        let Some(widest) = widest else { break };
        widest.width -= 1;
    }
    widen(table, listing, &mut columns, room);
    columns
}

/// Gives bars the room that is left.
fn widen(table: &Table, listing: &Listing, columns: &mut [Shown], room: usize) {
    let left = room.saturating_sub(total(columns));
    let has_bars = |column: &&mut Shown| {
        table.columns[column.at].title == HISTORY
            || listing.rows.iter().any(|row| matches!(row.cells[column.at], Cell::Bars(_)))
    };
    if let Some(bars) = columns.iter_mut().find(has_bars) {
        bars.width = (bars.width + left).min(BARS[1]);
    }
}

/// The head of a column of bars.
const HISTORY: &str = "history";

fn total(columns: &[Shown]) -> usize {
    (columns.iter().map(|column| column.width + GAP).sum::<usize>()).saturating_sub(GAP)
}
