pub fn report(sample: u64) -> super::Output {
    super::Output { load_1_minute: sample as f64 / 65_536.0 }
}
