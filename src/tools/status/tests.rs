use super::*;

#[test]
fn status_without_daemon_states_the_reason() {
    let output = Status::without_daemon("it is not running").unwrap();
    assert!(!output.daemon.connected && output.tools.iter().all(|tool| !tool.available));
    assert!(Status::text(&output).contains("netmond is unavailable: it is not running"));
}
