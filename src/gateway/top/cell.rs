//! A place in a table: what a column takes from a row.

use std::cmp::Ordering;

use serde_json::Value;

use super::units::{Rates, Unit, figure};
use crate::gateway::live::Screen;

/// A row of an answer, and the screen that it is on.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub row: &'a Value,
    pub screen: &'a Screen,
}

/// The content of a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Unknown, or not applicable.
    None,
    Text(String),
    Figure(f64, Unit),
    /// A figure over time, oldest first.
    Bars(Vec<f64>),
}

impl Cell {
    /// Text of a string; nothing else is text.
    pub fn text(value: &Value) -> Cell {
        value.as_str().filter(|text| !text.is_empty()).map_or(Cell::None, |text| Cell::Text(text.to_owned()))
    }

    pub fn figure(value: &Value, unit: Unit) -> Cell {
        value.as_f64().map_or(Cell::None, |value| Cell::Figure(value, unit))
    }

    /// As it is shown. Bars have a form of their own.
    pub fn shown(&self, rates: Rates) -> String {
        match self {
            Cell::None => "-".into(),
            Cell::Text(text) => text.clone(),
            Cell::Figure(value, unit) => figure(*value, *unit, rates),
            Cell::Bars(_) => String::new(),
        }
    }

    /// Figures by size, text by letters; what is unknown is least.
    pub fn compare(&self, other: &Cell) -> Ordering {
        let rank = |cell: &Cell| match cell {
            Cell::None => 0,
            Cell::Bars(_) => 1,
            Cell::Figure(..) => 2,
            Cell::Text(_) => 3,
        };
        match (self, other) {
            (Cell::Figure(a, _), Cell::Figure(b, _)) => a.total_cmp(b),
            (Cell::Text(a), Cell::Text(b)) if severity(a).is_some() && severity(b).is_some() => {
                severity(a).cmp(&severity(b))
            }
            (Cell::Text(a), Cell::Text(b)) => a.to_lowercase().cmp(&b.to_lowercase()),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

/// The place of a severity among the others, the worst first.
fn severity(word: &str) -> Option<usize> {
    ["CRITICAL", "WARNING", "INFO", "ended"].iter().position(|known| *known == word)
}

/// `10.0.0.1:80`, `[fd00::1]:80`, or the address alone.
pub fn endpoint(end: &Value) -> Cell {
    let address = end["address"].as_str();
    let port = end["port"].as_u64();
    Cell::Text(match (address, port) {
        (Some(address), Some(port)) if address.contains(':') => format!("[{address}]:{port}"),
        (Some(address), Some(port)) => format!("{address}:{port}"),
        (Some(address), None) => address.to_owned(),
        (None, Some(port)) => format!("*:{port}"),
        (None, None) => return Cell::None,
    })
}

/// `curl[1234]`.
pub fn process(owner: &Value) -> Cell {
    match (owner["process"].as_str(), owner["pid"].as_u64()) {
        (Some(process), Some(pid)) => Cell::Text(format!("{process}[{pid}]")),
        (Some(process), None) => Cell::Text(process.to_owned()),
        (None, Some(pid)) => Cell::Text(format!("[{pid}]")),
        (None, None) => Cell::None,
    }
}

/// The container or unit of an owner. A container id is cut as its tools cut it.
pub fn place(owner: &Value) -> Cell {
    match owner["container_name"].as_str().or(owner["container"].as_str()) {
        Some(id) => Cell::Text(id.chars().take(12).collect()),
        None => Cell::text(&owner["unit"]),
    }
}

/// The network namespace of an owner that is in another one than netmond: its name, or its number.
pub fn namespace(source: &Source) -> Cell {
    let number = source.row["owner"]["netns"].as_u64();
    match (Cell::text(&source.row["netns_name"]), number) {
        (Cell::None, Some(number)) => Cell::Text(number.to_string()),
        (name, _) => name,
    }
}

/// What a row of top_traffic is about, by how it is grouped.
pub fn who(row: &Value) -> Cell {
    let owner = &row["owner"];
    let ends = [endpoint(&row["local"]), endpoint(&row["remote"])];
    match (ends, process(owner)) {
        ([Cell::Text(local), Cell::Text(remote)], Cell::Text(process)) => {
            Cell::Text(format!("{process} {local} → {remote}"))
        }
        ([Cell::Text(local), Cell::Text(remote)], _) => Cell::Text(format!("{local} → {remote}")),
        ([Cell::Text(local), _], Cell::Text(process)) => Cell::Text(format!("{process} {local}")),
        ([Cell::None, remote @ Cell::Text(_)], _) => remote,
        (_, process @ Cell::Text(_)) => process,
        _ => match place(owner) {
            Cell::None => Cell::Text("unknown".into()),
            place => place,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_cells_are_least() {
        let mut cells = [Cell::Figure(2.0, Unit::Count), Cell::None, Cell::Figure(1.0, Unit::Count)];
        cells.sort_by(Cell::compare);
        assert_eq!(cells, [Cell::None, Cell::Figure(1.0, Unit::Count), Cell::Figure(2.0, Unit::Count)]);
    }

    #[test]
    fn namespace_is_its_name_or_its_number() {
        let screen = Screen::default();
        let shown = |row: Value| namespace(&Source { row: &row, screen: &screen }).shown(Rates::Bits);
        let owner = json!({"netns": 4_026_533_987_u64});
        assert_eq!(shown(json!({"owner": owner, "netns_name": "blue"})), "blue");
        assert_eq!(shown(json!({"owner": owner})), "4026533987");
        assert_eq!(shown(json!({"owner": {}})), "-");
    }

    #[test]
    fn traffic_is_named_by_its_grouping() {
        let shown = |row: Value| who(&row).shown(Rates::Bits);
        let curl = json!({"process": "curl", "pid": 7});
        assert_eq!(shown(json!({"owner": curl})), "curl[7]");
        assert_eq!(shown(json!({"owner": {"unit": "nginx.service"}})), "nginx.service");
        assert_eq!(shown(json!({"owner": {"container": "0123456789abcdef"}})), "0123456789ab");
        assert_eq!(shown(json!({"owner": {}, "remote": {"address": "fd00::1"}})), "fd00::1");
        let flow = json!({"owner": curl, "local": {"address": "10.0.0.1", "port": 5}, "remote": {"address": "::1", "port": 80}});
        assert_eq!(shown(flow), "curl[7] 10.0.0.1:5 → [::1]:80");
    }
}
