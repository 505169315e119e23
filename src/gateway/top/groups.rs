//! Rows that are one: connections with the same owner, service and outcome, and drops with the same reason.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use serde_json::{Map, Value, json};

/// Fields of a group: those that are added, and those of which the largest counts.
const ADDED: [&str; 3] = ["rx_bytes", "tx_bytes", "retransmits"];
const LARGEST: [&str; 3] = ["connect_latency_us", "duration_us", "rtt_us"];

/// One row for each group, where its first connection stands, with `count`. A connection alone stays as it is. A connection
/// between two processes of this host is the client's row, with `server`.
pub fn grouped<'a>(rows: impl Iterator<Item = &'a Value>) -> Vec<Cow<'a, Value>> {
    let mut groups = Vec::<Cow<Value>>::new();
    let mut places = HashMap::<String, usize>::new();
    for row in paired(rows.collect()) {
        match places.entry(key(&row)) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(groups.len());
                groups.push(row);
            }
            std::collections::hash_map::Entry::Occupied(known) => add(groups[*known.get()].to_mut(), &row),
        }
    }
    groups
}

/// The rows without the server's end of connections whose client's end is there.
fn paired(rows: Vec<&Value>) -> Vec<Cow<'_, Value>> {
    let is_inbound = |row: &Value| row["direction"] == "inbound";
    // From the client to the server.
    let ends = |row: &Value| match is_inbound(row) {
        true => format!("{} {}", row["remote"], row["local"]),
        false => format!("{} {}", row["local"], row["remote"]),
    };
    let of = |inbound: bool| rows.iter().filter(move |row| is_inbound(row) == inbound).map(|row| (ends(row), *row));
    let (servers, clients): (HashMap<_, _>, HashSet<_>) =
        (of(true).collect(), of(false).map(|(ends, _)| ends).collect());
    let kept = rows.iter().filter(|row| !is_inbound(row) || !clients.contains(&ends(row)));
    let with_server = |row: &&'_ Value| {
        let server = servers.get(&ends(row)).filter(|_| !is_inbound(row))?;
        let mut row = (*row).clone();
        row["server"] = server["owner"].clone();
        Some(row)
    };
    kept.map(|row| with_server(row).map_or(Cow::Borrowed(*row), Cow::Owned)).collect()
}

/// What the connections of a group have in common. A client's port is different in each.
pub fn key(row: &Value) -> String {
    let (service, other) = match row["direction"] == "inbound" {
        true => (&row["local"], &row["remote"]["address"]),
        false => (&row["remote"], &Value::Null),
    };
    [&row["owner"], &row["direction"], service, other, &row["outcome"]].map(Value::to_string).join(" ")
}

fn add(group: &mut Value, row: &Value) {
    let count = group["count"].as_u64().unwrap_or(1) + 1;
    let figure = |value: &Value, name: &str| value[name].as_u64();
    let sums = ADDED.map(|name| (name, figure(group, name).into_iter().chain(figure(row, name)).reduce(|a, b| a + b)));
    let most = LARGEST.map(|name| (name, figure(group, name).max(figure(row, name))));
    let Some(group) = group.as_object_mut() else { return };
    for (name, value) in sums.into_iter().chain(most) {
        value.map(|value| group.insert(name.into(), value.into()));
    }
    let client = if group.get("direction") == Some(&json!("inbound")) { "remote" } else { "local" };
    group.remove(client).map(|end| group.insert(client.into(), json!({"address": end["address"]})));
    group.insert("count".into(), count.into());
}

/// Dropped packets by reason: the first row of each, with the packets of all and the number of flows.
pub fn by_reason<'a>(rows: impl Iterator<Item = &'a Value>) -> Vec<Cow<'a, Value>> {
    const COMMON: [&str; 4] = ["reason", "explanation", "check", "benign"];
    let mut reasons = Vec::<Value>::new();
    for row in rows {
        let known = reasons.iter_mut().find(|reason| reason["reason"] == row["reason"]);
        let Some(reason) = known else {
            let mut reason: Map<String, Value> =
                COMMON.map(|name| (name.to_owned(), row[name].clone())).into_iter().collect();
            reason.insert("count".into(), row["count"].clone());
            reason.insert("flows".into(), json!(1));
            reasons.push(reason.into());
            continue;
        };
        for (name, more) in [("count", row["count"].as_u64()), ("flows", Some(1))] {
            reason[name] = json!(reason[name].as_u64().unwrap_or_default() + more.unwrap_or_default());
        }
    }
    reasons.into_iter().map(Cow::Owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(port: u16, outcome: &str, us: u64) -> Value {
        json!({
            "owner": {"process": "curl", "pid": 7}, "direction": "outbound", "outcome": outcome,
            "local": {"address": "10.0.0.1", "port": port}, "remote": {"address": "10.0.0.2", "port": 443},
            "connect_latency_us": us, "rx_bytes": 5, "tx_bytes": 1,
        })
    }

    #[test]
    fn equal_connections_are_one_row_with_a_count() {
        let rows = [connection(1, "refused", 30), connection(2, "established", 9), connection(3, "refused", 70)];
        let groups = grouped(rows.iter());
        assert_eq!(groups.len(), 2);
        let refused = &groups[0];
        assert_eq!(
            (&refused["count"], &refused["rx_bytes"], &refused["connect_latency_us"]),
            (&json!(2), &json!(10), &json!(70))
        );
        assert_eq!(refused["local"], json!({"address": "10.0.0.1"}), "the ports differ");
        assert_eq!(*groups[1], rows[1]);
        assert_eq!(key(refused), key(&rows[0]), "a group keeps its key as it grows");
    }

    #[test]
    fn connection_between_two_processes_is_one_row() {
        let client = connection(1, "established", 30);
        let mut server =
            json!({"owner": {"process": "nginx", "pid": 9}, "direction": "inbound", "outcome": "established"});
        (server["local"], server["remote"]) = (client["remote"].clone(), client["local"].clone());
        let both = [server.clone(), client.clone()];
        let rows = grouped(both.iter());
        assert_eq!((rows.len(), &rows[0]["owner"], &rows[0]["server"]), (1, &client["owner"], &server["owner"]));
        let one = [server];
        assert_eq!(grouped(one.iter()).len(), 1, "its client is elsewhere");
    }

    #[test]
    fn drops_are_added_by_reason() {
        let rows = [("NO_SOCKET", 4), ("NEIGH_FAILED", 1), ("NO_SOCKET", 2)]
            .map(|(reason, count)| json!({"reason": reason, "count": count, "explanation": "why", "check": "this"}));
        let reasons = by_reason(rows.iter());
        let of = |at: usize| [&reasons[at]["reason"], &reasons[at]["count"], &reasons[at]["flows"]].map(Clone::clone);
        assert_eq!(
            (of(0), of(1)),
            ([json!("NO_SOCKET"), json!(6), json!(2)], [json!("NEIGH_FAILED"), json!(1), json!(1)])
        );
    }
}
