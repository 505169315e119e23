use super::*;

#[test]
fn without_a_daemon_it_says_why() {
    let output = Status::without_daemon("it is not running").unwrap();
    assert!(!output.daemon.connected && output.tools.iter().all(|tool| !tool.available));
    assert!(Status::text(&output).contains("netmond is unavailable: it is not running"));
}
