pub fn text(output: &super::Output) -> String {
    format!("{} threads\n", output.load_1_minute)
}
