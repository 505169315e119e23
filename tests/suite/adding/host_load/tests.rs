#[test]
fn load_of_65536_is_one() {
    assert_eq!(super::report::report(65_536).load_1_minute, 1.0);
}
